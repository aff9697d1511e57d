"""Strides and tokens by modality: stride and budget are one thing, joined sequences, no dataset."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from sftsearch.orchestrator.analysis.analyse import Analysis
from sftsearch.orchestrator.analysis.bound import BoundStudy
from sftsearch.orchestrator.analysis.tokens import JOINED, tokens_of
from sftsearch.orchestrator.report.answers import describe_tokens

from report_studies import small_study, summarize, trial

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.tokens import SequenceTokens
    from sftsearch.orchestrator.storage.study_record import StudyRecord

SENSORS = ["phone_acc", "phone_gyro", "watch_acc", "watch_gyro"]
WATCH = ["watch_acc", "watch_gyro"]


def study_of(*configurations: tuple[str, dict[str, Any]], **changes: Any) -> StudyRecord:
    """Return a study of wearables; each configuration is more accurate than the cheaper ones."""
    trials = [
        trial(
            f"c{n}", 0, {"top1": 0.5 + n / 20, "gflops": 1.0 + n}, model=model,
            configuration={"patch": 2, "dim": 4, "num_heads": 2, **configuration},
        )
        for n, (model, configuration) in enumerate(configurations)
    ]  # fmt: skip
    return replace(small_study(*trials, dataset="wearables"), **changes)


def found_in(study: StudyRecord) -> dict[str, SequenceTokens]:
    return {one.name: one for one in tokens_of(summarize(study), BoundStudy(study))}


def kept(one: SequenceTokens) -> list[tuple[int | None, int, int, int]]:
    return [(k.stride, k.num_tokens, k.num_kept, k.num_configurations) for k in one.on_front.kept]


def by_sensor(value: int) -> dict[str, int]:
    return dict.fromkeys(SENSORS, value)


def test_a_stride_and_a_budget_that_pool_alike_are_one() -> None:
    """128 samples in patches of two are 64 tokens; stride 16 leaves four of them."""
    found = found_in(
        study_of(
            ("sft_po", {"modalities": WATCH, "stride": by_sensor(16)}),
            ("late_fusion", {"modalities": WATCH, "tokens": by_sensor(4)}),
            ("sft_po", {"modalities": WATCH, "stride": by_sensor(16) | {"watch_acc": 8}}),
        )
    )
    assert list(found) == WATCH
    assert kept(found["watch_acc"]) == [(8, 64, 8, 1), (16, 64, 4, 2)]
    assert kept(found["watch_gyro"]) == [(16, 64, 4, 3)]


def test_a_stride_that_does_not_divide_the_tokens_drops_the_rest() -> None:
    found = found_in(
        study_of(
            ("unimodal", {"modalities": ["watch_acc"], "stride": 24}),
            ("unimodal", {"modalities": ["watch_acc"]}),
        )
    )
    assert kept(found["watch_acc"]) == [(24, 64, 2, 1), (None, 64, 64, 1)]


def test_models_without_pooling_have_the_tokens_of_their_patch() -> None:
    found = found_in(
        study_of(
            ("mbt", {"modalities": WATCH, "patch": 16}),
            ("mult", {"modalities": WATCH, "patch": 32}),
        )
    )
    assert kept(found["watch_acc"]) == [(None, 8, 8, 1), (None, 4, 4, 1)]
    assert [one.patch for one in found["watch_acc"].on_front.kept] == [16, 32]


def test_concat_pools_the_joined_sequence() -> None:
    """2 x 64 tokens and the CLS of the second: 129, of which stride 8 makes 16 windows."""
    study = study_of(
        ("concat", {"modalities": WATCH, "stride": 8}),
        ("sft_po", {"modalities": WATCH, "stride": by_sensor(8)}),
        ("concat", {"modalities": WATCH, "stride": 32}),
    )
    found = found_in(study)
    assert list(found) == [*WATCH, JOINED]
    assert kept(found[JOINED]) == [(8, 129, 16, 1), (32, 129, 4, 1)]
    assert kept(found["watch_acc"]) == [(8, 64, 8, 1)]
    assert found["watch_acc"].on_front.num_joined == 2
    assert found["watch_acc"].on_front.number == 3


def test_tokens_near_the_front_are_counted_apart() -> None:
    """The second costs more, and its groups differ so much that it is within noise."""
    study = study_of(
        ("sft_po", {"modalities": WATCH, "stride": by_sensor(8)}),
        ("sft_po", {"modalities": SENSORS, "stride": by_sensor(64)}),
    )
    first, second = study.trials
    groups = {f"s{g}": (rate, 100.0) for g, rate in enumerate((90.0, 20.0, 38.0))}
    second = replace(second, groups=groups, values={"top1": 148 / 300, "gflops": 2.0})
    found = found_in(replace(study, trials=(first, second)))
    assert (found["watch_acc"].on_front.number, found["watch_acc"].near.number) == (1, 1)
    assert (found["phone_acc"].on_front.number, found["phone_acc"].near.number) == (0, 1)
    assert [k.num_kept for k in found["phone_acc"].near.kept] == [1]
    assert found["phone_acc"].num_tried == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "never_prepared"},
        {"facts": {"fingerprint": "of another version"}},
    ],
)
def test_tokens_are_left_out_without_the_dataset(changes: dict[str, Any]) -> None:
    study = study_of(
        ("sft_po", {"modalities": WATCH, "stride": by_sensor(8)}),
        ("sft_po", {"modalities": WATCH, "stride": by_sensor(16)}),
    )
    assert found_in(study)
    assert found_in(replace(study, **changes)) == {}


def test_tokens_are_left_out_if_all_pool_alike() -> None:
    alike = [("sft_po", {"modalities": WATCH, "stride": 8, "fused_layers": n}) for n in (1, 2)]
    assert found_in(study_of(*alike)) == {}
    gated = [
        ("dynmm", {"experts": [{"kind": "unimodal"}, {"kind": "late_fusion"}], "patch": patch})
        for patch in (2, 4)
    ]
    assert found_in(study_of(*gated)) == {}  # its experts have sequences of their own


def test_describe_tokens_lists_strides_or_their_range() -> None:
    strides = [4, 8, 16, 32]
    study = study_of(
        *(("sft_po", {"modalities": WATCH, "stride": by_sensor(s) | {"watch_gyro": 64}})
          for s in strides),
        ("mbt", {"modalities": ["watch_acc", "phone_acc"], "patch": 8}),
    )  # fmt: skip
    # A trial of another configuration is off the front and far from it.
    worst = trial(
        "worst", 0, {"top1": 0.1, "gflops": 9.0}, model="sft_po",
        configuration={"modalities": ["phone_gyro"], "patch": 2, "dim": 4, "num_heads": 2,
                       "stride": 8},
    )  # fmt: skip
    front = summarize(replace(study, trials=(*study.trials, worst)))
    assert describe_tokens(Analysis.of(front)) == [
        "phone_acc: in 1 of the 5 configurations on the front, "
        "not pooled (16 tokens of 8 samples).",
        "phone_gyro: in no configuration on the front.",
        "watch_acc: in all 5 configurations on the front, stride 4 to 32 (16 to 2 of 64 tokens) in "
        "4, not pooled (16 tokens of 8 samples) in 1.",
        "watch_gyro: in 4 of the 5 configurations on the front, stride 64 (1 of 64 tokens).",
    ]
    fewer = summarize(replace(study, trials=study.trials[1:4]))
    assert describe_tokens(Analysis.of(fewer))[0] == (
        "watch_acc: in all 3 configurations on the front, stride 8 (8 of 64 tokens) in 1, 16 (4) "
        "in 1, 32 (2) in 1."
    )


def test_tokens_are_plain_values() -> None:
    study = study_of(
        ("sft_po", {"modalities": WATCH, "stride": 8}), ("sft_po", {"modalities": WATCH})
    )
    (first, _) = tokens_of(summarize(study), BoundStudy(study))
    assert asdict(first)["on_front"]["kept"][0]["num_kept"] == 8
