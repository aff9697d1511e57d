"""Expand `space: {shared: ..., models: [...]}` into a complete branch for each model, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import unknown
from sftsearch.search_spaces.schema import MAX_BRANCHES, SharedSpace

if TYPE_CHECKING:
    from sftsearch.search_spaces.mistakes import Layout, Mistake

ParametersOf = Callable[[str], Collection[str]]
"""Returns the names of a model's parameters, training included."""


def expand_shared(
    data: dict[str, Any], layout: Layout, parameters_of: ParametersOf
) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the data with `space` as a list of branches, and the errors in the short form.

    A branch takes every shared parameter that its model has and that it does not set itself. A
    `space` that is already a list is unchanged.

    Args:
        data: the plain values of a study file.
        layout: receives the place in the file of each expanded value.
        parameters_of: returns the names of a model's parameters.
    """
    space = data.get("space")
    if not isinstance(space, dict):
        return data, []
    found = [
        layout.mistake(("space", key), unknown(str(key), SharedSpace.model_fields, kind="key"))
        for key in space
        if key not in SharedSpace.model_fields
    ]
    shared, models = space.get("shared", {}), space.get("models")
    if not isinstance(shared, dict):
        found.append(layout.mistake(("space", "shared"), "It must be a mapping of parameters."))
        shared = {}
    branches = models if isinstance(models, list) and len(models) <= MAX_BRANCHES else []
    kinds = {str(branch.get("kind")) for branch in branches if isinstance(branch, dict)}
    known = {name for kind in kinds for name in parameters_of(kind)}
    found += [
        layout.mistake(("space", "shared", name), unknown(str(name), known, kind="parameter"))
        for name in shared
        if kinds and name not in known
    ]
    layout.move(("space",), ("space", "models"))
    expanded: list[Any] = []
    for i, branch in enumerate(branches):
        own = branch if isinstance(branch, dict) else {}
        names = parameters_of(str(own.get("kind")))
        taken = {name: shared[name] for name in shared if name in names and name not in own}
        for name in taken:
            layout.move(("space", i, name), ("space", "shared", name))
        expanded.append({**branch, **taken} if isinstance(branch, dict) else branch)
    if branches:
        return data | {"space": expanded}, found
    rest = {key: value for key, value in data.items() if key != "space"}
    return (rest if models is None else rest | {"space": models}), found


def contract_shared(
    branches: list[dict[str, Any]], parameters_of: ParametersOf
) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the short form of complete branches; `expand_shared` gives the branches again.

    A parameter is shared if every model that has it sets it; its shared value is the most frequent.
    """
    known = [set(parameters_of(str(branch["kind"]))) for branch in branches]
    shared: dict[str, Any] = {}
    for name in dict.fromkeys(key for branch in branches for key in branch if key != "kind"):
        having = [branch for branch, names in zip(branches, known, strict=True) if name in names]
        values = [branch[name] for branch in having if name in branch]
        if len(values) == len(having) > 1:
            shared[name] = max(values, key=values.count)
    if not shared:
        return branches
    models = [
        {key: one for key, one in branch.items() if key not in shared or one != shared[key]}
        for branch in branches
    ]
    return {"shared": shared, "models": models}
