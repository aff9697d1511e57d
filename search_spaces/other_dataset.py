"""Adapt the values of a study file to another dataset."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from sftsearch.search_spaces.schema import is_distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sftsearch.datasets.spec import DatasetSpec

MOST_FOR_SUBSETS = 4
"""Modalities of which all subsets are tried; of more, each, all, and all but one."""
MOST_EPOCHS = 10
"""Limit of the factor by which the epochs grow on a smaller dataset."""
DEFAULT_EPOCHS, DEFAULT_BATCH = 20, 24  # of the training configuration
FEW_SUBJECTS = 5
"""With fewer subjects in validation, what is best for them is often not best for others."""
NUM_FOLDS = 4
"""One for the search, and one for each of three fresh replicates."""
WHOLE_EPOCHS = ("mixup_warmup", "plateau_patience", "step_epochs", "patience")
"""Training parameters in epochs, which change with their number."""


def adapt(data: dict[str, Any], spec: DatasetSpec, own: DatasetSpec | None) -> list[str]:
    """Adapt a study file, in place, and say what was changed.

    Args:
        data: plain values of a study file without schema errors, branches expanded.
        spec: of the other dataset.
        own: of the study's own dataset; None if this machine does not have it: then the number of
            epochs is kept.

    Returns:
        one sentence for each change.
    """
    notes = _adapt_modalities(data["space"], spec) + _drop_rotation(data, spec)
    notes += _add_folds(data["dataset"], spec)
    if own is not None:
        notes += _adapt_epochs(data, spec.num_samples["train"], own.num_samples["train"])
    return notes


def adapt_branch(branch: dict[str, Any], lengths: Mapping[str, int]) -> bool:
    """Adapt a branch, in place, if its `modalities` are not all in the dataset.

    They are replaced by subsets of the dataset's that are as large as the choices were: alone, in
    pairs, or of any size from the smallest. A parameter by modality gets the first modality's
    values for each. Patches and strides that are longer than a modality are left out.

    Args:
        branch: of a study file without schema errors.
        lengths: samples of each modality of the dataset, in its order.

    Returns:
        whether the branch was changed.
    """
    given: Any = branch.get("modalities")
    choices = given.get("values", []) if isinstance(given, dict) else [given]
    choices = [choice for choice in choices if isinstance(choice, list)]
    if all(name in lengths for choice in choices for name in choice):
        return False
    sizes = {len(choice) for choice in choices}
    subsets = _subsets([*lengths], sizes)
    several = len(subsets) > 1
    branch["modalities"] = {"kind": "choice", "values": subsets} if several else subsets[0]
    for name, value in branch.items():
        if isinstance(value, dict) and value and not is_distribution(value):
            branch[name] = dict.fromkeys(lengths, next(iter(value.values())))
    _limit_tokens(branch, lengths)
    return True


def _subsets(modalities: Sequence[str], sizes: set[int]) -> list[list[str]]:
    """Return subsets of the modalities in the sizes of a study's choices, small ones first."""
    least, most = min(sizes), max(sizes)
    most = most if most <= 2 and least == most else len(modalities)  # only single ones, or pairs
    least = min(least, len(modalities))
    every = [*range(least, most + 1)]
    if most > 2 and len(modalities) > MOST_FOR_SUBSETS:
        every = [size for size in every if size == 1 or size >= len(modalities) - 1]
    return [list(chosen) for size in every for chosen in itertools.combinations(modalities, size)]


def _limit_tokens(branch: dict[str, Any], lengths: Mapping[str, int]) -> None:
    """Leave out patches and strides that are longer than a modality.

    `segments` needs no limit: a modality with fewer samples gets a token for each.
    """
    shortest = min(lengths.values())
    if branch.get("patch") is not None:
        _each(branch, "patch", lambda m: lengths.get(m, shortest))
    if branch.get("stride") is not None:
        _each(branch, "stride", lambda m: _fewest_tokens(branch, m, lengths.get(m, shortest)))


