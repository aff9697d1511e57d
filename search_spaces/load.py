"""Read study files, and collect all errors with their lines.

A study file is untrusted: it is parsed into plain values only (`plain_yaml.py`), and messages show
only printable characters (`mistakes.py`).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError, nearest
from sftsearch.search_spaces.mistakes import Layout, Mistake, StudyFileError
from sftsearch.search_spaces.other_dataset import adapt
from sftsearch.search_spaces.plain_yaml import MAX_BYTES, parse_yaml
from sftsearch.search_spaces.schema_mistakes import check_types
from sftsearch.search_spaces.shared_space import expand_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.search_spaces import schema
    from sftsearch.search_spaces.mistakes import Place
    from sftsearch.search_spaces.shared_space import ParametersOf


class NoStudyFileError(UserError):
    """The study file does not exist or cannot be read."""


@dataclass(frozen=True, slots=True)
class StudySource:
    """A study file after reading: values, lines, and schema errors."""

    name: str
    data: dict[str, Any]
    """The plain values, valid or not."""
    layout: Layout
    mistakes: tuple[Mistake, ...]
    checked: schema.StudyFile | None
    """The typed study; None with schema errors."""
    adapted: tuple[str, ...] = ()
    """What was changed for another dataset; one sentence each."""

    @property
    def study(self) -> schema.StudyFile:
        """The typed study.

        Raises:
            StudyFileError: there are schema errors.
        """
        if self.mistakes or self.checked is None:
            raise StudyFileError(self.name, list(self.mistakes))
        return self.checked

    def mistake(self, place: Place, message: str) -> Mistake:
        """Return an error at `place`, with the line of the nearest enclosing value that has one."""
        return self.layout.mistake(place, message)


def find_study_file(name: str) -> Path:
    """Find a study file by its path, or by the name of a shipped one.

    Raises:
        NoStudyFileError: neither exists.
    """
    path = Path(name)
    if _is(path, Path.exists) and not path.is_dir():  # also a pipe, as /dev/stdin
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
    """Return `what(path)`, or False for an invalid path (such as a name that is too long)."""
    try:
        return what(path)
    except (OSError, ValueError):
        return False


def read_study(path: Path, parameters_of: ParametersOf) -> StudySource:
    """Read the study file at `path`, and collect its schema errors.

    Args:
        path: of the file.
        parameters_of: see `expand_shared`.

    Raises:
        StudyFileError: it is not a YAML mapping.
        NoStudyFileError: it cannot be read.
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
) -> StudySource:
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
            f"A study file is a mapping with `study`, `dataset`, `search`, `space`, but got {got}."
        )
        raise StudyFileError(name, [*mistakes, Mistake(1, "", message)])
    layout = Layout(lines)
    data, found = expand_shared(data, layout, parameters_of or (lambda _: ()))
    return _checked(name, data, layout, [*mistakes, *found])


def _checked(
    name: str, data: dict[str, Any], layout: Layout, mistakes: list[Mistake]
) -> StudySource:
    study, found = check_types(data, layout)
    return StudySource(name, data, layout, (*mistakes, *found), study)


def on_dataset(
    source: StudySource,
    spec: DatasetSpec,
    own: DatasetSpec | None,
    *,
    root: str | None,
    accuracy: Mapping[str, str],
) -> StudySource:
    """Return the source of a study file for another dataset, with the dataset in its name.

    See `adapt` for what changes. The description is dropped: it is of the file's own dataset.

    Args:
        source: of a study file without schema errors.
        spec: of the other dataset.
        own: of the file's dataset; None if this machine does not have it.
        root: of the other dataset's store; see `DatasetChoice`.
        accuracy: the objective of the other dataset's task, `{metric, direction}`.
    """
    data, study = copy.deepcopy(source.data), source.study
    data["dataset"] = {**data["dataset"], "kind": spec.name, "root": root}
    data["study"] = {"name": f"{study.study.name}_{spec.name}"[:64]}
    notes = adapt(data, spec, own)
    if "objectives" in data and own is not None and own.task != spec.task:
        data["objectives"][0] = dict(accuracy)
        notes.append(f"objective: {accuracy['metric']}, as the task is {spec.task}.")
    adapted = _checked(f"{source.name}, on {spec.name}", data, source.layout, [])
    return dataclasses.replace(adapted, adapted=tuple(notes))
