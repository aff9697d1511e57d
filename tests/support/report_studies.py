"""Finished studies with invented numbers, for tests of analysis and reports."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sftsearch.orchestrator.analysis.front import Front, FrontOptions, build_front, mark_front
from sftsearch.orchestrator.storage.study_record import Groups, StudyRecord, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBJECTS = {"s04": 151, "s12": 140, "s20": 150}
OFFSETS = {"s04": 0.02, "s12": -0.05, "s20": 0.03}
ALL = ["phone_acc", "phone_gyro", "watch_acc", "watch_gyro"]
MODELS = ("sft", "sft_po", "concat", "late_fusion", "unimodal")
START = 1_760_000_000.0


def _groups(generator: np.random.Generator, accuracy: float, num_samples: int = 1) -> Groups:
    groups = {}
    for name, count in SUBJECTS.items():
        rate = np.clip(accuracy + OFFSETS[name] + generator.normal(0, 0.008), 0, 1)
        groups[name] = (float(round(rate * count * num_samples, 2)), float(count * num_samples))
    return groups


def _accuracy(groups: Groups) -> float:
    return sum(c for c, _ in groups.values()) / sum(n for _, n in groups.values())


def _trial(
    generator: np.random.Generator, number: int, seed: int, *, confirmed: bool
) -> TrialRecord:
    model = MODELS[number % 5]
    stride = 2 ** (number // 5)
    gflops = {
        "concat": 0.034,
        "sft": 0.011,
        "sft_po": 0.014,
        "late_fusion": 0.009,
        "unimodal": 0.0026,
    }
    cost = gflops[model] / stride**0.9
    accuracy = {
        "concat": 0.952,
        "sft": 0.950,
        "sft_po": 0.940,
        "late_fusion": 0.915,
        "unimodal": 0.83,
    }
    groups = _groups(generator, accuracy[model] - 0.011 * (stride - 1) ** 1.1)
    identity = f"{(number + 1) * 0x9E3779B9 & 0xFFFFFFFF:08x}"
    started = START + 300 * (2 * number + seed)
    modalities = ["phone_acc"] if model == "unimodal" else ALL
    parameters = 41_285 + 9_120 * (number % 5)
    test_groups = _groups(generator, accuracy[model] - 0.02, 2) if confirmed else None
    return TrialRecord(
        key=f"{identity}-{seed}",
        configuration_id=identity,
        model=model,
        configuration={
            "model": model,
            "modalities": modalities,
            "stride": stride,
            "fused_layers": 3 + number % 4,
            "learning_rate": 0.001,
        },
        seed=seed,
        status="finished",
        values={
            "top1": _accuracy(groups),
            "balanced_accuracy": _accuracy(groups) - 0.03,
            "loss": 1.9 - 1.8 * _accuracy(groups),
            "gflops": cost,
            "gmacs": cost / 2,
            "parameters": float(parameters),
            "latency_ms": 3.1 + 120 * cost + 0.1 * seed,
            "train_memory_mb": 140 + 2000 * cost,
            "seconds": 250.0 + seed,
        },
        groups=groups,
        started=started,
        ended=started + 280,
        test_values=None if test_groups is None else {"top1": _accuracy(test_groups)},
        test_groups=test_groups,
    )


def make_study(*, confirmed: bool = False, name: str = "stride") -> StudyRecord:
    """Return a study: 18 configurations finished, one failed, one with a running seed."""
    generator = np.random.default_rng(7)
    trials = [
        _trial(generator, number, seed, confirmed=confirmed)
        for number in range(20)
        for seed in range(2)
    ]
    return StudyRecord(
        name=name,
        description="Strides of 1 to 8 for five fusion models on the wearables data.",
        dataset="wearables",
        num_seeds=2,
        objectives=(("top1", "maximize"), ("gflops", "minimize")),
        facts={
            "data set": "wearables, fingerprint 6f1c0e3b9a44",
            "licence": "CC BY 4.0",
            "attribution": "Matey-Sanz, Casteleyn, Granell: Data in Brief 51 (2023), 109809",
            "sftsearch": "0.1.0",
            "torch": "2.13.0, 1 thread",
            "device": "cpu",
        },
        refused={"over 0.04 GFLOPs": 7, "repeats an earlier configuration": 12},
        trials=(*trials[:34], *_with_failures(trials[34:37]), *trials[37:]),
        confirmed=confirmed,
    )


def _with_failures(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Make the first trial fail and the third one run; the second is finished."""

    def changed(trial: TrialRecord, status: str, reason: str) -> TrialRecord:
        return TrialRecord(
            key=trial.key,
            configuration_id=trial.configuration_id,
            model=trial.model,
            configuration=trial.configuration,
            seed=trial.seed,
            status=status,
            reason=reason,
            started=trial.started,
        )

    reason = "the loss of epoch 3, step 12 is nan: lower learning_rate or clip_norm"
    return [changed(trials[0], "failed", reason), trials[1], changed(trials[2], "running", "")]