def _fewest_tokens(branch: dict[str, Any], modality: str, length: int) -> int:
    """Return the fewest tokens that a modality of this length can have in a branch."""
    for name in ("segments", "patch"):
        value = branch.get(name)
        if isinstance(value, dict) and not is_distribution(value):
            value = value.get(modality)
        if value is not None:
            values = _values(value)
            if name == "segments":
                return min([length, *values])
            return -(-length // max(values, default=1))
    return length


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


def _adapt_modalities(space: list[dict[str, Any]], spec: DatasetSpec) -> list[str]:
    lengths = {name: one.num_tokens for name, one in spec.modalities.items()}
    changed = [branch for branch in space if adapt_branch(branch, lengths)]
    if not changed:
        return []
    values = [branch["modalities"] for branch in changed]
    lists = [one["values"] if isinstance(one, dict) else [one] for one in values]
    number = len({tuple(subset) for subsets in lists for subset in subsets})
    return [
        f"modalities: {number} subset{'' if number == 1 else 's'} of {', '.join(lengths)} in place "
        "of the file's; values by modality are those of the file's first modality."
    ]


def _drop_rotation(data: dict[str, Any], spec: DatasetSpec) -> list[str]:
    """Leave out the rotation of three-axis sensors if no modality is declared as one."""
    if any(one.axes == 3 for one in spec.modalities.values()):
        return []
    sections = [data.get("training", {}), *data["space"]]
    dropped = [section.pop("rotation") for section in sections if "rotation" in section]
    why = f"no modality of '{spec.name}' is declared as a three-axis sensor (`axes: 3`)."
    return [f"rotation: left out, as {why}"] if dropped else []


def _add_folds(dataset: dict[str, Any], spec: DatasetSpec) -> list[str]:
    """Validate on several groups of subjects in turn if one split would have few of them."""
    validating = len(spec.subjects["validation"])
    people = validating + len(spec.subjects["train"])
    if "folds" in dataset:
        dataset["folds"] = min(dataset["folds"], max(people, 2))
        return []
    if not 0 < validating < FEW_SUBJECTS or people < NUM_FOLDS:
        return []
    dataset["folds"] = NUM_FOLDS
    found = "one subject" if validating == 1 else f"{validating} subjects"
    return [
        f"folds: {NUM_FOLDS}, as validation has {found}: the replicates of a configuration "
        f"validate on different ones of {people}."
    ]


def _adapt_epochs(data: dict[str, Any], samples: int, own_samples: int) -> list[str]:
    """Keep the number of training steps on a dataset with another number of training samples."""
    training = data.get("training", {})
    epochs = training.get("epochs", DEFAULT_EPOCHS)
    batch = training.get("batch_size", DEFAULT_BATCH)
    steps = epochs * math.ceil(own_samples / batch)
    wanted = round(steps / math.ceil(samples / batch))
    chosen = min(max(wanted, math.ceil(epochs / 2)), MOST_EPOCHS * epochs)
    if chosen == epochs:
        return []
    data["training"] = {**training, "epochs": chosen}
    factor = chosen / epochs
    for section in (data["training"], *data["space"]):
        for name in WHOLE_EPOCHS:
            if type(section.get(name)) is int and section[name] > 0:
                section[name] = max(1, round(section[name] * factor))
        if type(section.get("warmup_epochs")) in (int, float):
            section["warmup_epochs"] = round(section["warmup_epochs"] * factor, 2)
    stopping = data["search"].get("early_stopping")
    if isinstance(stopping, dict) and type(stopping.get("min_epochs")) is int:
        least = max(1, round(stopping["min_epochs"] * factor))
        data["search"] = {
            **data["search"], "early_stopping": {**stopping, "min_epochs": least}
        }  # fmt: skip
    return [
        f"epochs: {chosen} in place of {epochs}, as many training steps ({steps}) with {samples} "
        f"in place of {own_samples} training samples."
        if chosen == wanted
        else f"epochs: {chosen} in place of {epochs}, for {samples} in place of {own_samples} "
        "training samples."
    ]
