"""Parse the YAML of study files into plain values, with the line of each.

Only scalars, lists and mappings of the YAML 1.2 core schema are allowed: no other tags, no anchors,
no duplicate keys, one document, at most 256 KiB.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from sftsearch.datasets.errors import shorten
from sftsearch.search_spaces.mistakes import Mistake, Place, StudyFileError, dotted, short

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32


class _Yaml12(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-3` is a number, `yes` and `12:30` are text, and there are no dates.

    Anchors and deep nesting are refused before expansion, so a small file cannot become huge.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.depth += 1
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            message = f"Anchors and aliases (&, *) are not allowed, got '{shorten(anchor)}'."
            raise _RefusedError(problem=message, problem_mark=event.start_mark)
        if self.depth > MAX_DEPTH:
            message = f"Lists and mappings are nested deeper than {MAX_DEPTH} levels."
            raise _RefusedError(problem=message, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _RefusedError(yaml.MarkedYAMLError):
    """YAML syntax that study files may not use."""


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


def parse_yaml(content: bytes, name: str) -> tuple[Any, dict[Place, int], list[Mistake]]:
    """Return the plain values of a text, the line of each, and errors.

    Raises:
        StudyFileError: it is not YAML, or too long; the message has `name`.
    """
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
        message = "The file has more than one document: remove this `---`."
    return Mistake(mark.line + 1 if mark else 1, "", message)


def _character_mistake(text: str, error: yaml.reader.ReaderError) -> Mistake:
    """Return the error of a character that YAML does not allow, such as a control character."""
    line = text[: error.position].count("\n") + 1
    character = f"U+{ord(text[error.position]):04X}"
    return Mistake(line, "", f"The file is not YAML: the character {character} is not allowed.")


def _plain(node: Any, place: Place, lines: dict[Place, int], mistakes: list[Mistake]) -> Any:
    """Convert a YAML node to plain values; record lines, duplicate keys and tags."""
    lines.setdefault(place, node.start_mark.line + 1)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _plain_mapping(node, place, lines, mistakes)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_plain(item, (*place, i), lines, mistakes) for i, item in enumerate(node.value)]
    message = f"The tag '{shorten(node.tag)}' is not allowed: only plain values are."
    if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
        try:
            return _SCALARS[kind](node.value)
        except ValueError:
            message = f"{short(node.value)} cannot be read as {kind}."
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
        inner = (*place, key)
        if key in mapping:
            message = f"The key is listed more than once, first in line {lines[inner]}."
            mistakes.append(Mistake(line, dotted(inner), message))
            continue
        lines[inner] = line
        mapping[key] = _plain(value_node, inner, lines, mistakes)
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
    text.encode()  # a lone surrogate such as "\\ud800" raises UnicodeEncodeError, a ValueError
    return text


_SCALARS: dict[str, Any] = {
    "null": _to_null,
    "bool": _to_bool,
    "int": _to_int,
    "float": _to_float,
    "str": _to_text,
}
