"""Read a study file: YAML with line marks, every mistake at once.

A study file comes from outside and is hostile until checked: it is parsed into plain scalars, lists
and mappings only (YAML 1.2 core types; no other tags, no anchors, no duplicate keys, one document,
at most 256 KiB), and what it says is shown only in printable characters.
"""

from __future__ import annotations

import copy
import re
import types
import typing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from sftsearch.datasets.errors import UserError, nearest
from sftsearch.search_spaces import schema

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_SHOWN = 50
"""Mistakes that are shown of a file; the rest are counted."""
Place = tuple[str | int, ...]
"""Where a value stands in the file: keys and list positions from the top."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to mend in a study file."""

    line: int
    key: str
    """The dotted path of the value, such as `space[0].stride`; empty for the whole file."""
    message: str

    def __str__(self) -> str:
        """Return one line of printable characters."""
        text = f"line {self.line}: {self.key + ': ' if self.key else ''}{self.message}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class NoStudyFileError(UserError):
    """There is no study file where one was named, or it cannot be read."""


class StudyFileError(UserError):
    """A study file with mistakes; its text is one line for each."""

    def __init__(self, source: str, mistakes: list[Mistake]) -> None:
        self.source = source
        self.mistakes = sorted(set(mistakes), key=lambda mistake: (mistake.line, mistake.key))
        shown = [f"{source}, {mistake}" for mistake in self.mistakes[:MAX_SHOWN]]
        if len(self.mistakes) > MAX_SHOWN:
            shown.append(f"{source}: and {len(self.mistakes) - MAX_SHOWN} mistakes more.")
        super().__init__("\n".join(shown))


@dataclass(frozen=True, slots=True)
class Source:
    """A study file as it was read: its values, their lines, and what is wrong with its form."""

    name: str
    data: dict[str, Any]
    """The plain values, also where they have mistakes."""
    lines: dict[Place, int]
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
        return Mistake(_line(self.lines, place), dotted(place), message)


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


def read_study(path: Path) -> Source:
    """Read the study file at `path` and note every mistake in its form.

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
    return parse_study(content, name=str(path))


def parse_study(content: bytes, *, name: str = "study file") -> Source:
    """Read the text of a study file; `name` stands in the messages. Raises as `read_study`."""
    data, lines, mistakes = _parse_yaml(content, name)
    if not isinstance(data, dict):
        got = "nothing" if data is None else f"a {type(data).__name__}"
        message = (
            f"A study file is a mapping with `study`, `dataset`, `search`, `space`; got {got}."
        )
        raise StudyFileError(name, [*mistakes, Mistake(1, "", message)])
    return _checked(name, data, lines, mistakes)


def _checked(
    name: str, data: dict[str, Any], lines: dict[Place, int], mistakes: list[Mistake]
) -> Source:
    found = list(mistakes)
    study: schema.StudyFile | None = None
    try:
        study = schema.StudyFile.model_validate(data)
    except ValidationError as error:
        found += [_from_pydantic(dict(item), data, lines) for item in error.errors()]
    found += _distribution_mistakes(data, lines)
    return Source(name, data, lines, tuple(found), study)


def on_dataset(
    source: Source, kind: str, root: str | None, modalities: typing.Sequence[str]
) -> Source:
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
    return _checked(f"{source.name}, on {kind}", data, source.lines, [])


def _adapted(choices: list[list[str]], modalities: typing.Sequence[str]) -> list[list[str]]:
    sizes = {len(choice) for choice in choices}
    values = [[name] for name in modalities] if 1 in sizes else []
    if sizes == {2}:
        values.append([*modalities[:2]])
    elif sizes != {1} and len(modalities) > 1:
        values.append([*modalities])
    return values or [[*modalities]]


def dotted(place: Place) -> str:
    """Write a place as in `space[0].stride.low`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{shown(part)}"
    return text


def shown(name: str) -> str:
    """Return a name as it may stand in a message: cut where it is long."""
    return name if len(name) <= 80 else f"{name[:77]}..."


def _line(lines: dict[Place, int], place: Place) -> int:
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


# ------------------------------------------------------------------ YAML


