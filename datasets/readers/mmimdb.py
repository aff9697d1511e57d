"""Read MM-IMDB: plots and posters of films, labeled with several genres each.

Published as `multimodal_imdb.hdf5` (http://lisi1.unal.edu.co/mmimdb/; J. Arevalo et al., Gated
Multimodal Units for Information Fusion, arXiv:1702.01992): `features` (N, 300), the mean word2vec
vector of a plot; `vgg_features` (N, 4096) of a poster; `genres` (N, 23) of 0 and 1. The file's
attribute `split` gives the rows of training (`train`), validation (`dev`) and testing (`test`);
without it they are the first 15,552, the next 2,608 and the last 7,799. The names of the genres
are the attribute `target_names` of the file or of `genres`, a list or its JSON.

Both inputs are vectors, one token each; `text_tokens` and `image_tokens` cut them into more tokens.

Shapes: N films, T tokens, F features.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.datasets.errors import DatasetError
from sftsearch.datasets.readers.hdf5 import Reader
from sftsearch.datasets.source import Sample, Source, unreadable
from sftsearch.datasets.spec import ModalitySpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

ARRAYS = {"text": "features", "image": "vgg_features"}
SIZES = {"train": 15_552, "validation": 2_608, "test": 7_799}
FILE_SPLITS = {"train": "train", "dev": "validation", "valid": "validation", "test": "test"}
"""Names of the splits in the file."""
BLOCK_ROWS = 512


def open_source(
    path: Path, *, text_tokens: int = 1, image_tokens: int = 1, splits: str = ""
) -> Source:
    """List the films of MM-IMDB: multimodal_imdb.hdf5, or the folder with it.

    Args:
        path: the file or folder.
        text_tokens: tokens to cut the 300 numbers of a plot into.
        image_tokens: tokens to cut the 4,096 numbers of a poster into.
        splits: numbers of films, TRAIN,VALIDATION,TEST; by default those of the file, else the
            published ones.

    Raises:
        DatasetError: the file has another format, or an option is invalid.
    """
    file = path / "multimodal_imdb.hdf5" if path.is_dir() else path
    films = _Films(file)
    shapes = {
        name: films.shape(name, parts)
        for name, parts in (("text", text_tokens), ("image", image_tokens))
    }
    split_of = films.splits() if not splits else None
    if split_of is None:
        sizes = _sizes(splits, films.count, file)
        split_of = list(itertools.chain(*([name] * count for name, count in sizes.items())))
    genres = films.genres()
    return Source(
        task="multilabel",
        modalities=shapes,
        classes=films.genre_names(genres.shape[1]),
        samples=[
            Sample(
                name=f"film {row}",
                split=split_of[row],
                label=tuple(genres[row].tolist()),
                read=partial(films.values, row, shapes),
            )
            for row in range(films.count)
        ],
        licence="see the source page",
        attribution="J. Arevalo et al.: Gated Multimodal Units for Information Fusion. "
        "arXiv:1702.01992 (2017).",
        source="http://lisi1.unal.edu.co/mmimdb/",
        description="Plots and posters of films, with 23 genres.",
    )


def _sizes(splits: str, count: int, file: Path) -> dict[str, int]:
    if not splits:
        sizes = dict(SIZES)
    else:
        parts = splits.split(",")
        if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise DatasetError(
                f"Option `splits` must be three positive integers with commas, but got {splits!r}."
            )
        sizes = dict(zip(SIZES, map(int, parts), strict=True))
    if sum(sizes.values()) != count:
        expected = ",".join(map(str, sizes.values()))
        raise unreadable(
            file, f"it has {count} films, not {expected}: set `--option splits=TRAIN,VAL,TEST`"
        )
    return sizes


class _Films:
    """The file; rows are read and cached in blocks."""

    def __init__(self, file: Path) -> None:
        self.file, self._reader = file, Reader(file)
        arrays = self._reader.arrays()
        self._arrays = {}
        for name in (*ARRAYS.values(), "genres"):
            if name not in arrays or len(arrays[name].shape) != 2 or 0 in arrays[name].shape:
                raise unreadable(file, f"it has no array {name} of shape (films, numbers)")
            self._arrays[name] = arrays[name].shape
        counts = {shape[0] for shape in self._arrays.values()}
        if len(counts) != 1:
            raise unreadable(file, f"its arrays have different numbers of films: {sorted(counts)}")
        (self.count,) = counts
        self._block = (-1, {})  # type: tuple[int, dict[str, npt.NDArray[Any]]]

    def shape(self, modality: str, parts: int) -> ModalitySpec:
        width = self._arrays[ARRAYS[modality]][1]
        if parts < 1 or width % parts:
            raise DatasetError(
                f"Option `{modality}_tokens` must divide the {width} numbers of a film, "
                f"but got {parts}."
            )
        return ModalitySpec(num_tokens=parts, num_features=width // parts)

    def genres(self) -> npt.NDArray[np.int64]:
        """Return the labels, (N, C)."""
        found = self._reader.read("genres")
        wrong = np.argwhere((found != 0) & (found != 1))
        if len(wrong):
            row, column = wrong[0]
            raise unreadable(
                self.file, f"genres must be 0 or 1, but film {row} has {found[row, column]}"
            )
        return found.astype(np.int64)

    def genre_names(self, count: int) -> tuple[str, ...]:
        """Return the names in the file; `genre_0`, ... if it has none that fit."""
        for path in ("/", "genres"):
            names = self._reader.attributes(path).get("target_names")
            if isinstance(names, str):
                with contextlib.suppress(ValueError):
                    names = json.loads(names)
            if isinstance(names, list) and len(set(map(str, names))) == count == len(names):
                return tuple(map(str, names))
        return tuple(f"genre_{number}" for number in range(count))

    def splits(self) -> list[str] | None:
        """Return the split of each film by the file; None if it does not say.

        Raises:
            DatasetError: the splits overlap or leave out films.
        """
        table = self._reader.attributes().get("split")
        if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
            return None
        found = [""] * self.count
        ranges = {
            (str(row.get("split")), row.get("start"), row.get("stop"))
            for row in table
            if row.get("source", "genres") == "genres" and row.get("available", True)
        }
        for name, start, stop in ranges:
            if name not in FILE_SPLITS or not isinstance(start, int) or not isinstance(stop, int):
                raise unreadable(self.file, f"its attribute `split` has {name!r:.40}, {start}")
            rows = range(max(start, 0), min(stop, self.count))
            if any(found[row] for row in rows):
                raise unreadable(self.file, "the splits of its attribute `split` overlap")
            found[rows.start : rows.stop] = [FILE_SPLITS[name]] * len(rows)
        if not all(found):
            raise unreadable(self.file, f"its attribute `split` leaves out film {found.index('')}")
        return found

    def values(self, row: int, shapes: dict[str, ModalitySpec]) -> dict[str, npt.NDArray[Any]]:
        number = row // BLOCK_ROWS
        if self._block[0] != number:
            first = number * BLOCK_ROWS
            read = {
                name: self._reader.read(array, first, first + BLOCK_ROWS)
                for name, array in ARRAYS.items()
            }
            self._block = number, read
        return {
            name: self._block[1][name][row % BLOCK_ROWS].reshape(shape.num_tokens, -1)
            for name, shape in shapes.items()
        }
