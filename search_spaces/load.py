"""Read a study file: YAML with line marks, every mistake at once.

A study file comes from outside and is hostile until checked: it is parsed into plain values only
(`plain_yaml.py`), and what it says is shown only in printable characters (`mistakes.py`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError, nearest
from sftsearch.search_spaces.mistakes import Layout, Mistake, StudyFileError
from sftsearch.search_spaces.plain_yaml import MAX_BYTES, parse_yaml
from sftsearch.search_spaces.schema_mistakes import check_types
from sftsearch.search_spaces.shared_space import expand_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sftsearch.search_spaces import schema
    from sftsearch.search_spaces.mistakes import Place
    from sftsearch.search_spaces.shared_space import ParametersOf


class NoStudyFileError(UserError):
    """There is no study file where one was named, or it cannot be read."""


@dataclass(frozen=True, slots=True)
class Source:
    """A study file as it was read: its values, their lines, and what is wrong with its form."""

    name: str
    data: dict[str, Any]
    """The plain values, also where they have mistakes."""
    layout: Layout
    mistakes: tuple[Mistake, ...]
    checked: schema.StudyFile | None
    """The typed study; None where the form has mistakes."""

    @property
    def study(self) -> schema.StudyFile:
        """The typed study.

        Raises:
            StudyFileError: the form has mistakes.
        """
        if self.mistakes or self.checked is None:
            raise StudyFileError(self.name, list(self.mistakes))
        return self.checked

    def mistake(self, place: Place, message: str) -> Mistake:
        """Return a mistake at `place`, or at the nearest thing around it that has a line."""
        return self.layout.mistake(place, message)


def find_study_file(name: str) -> Path:
    """Return the path of a study file: a path, or the name of one that ships.

    Raises:
        NoStudyFileError: neither exists.
    """
    path = Path(name)
    if _is(path, Path.is_file):
        return path
    shipped = Path(str(resources.files("sftsearch.search_spaces")))
    known = sorted(file.stem for file in shipped.glob("*.yaml"))
    if (
        path.stem in known
        and path.suffix in ("", ".yaml")
        and path.parent.name in ("", shipped.name)
    ):
        return shipped / f"{path.stem}.yaml"
    near = nearest(path.stem, known)
    hint = f" Did you mean '{near}'?" if near else ""
    raise NoStudyFileError(
        f"There is no study file '{name}'.{hint} Shipped studies: {', '.join(known)}."
        if not _is(path, Path.is_dir)
        else f"'{name}' is a folder; a study file is a YAML file."
    )


def _is(path: Path, what: Callable[[Path], bool]) -> bool:
    """Ask for the kind of a path; what cannot be a path (too long a name, ...) is of no kind."""
    try:
        return what(path)
    except (OSError, ValueError):
        return False


def read_study(path: Path, parameters_of: ParametersOf) -> Source:
    """Read the study file at `path` and note every mistake in its form.

    Args:
        path: of the file.
        parameters_of: see `expand_shared`.

    Raises:
        StudyFileError: it is not a YAML mapping.
        NoStudyFileError: it cannot be read at all.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"Cannot read the study file '{path}': {error.strerror}."
        raise NoStudyFileError(message) from error
    return parse_study(content, parameters_of, name=str(path))


def parse_study(
    content: bytes, parameters_of: ParametersOf | None = None, *, name: str = "study file"
) -> Source:
    """Parse the text of a study file.

    Args:
        content: the text, in UTF-8.
        parameters_of: see `expand_shared`; a file without `space.shared` needs none.
        name: of the file, for messages.

    Raises:
        StudyFileError: it is not a YAML mapping.
    """
    data, lines, mistakes = parse_yaml(content, name)
    if not isinstance(data, dict):
        got = "nothing" if data is None else f"a {type(data).__name__}"
        message = (
            f"A study file is a mapping with `study`, `dataset`, `search`, `space`; got {got}."
        )
        raise StudyFileError(name, [*mistakes, Mistake(1, "", message)])
    layout = Layout(lines)
    data, found = expand_shared(data, layout, parameters_of or (lambda _: ()))
    return _checked(name, data, layout, [*mistakes, *found])


def _checked(name: str, data: dict[str, Any], layout: Layout, mistakes: list[Mistake]) -> Source:
    study, found = check_types(data, layout)
    return Source(name, data, layout, (*mistakes, *found), study)


def on_dataset(source: Source, kind: str, root: str | None, modalities: Sequence[str]) -> Source:
    """Return a study file's source as it is for another data set, under a name of its own.

    Where a model's `modalities` name others than the data set has, they become: each of its own
    alone, if the file has choices of one; all of them together, if it has others; the first two, of
    a model that the file only gives pairs.

    Args:
        source: of a study file without mistakes of form.
        kind: the data set's name.
        root: where its store is; see `DatasetChoice`.
        modalities: the names of its modalities, in its order.
    """
    data = copy.deepcopy(source.data)
    data["dataset"] = {**data["dataset"], "kind": kind, "root": root}
    data["study"]["name"] = f"{source.study.study.name}_{kind}"[:64]
    for branch in data["space"]:
        given = branch.get("modalities")
        is_choice = isinstance(given, dict)
        choices = given.get("values", []) if is_choice else [given]
        choices = [choice for choice in choices if isinstance(choice, list)]
        if all(name in modalities for choice in choices for name in choice):
            continue
        branch["modalities"] = {"kind": "choice", "values": _adapted(choices, modalities)}
    return _checked(f"{source.name}, on {kind}", data, source.layout, [])


def _adapted(choices: list[list[str]], modalities: Sequence[str]) -> list[list[str]]:
    sizes = {len(choice) for choice in choices}
    values = [[name] for name in modalities] if 1 in sizes else []
    if sizes == {2}:
        values.append([*modalities[:2]])
    elif sizes != {1} and len(modalities) > 1:
        values.append([*modalities])
    return values or [[*modalities]]
