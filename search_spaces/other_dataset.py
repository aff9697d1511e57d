"""Adapt the space of a study file to a dataset with other modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftsearch.search_spaces.schema import is_distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def adapt(branch: dict[str, Any], lengths: Mapping[str, int]) -> None:
    """Adapt a branch, in place, if its `modalities` are not all in the dataset.

    They are replaced: by each modality alone, if the branch has choices of one; by all together, if
    it has larger choices; by the first two, if it has only pairs. A parameter by modality gets the
    first modality's values for each. Patches and strides that are longer than a modality are left
    out.

    Args:
        branch: of a study file without schema errors.
        lengths: samples of each modality of the dataset, in its order.
    """
    given: Any = branch.get("modalities")
    choices = given.get("values", []) if isinstance(given, dict) else [given]
    choices = [choice for choice in choices if isinstance(choice, list)]
    if all(name in lengths for choice in choices for name in choice):
        return
    branch["modalities"] = {"kind": "choice", "values": _combinations(choices, [*lengths])}
    shortest = min(lengths.values())
    if "patch" in branch:
        branch["patch"] = _at_most(branch["patch"], shortest)
    patch = max(_values(branch.get("patch", 1)), default=1)
    for name, value in branch.items():
        if isinstance(value, dict) and value and not is_distribution(value):
            branch[name] = dict.fromkeys(lengths, next(iter(value.values())))
    if branch.get("stride") is not None:
        _each(branch, "stride", lambda m: -(-lengths.get(m, shortest) // patch))


def _combinations(choices: list[list[str]], modalities: Sequence[str]) -> list[list[str]]:
    sizes = {len(choice) for choice in choices}
    values = [[name] for name in modalities] if 1 in sizes else []
    if sizes == {2}:
        values.append([*modalities[:2]])
    elif sizes != {1} and len(modalities) > 1:
        values.append([*modalities])
    return values or [[*modalities]]


def _each(branch: dict[str, Any], name: str, limit: Callable[[str], int]) -> None:
    """Limit a parameter, of each modality if it has values by modality."""
    value = branch[name]
    if isinstance(value, dict) and not is_distribution(value):
        branch[name] = {m: _at_most(one, limit(m)) for m, one in value.items()}
    else:
        branch[name] = _at_most(value, limit(""))


def _values(value: Any) -> list[int]:
    """Return the whole numbers that a parameter can be: of a literal, a choice or a range."""
    if isinstance(value, dict):
        value = value.get("values", [value.get("low"), value.get("high")])
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, int)]


def _at_most(value: Any, limit: int) -> Any:
    """Leave out what is above the limit; the limit itself replaces it if nothing is left."""
    if not isinstance(value, dict):
        return min(value, limit) if isinstance(value, int) else value
    if "values" in value:
        kept = [one for one in value["values"] if not isinstance(one, int) or one <= limit]
        return {**value, "values": kept or [limit]}
    if value.get("kind") != "int" or value["high"] <= limit:
        return value
    return {**value, "high": limit, "low": min(value["low"], limit)}