def trial(
    name: str, seed: int, values: Mapping[str, float], status: str = "finished", **changes: Any
) -> TrialRecord:
    accuracy = values.get("top1", 0.0)
    record = TrialRecord(
        key=f"{name}-{seed}",
        configuration_id=name,
        model="sft",
        configuration={"stride": 1},
        seed=seed,
        status=status,
        values=dict(values),
        groups={f"s{g}": (accuracy * 100, 100.0) for g in range(3)},
        started=1000.0,
        ended=2000.0,
    )
    return replace(record, **changes)


def small_study(*trials: TrialRecord, num_seeds: int = 1, **changes: Any) -> StudyRecord:
    record = StudyRecord(
        name="small",
        description="",
        dataset="synthetic",
        num_seeds=num_seeds,
        objectives=(("top1", "maximize"), ("gflops", "minimize")),
        facts={},
        refused={},
        trials=trials,
    )
    return replace(record, **changes)


def three_points() -> StudyRecord:
    """Return costs 1, 10 and 100 with accuracies 0.5, 0.8 and 0.9, and one dominated at 100."""
    values = {"a": (0.5, 1.0), "b": (0.8, 10.0), "c": (0.9, 100.0), "d": (0.7, 100.0)}
    return small_study(
        *(
            trial(name, 0, {"top1": top1, "gflops": cost}, ended=2000.0 + number)
            for number, (name, (top1, cost)) in enumerate(values.items())
        )
    )


def trial_of(model: str, number: int, top1: float, cost: float, **values: float) -> TrialRecord:
    name = f"{model}{number}"
    return TrialRecord(
        key=f"{name}-0",
        configuration_id=name,
        model=model,
        configuration={},
        seed=0,
        status="finished",
        values={"top1": top1, "gflops": cost, **values},
        groups={f"s{g}": (top1 * 100 + 5 * (g - 1), 100.0) for g in range(3)},
        started=1000.0,
        ended=2000.0,
    )


A = {1: 0.5, 2: 0.7, 4: 0.6}
B = {2: 0.6, 3: 0.75, 8: 0.9, 16: 0.86}


def two_models() -> StudyRecord:
    """Return `a` with three configurations and `b` with four, accuracies by cost."""
    curves: Mapping[str, Mapping[int, float]] = {"a": A, "b": B}
    return small_study(
        *(
            trial_of(model, cost, top1, float(cost))
            for model, curve in curves.items()
            for cost, top1 in curve.items()
        )
    )


def gated(name: str, weight: float | None, share: float, **values: float) -> TrialRecord:
    """Return a trial whose second route gets a share of the samples."""
    return TrialRecord(
        key=f"{name}-0",
        configuration_id=name,
        model="dynmm",
        configuration={"stride": name} | ({} if weight is None else {"resource_weight": weight}),
        seed=0,
        status="finished",
        values={
            "top1": 0.8 + share / 10,
            "gflops": 2.0,
            "gflops_expected": 1 + share,
            "route_1": 1 - share,
            "route_2": share,
            **values,
        },
        groups={f"s{g}": (80.0, 100.0) for g in range(3)},
        started=1000.0,
        ended=2000.0,
    )


def summarize(
    study: StudyRecord, *, x: str = "gflops", y: str = "top1", by: Any = None, **options: Any
) -> Front:
    chosen = None if by is None else tuple(by)
    return build_front(mark_front(study, FrontOptions(x=x, y=y, by=chosen, **options)))


def routes_front(*trials: TrialRecord) -> Front:
    study = StudyRecord(
        name="lambda",
        description="",
        dataset="wearables",
        num_seeds=1,
        objectives=(("top1", "maximize"), ("gflops_expected", "minimize")),
        facts={},
        refused={},
        trials=trials,
    )
    return summarize(study, x="gflops_expected")


def sweep() -> Front:
    return routes_front(
        gated("a", 0.5, 0.1, **{"route_1/walk": 1.0, "route_2/walk": 0.0, "route_2/turn": 0.4}),
        gated("b", 0.1, 0.9),
        gated("c", 0.1, 0.7),
    )
