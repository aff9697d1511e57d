"""Report values that are impossible in every configuration, with their line."""

from __future__ import annotations

import pytest
from small_space import LARGE, SPACE

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.mistakes import StudyFileError

BY_MODALITY = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: 8
    fused_layers: 1
    modalities: {kind: choice, values: [[watch_acc], [phone_acc, watch_acc]]}
    tokens:
      phone_acc: {kind: choice, values: [1, 4]}
      watch_acc: {kind: choice, values: [1, 4, 16, 17]}
"""


def mistakes_of(space: str) -> list[str]:
    text = (
        f"study: {{name: small}}\ndataset: {{kind: wearables}}\nsearch: {{trials: 1}}\n\n\n{space}"
    )
    source = parse_study(text.encode(), name="s.yaml")
    check_names(source)
    with pytest.raises(StudyFileError) as caught:
        Admission(source, describe("wearables"))
    return [line.removeprefix("s.yaml, ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("more", ["", LARGE], ids=["listed", "continuous"])
def test_value_checker_reports_an_impossible_value_of_a_modality(more: str) -> None:
    space = BY_MODALITY.replace("tokens", "stride") + more
    (line,) = mistakes_of(space)
    assert line.startswith(
        "line 15: space[0].stride.watch_acc.values[3]: `stride.watch_acc` must not be longer than "
        "the tokens it pools, but got (stride=17, tokens=16)."
    )


def test_value_checker_reports_a_fixed_value_of_a_modality() -> None:
    space = BY_MODALITY.replace("{kind: choice, values: [1, 4, 16, 17]}", "0")
    (line,) = mistakes_of(space)
    assert line.startswith("line 13: space[0].tokens: `tokens.watch_acc` must be a whole number")


@pytest.mark.parametrize("more", ["", LARGE], ids=["listed", "continuous"])
def test_value_checker_reports_an_impossible_value(more: str) -> None:
    space = """\
space:
  - kind: sft
    patch: 8
    fused_layers: 1
    dim: {kind: choice, values: [8, 10]}
    num_heads:
      kind: choice
      values:
        - 4
        - 3
        - 5
    stride: {kind: choice, values: [1, 16, 17]}
"""
    assert mistakes_of(space + more) == [
        "line 15: space[0].num_heads.values[1]: `num_heads` must divide `dim`, but got "
        "(num_heads=3, dim=8).",
        "line 17: space[0].stride.values[2]: `stride` must not be longer than the tokens it pools, "
        "but got (stride=17, tokens=16). Stride 16 already leaves one token.",
    ]


@pytest.mark.parametrize("more", ["", LARGE], ids=["listed", "continuous"])
def test_value_checker_reports_the_value_that_breaks_a_whole_branch(more: str) -> None:
    space = SPACE + (
        "  - kind: concat\n    patch: 200\n    num_layers: {kind: int, low: 1, high: 2}\n" + more
    )
    assert mistakes_of(space) == [
        "line 19: space[2].patch: `patch` must not be longer than a modality, but got (patch=200, "
        "phone_acc has 128 samples). Choose a smaller patch."
    ]