class _Yaml12(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-3` is a number, `yes` and `12:30` are text, and there are no dates.

    What makes a small file unfold into a huge one is refused before anything unfolds.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.depth += 1
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            message = f"Anchors and aliases (&, *) are not allowed, got '{shown(anchor)}'."
            raise _RefusedError(problem=message, problem_mark=event.start_mark)
        if self.depth > MAX_DEPTH:
            message = f"Lists and mappings are nested deeper than {MAX_DEPTH} levels."
            raise _RefusedError(problem=message, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that a study file may not have."""


_Yaml12.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
        list("-+.0123456789"),
    ),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    _Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _parse_yaml(content: bytes, name: str) -> tuple[Any, dict[Place, int], list[Mistake]]:
    if len(content) > MAX_BYTES:
        message = f"The file is larger than {MAX_BYTES // 1024} KiB, the limit of a study file."
        raise StudyFileError(name, [Mistake(1, "", message)])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        message = f"The file is not UTF-8 text (byte 0x{content[error.start]:02x})."
        raise StudyFileError(name, [Mistake(line, "", message)]) from error
    try:
        node = yaml.compose(text, Loader=_Yaml12)
    except yaml.MarkedYAMLError as error:
        raise StudyFileError(name, [_yaml_mistake(error)]) from error
    except yaml.reader.ReaderError as error:
        raise StudyFileError(name, [_character_mistake(text, error)]) from error
    lines: dict[Place, int] = {(): 1}
    mistakes: list[Mistake] = []
    data = None if node is None else _plain(node, (), lines, mistakes)
    return data, lines, mistakes


def _yaml_mistake(error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    message = f"The file is not YAML: {error.problem}."
    if isinstance(error, _RefusedError):
        message = str(error.problem)
    elif error.context == "expected a single document in the stream":
        message = "The file holds more than one document: leave out this `---`."
    return Mistake(mark.line + 1 if mark else 1, "", message)


def _character_mistake(text: str, error: yaml.reader.ReaderError) -> Mistake:
    """Say where a character stands that YAML does not allow, such as a control character."""
    line = text[: error.position].count("\n") + 1
    character = f"U+{ord(text[error.position]):04X}"
    return Mistake(line, "", f"The file is not YAML: the character {character} is not allowed.")


def _plain(node: Any, place: Place, lines: dict[Place, int], mistakes: list[Mistake]) -> Any:
    """Turn a YAML node into plain values; note each value's line, and duplicate keys and tags."""
    lines.setdefault(place, node.start_mark.line + 1)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _plain_mapping(node, place, lines, mistakes)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_plain(item, (*place, i), lines, mistakes) for i, item in enumerate(node.value)]
    message = f"The tag '{shown(node.tag)}' is not allowed: only plain values are."
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            return _SCALARS[kind](node.value)
        except ValueError:
            message = f"{_short(node.value)} cannot be read as {kind}."
    mistakes.append(Mistake(lines[place], dotted(place), message))
    return None


def _plain_mapping(
    node: Any, place: Place, lines: dict[Place, int], mistakes: list[Mistake]
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            mistakes.append(Mistake(line, dotted(place), "A key must be text, not a collection."))
            continue
        key = str(key_node.value)
        here = (*place, key)
        if key in mapping:
            message = f"The key stands twice, first in line {lines[here]}."
            mistakes.append(Mistake(line, dotted(here), message))
            continue
        lines[here] = line
        mapping[key] = _plain(value_node, here, lines, mistakes)
    return mapping


def _to_null(text: str) -> None:
    if text not in ("", "~", "null", "Null", "NULL"):
        raise ValueError(text)


def _to_bool(text: str) -> bool:
    if text not in ("true", "True", "TRUE", "false", "False", "FALSE"):
        raise ValueError(text)
    return text.lower() == "true"


def _to_int(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _to_float(text: str) -> float:
    return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))


def _to_text(text: str) -> str:
    text.encode()  # half a surrogate pair, "\\ud800", is a UnicodeEncodeError, a ValueError
    return text


_SCALARS: dict[str, Any] = {
    "null": _to_null,
    "bool": _to_bool,
    "int": _to_int,
    "float": _to_float,
    "str": _to_text,
}


# -------------------------------------------------------------- pydantic


def _from_pydantic(
    error: dict[str, Any], data: Any, lines: dict[Place, int], prefix: Place = ()
) -> Mistake:
    """Turn one of pydantic's errors into a mistake: our words, the value, the nearest name."""
    kind = error["type"]
    place = _place_in_file(error["loc"], data, missing=kind == "missing")
    line, key = _line(lines, (*prefix, *place)), dotted((*prefix, *place))
    if kind == "extra_forbidden":
        known = _known_keys(schema.StudyFile, place[:-1]) if not prefix else error.get("known", [])
        return Mistake(line, key, unknown(str(place[-1]), known, what="key"))
    if kind == "missing":
        return Mistake(line, key, "This key is missing.")
    if kind == "value_error":
        return Mistake(line, key, str(error["ctx"]["error"]))
    if kind == "union_tag_not_found":
        kinds = [model.model_fields["kind"] for model in _models_at(schema.StudyFile, place)]
        known = [typing.get_args(field.annotation)[0] for field in kinds]
        return Mistake(line, key, f"It needs a `kind`. Known: {', '.join(known)}.")
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", error["ctx"]["expected_tags"])
        return Mistake(line, f"{key}.kind", unknown(str(error["ctx"]["tag"]), known, what="kind"))
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        return Mistake(line, key, unknown(str(error["input"]), known, what="value"))
    if kind == "string_pattern_mismatch":
        rule = "1 to 64 lower-case letters, digits, `-` or `_`, the first a letter or digit"
        return Mistake(line, key, f"It must be {rule}, but got {_short(error['input'])}.")
    message = _RULES.get(kind, error["msg"].replace("Input should be", "It should be"))
    return Mistake(line, key, f"{message}, but got {_short(error['input'])}.")


_RULES = {
    "model_type": "It must be a mapping of keys to values",
    "dict_type": "It must be a mapping of keys to values",
    "list_type": "It must be a list",
    "too_short": "The list is too short",
    "too_long": "The list is too long",
}


def unknown(name: str, known: typing.Iterable[str], *, what: str) -> str:
    """Say that nothing is called `name`, what is nearest, and all that is known."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    return f"No {what} is called '{shown(name)}'.{hint} Known: {', '.join(names)}."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _place_in_file(loc: tuple[str | int, ...], data: Any, *, missing: bool) -> Place:
    """Drop what pydantic puts into a location and the file does not have: tags of unions."""
    place: list[str | int] = []
    for i, part in enumerate(loc):
        if _has(data, part):
            data = data[part]
        elif not (missing and i == len(loc) - 1):
            continue
        place.append(part)
    return tuple(place)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _known_keys(root: type[BaseModel], place: Place) -> list[str]:
    """Return the keys that the section at `place` may have."""
    return sorted({name for model in _models_at(root, place) for name in model.model_fields})


def _models_at(root: type[BaseModel], place: Place) -> list[type[BaseModel]]:
    models = [root]
    for part in place:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [model for field in fields for model in _models_in(field.annotation)]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [m for inner in typing.get_args(annotation) for m in _models_in(inner)]
    return []


def _distribution_mistakes(data: dict[str, Any], lines: dict[Place, int]) -> list[Mistake]:
    """Check the distributions of every branch, which pydantic sees as free parameters."""
    found: list[Mistake] = []
    space = data.get("space")
    for i, branch in enumerate(space if isinstance(space, list) else []):
        for name, parameter in branch.items() if isinstance(branch, dict) else ():
            for place, value in schema.members(name, parameter) if name != "kind" else ():
                if schema.is_distribution(value):
                    found += _mistakes_of(value, lines, ("space", i, *place))
    return found


def _mistakes_of(distribution: Any, lines: dict[Place, int], place: Place) -> list[Mistake]:
    try:
        schema.DISTRIBUTION.validate_python(distribution)
    except ValidationError as error:
        keys = _DISTRIBUTION_KEYS.get(str(distribution["kind"]), [])
        return [
            _from_pydantic({**item, "known": keys}, distribution, lines, place)
            for item in error.errors()
        ]
    return []


_DISTRIBUTION_KEYS = {
    "choice": sorted(schema.Choice.model_fields),
    "int": sorted(schema.IntRange.model_fields),
    "float": sorted(schema.FloatRange.model_fields),
}
