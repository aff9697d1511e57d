"""Check a study file against its schema, with messages for users.

Pydantic's own messages are about Python types; these have the value, the known names and the
nearest one.
"""

from __future__ import annotations

import re
import types
import typing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from sftsearch.datasets.errors import unknown
from sftsearch.search_spaces import schema
from sftsearch.search_spaces.mistakes import short

if TYPE_CHECKING:
    from sftsearch.search_spaces.mistakes import Layout, Mistake, Place


def check_types(
    data: dict[str, Any], layout: Layout
) -> tuple[schema.StudyFile | None, list[Mistake]]:
    """Return the typed study, or None if the values are invalid, and the errors."""
    found: list[Mistake] = []
    study: schema.StudyFile | None = None
    try:
        study = schema.StudyFile.model_validate(data)
    except ValidationError as error:
        found += [_from_pydantic(dict(item), data, layout) for item in error.errors()]
    return study, found + _distribution_mistakes(data, layout)


def _from_pydantic(error: dict[str, Any], data: Any, layout: Layout, prefix: Place = ()) -> Mistake:
    """Convert an error of pydantic."""
    kind = error["type"]
    place = (*prefix, *_place_in_file(error["loc"], data, missing=kind == "missing"))
    if kind == "union_tag_invalid":
        place = (*place, "kind")
    return layout.mistake(place, _message(error, place, inside=bool(prefix)))


def _message(error: dict[str, Any], place: Place, *, inside: bool) -> str:
    """Return the text of an error; `inside` a distribution the error has the known keys."""
    kind = error["type"]
    if kind == "extra_forbidden":
        known = error.get("known", []) if inside else _known_keys(schema.StudyFile, place[:-1])
        return unknown(str(place[-1]), known, kind="key")
    if kind == "missing":
        return "This key is missing."
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "union_tag_not_found":
        kinds = [model.model_fields["kind"] for model in _models_at(schema.StudyFile, place)]
        known = [typing.get_args(field.annotation)[0] for field in kinds]
        return f"It needs a `kind`. Known: {', '.join(known)}."
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", error["ctx"]["expected_tags"])
        return unknown(str(error["ctx"]["tag"]), known, kind="kind")
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        return unknown(str(error["input"]), known, kind="value")
    if kind == "string_pattern_mismatch":
        rule = "1 to 64 lower-case letters, digits, `-` or `_`, the first a letter or digit"
        return f"It must be {rule}, but got {short(error['input'])}."
    message = _RULES.get(kind, error["msg"].replace("Input should be", "It should be"))
    return f"{message}, but got {short(error['input'])}."


_RULES = {
    "model_type": "It must be a mapping of keys to values",
    "dict_type": "It must be a mapping of keys to values",
    "list_type": "It must be a list",
    "too_short": "The list is too short",
    "too_long": "The list is too long",
}


def _place_in_file(loc: tuple[str | int, ...], data: Any, *, missing: bool) -> Place:
    """Remove the union tags that pydantic adds to a location."""
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


def _distribution_mistakes(data: dict[str, Any], layout: Layout) -> list[Mistake]:
    """Check the distributions of every branch, which the schema accepts as free parameters."""
    found: list[Mistake] = []
    space = data.get("space")
    for i, branch in enumerate(space if isinstance(space, list) else []):
        for name, parameter in branch.items() if isinstance(branch, dict) else ():
            for place, value in schema.members(name, parameter) if name != "kind" else ():
                if schema.is_distribution(value):
                    found += _mistakes_of(value, layout, ("space", i, *place))
    return found


def _mistakes_of(distribution: Any, layout: Layout, place: Place) -> list[Mistake]:
    try:
        schema.DISTRIBUTION.validate_python(distribution)
    except ValidationError as error:
        keys = _DISTRIBUTION_KEYS.get(str(distribution["kind"]), [])
        return [
            _from_pydantic({**item, "known": keys}, distribution, layout, place)
            for item in error.errors()
        ]
    return []


_DISTRIBUTION_KEYS = {
    "choice": sorted(schema.Choice.model_fields),
    "int": sorted(schema.IntRange.model_fields),
    "float": sorted(schema.FloatRange.model_fields),
}
