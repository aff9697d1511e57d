"""Errors shown to users, and messages for unknown names."""

from __future__ import annotations

import pytest

from sftsearch.datasets.errors import DatasetError, SealedSplitError, UserError, look_up, nearest

MODELS = {"sft": 1, "late_fusion": 2, "concat": 3}


def test_look_up_returns_what_is_listed() -> None:
    assert look_up(MODELS, "late_fusion", kind="model") == 2


def test_look_up_names_the_nearest_and_all_names() -> None:
    with pytest.raises(UserError) as raised:
        look_up(MODELS, "late-fusion", kind="model")
    assert str(raised.value) == (
        "No model is called 'late-fusion'. Did you mean 'late_fusion'? "
        "Known: concat, late_fusion, sft."
    )


def test_look_up_suggests_nothing_without_a_similar_name() -> None:
    with pytest.raises(UserError) as raised:
        look_up(MODELS, "xyz", kind="model")
    assert str(raised.value) == "No model is called 'xyz'. Known: concat, late_fusion, sft."


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sfft", "sft"), ("SFT", "sft"), ("concatenate", "concat"), ("", None), ("quux", None)],
)
def test_nearest(name: str, expected: str | None) -> None:
    assert nearest(name, MODELS) == expected


def test_nearest_keeps_the_case_of_what_is_known() -> None:
    assert nearest("walk", ["WALKING", "TURNING"]) == "WALKING"


def test_every_error_of_the_user_is_a_value_error() -> None:
    assert issubclass(SealedSplitError, DatasetError)
    assert issubclass(DatasetError, UserError)
    assert issubclass(UserError, ValueError)
