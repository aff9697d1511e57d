"""Adapt study files to datasets with other modalities."""

from __future__ import annotations

from typing import Any

import pytest

from sftsearch.search_spaces.other_dataset import adapt

LENGTHS = {"long": 64, "short": 12}


def adapted(**branch: Any) -> dict[str, Any]:
    adapt(branch, LENGTHS)
    return branch


def choice(*values: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": list(values)}


def test_a_branch_that_fits_stays_the_same() -> None:
    branch = {"modalities": choice(["long"], ["long", "short"]), "patch": 100, "stride": 100}
    assert adapted(**branch) == branch


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (choice(["a"]), choice(["long"], ["short"])),
        (choice(["a", "b"], ["a", "b", "c"]), choice(["long", "short"])),
        (choice(["a"], ["a", "b", "c"]), choice(["long"], ["short"], ["long", "short"])),
        (["a", "b"], choice(["long", "short"])),
    ],
)
def test_modalities_are_replaced_by_alone_or_all(given: Any, expected: Any) -> None:
    assert adapted(modalities=given)["modalities"] == expected


def test_a_parameter_by_modality_gets_the_values_of_the_first() -> None:
    branch = adapted(modalities=["a", "b"], tokens={"a": choice(1, 2), "b": 4})
    assert branch["tokens"] == {"long": choice(1, 2), "short": choice(1, 2)}


def test_longer_patches_and_strides_are_left_out() -> None:
    """In patches of up to 8, 64 and 12 samples are 8 and 2 tokens."""
    branch = adapted(modalities=["a"], patch=choice(4, 8, 16), stride={"a": choice(1, 2, 4, 8, 16)})
    assert branch["patch"] == choice(4, 8)
    assert branch["stride"] == {"long": choice(1, 2, 4, 8), "short": choice(1, 2)}


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (choice(4, 8, 32), choice(4, 8)),
        (choice(16, 32), choice(12)),
        (20, 12),
        ({"kind": "int", "low": 2, "high": 30}, {"kind": "int", "low": 2, "high": 12}),
        (None, None),
    ],
)
def test_one_stride_for_all_is_limited_by_the_shortest_modality(stride: Any, expected: Any) -> None:
    assert adapted(modalities=["a"], stride=stride)["stride"] == expected
