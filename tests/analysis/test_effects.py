"""Effects of values: additive toys with known differences, a dense reference, coverage."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sftsearch.orchestrator.analysis.bound import BoundStudy
from sftsearch.orchestrator.analysis.effect_model import EffectModel
from sftsearch.orchestrator.analysis.effects import (
    FEWEST_OF_STUDY,
    MOST_OF_STUDY,
    MOST_VALUES,
    effects_of,
)
from sftsearch.orchestrator.analysis.variants import Variants
from sftsearch.orchestrator.surrogate.features import features_of
from sftsearch.orchestrator.surrogate.hyperparameters import fit_hyperparameters
from sftsearch.orchestrator.surrogate.transforms import OutcomeTransform

from report_studies import small_study, summarize, trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sftsearch.orchestrator.analysis.effects import Effects, ParameterEffect
    from sftsearch.orchestrator.storage.study_record import StudyRecord

Row = dict[str, Any]
SENSORS = ["phone_acc", "phone_gyro", "watch_acc", "watch_gyro"]


def draw(generator: np.random.Generator) -> Row:
    """Return a configuration of SFT; as by a sampler, max pooling is mostly in wide ones."""
    dim = int(generator.choice([4, 8, 16]))
    is_max = generator.random() < {4: 0.1, 8: 0.4, 16: 0.8}[dim]
    return {
        "modalities": [["watch_acc", "watch_gyro"], SENSORS][generator.integers(2)],
        "patch": 2,
        "num_heads": 2,
        "dim": dim,
        "stride": {name: int(generator.choice([4, 8, 16, 32, 64])) for name in SENSORS},
        "pooling": "max" if is_max else str(generator.choice(["average", "attention"])),
        "mixup": str(generator.choice(["none", "manifold"])),
        "mixup_alpha": float(generator.choice([0.1, 0.3, 1.0])),
        "fused_layers": 1,
    }


def accuracy(row: Row) -> float:
    """Return 0.7, 4 points per doubling of the width, 2 points for max pooling, and mixup's 3.

    With mixup, alpha 1 is worth another point; without it alpha has no effect.
    """
    value = 0.7 + 0.04 * math.log2(row["dim"] / 4) + 0.02 * (row["pooling"] == "max")
    return value + 0.03 * (row["mixup"] != "none") + 0.01 * _mixes_fully(row)


def _mixes_fully(row: Row) -> bool:
    return row["mixup"] != "none" and row["mixup_alpha"] == 1.0


def study_of(
    rows: Sequence[Row],
    values: Sequence[float],
    *,
    metric: str = "top1",
    models: Sequence[str] = ("sft_po",),
    **changes: Any,
) -> StudyRecord:
    """Return a study of wearables; configuration n is of model n modulo their number."""
    objectives = ((metric, "minimize" if metric == "mae" else "maximize"), ("gflops", "minimize"))
    trials = [
        trial(
            f"c{n:03d}", 0, {metric: value, "gflops": 1.0 + n},
            configuration=row, model=models[n % len(models)],
        )
        for n, (row, value) in enumerate(zip(rows, values, strict=True))
    ]  # fmt: skip
    record = small_study(*trials, dataset="wearables", objectives=objectives)
    return replace(record, **changes)


def toy(seed: int, number: int = 50, *, noise: float = 0.01, **more: Any) -> StudyRecord:
    generator = np.random.default_rng(seed)
    rows = [draw(generator) for _ in range(number)]
    return study_of(rows, [accuracy(row) + generator.normal(0, noise) for row in rows], **more)


def found_in(study: StudyRecord, y: str = "top1") -> Effects:
    found = effects_of(summarize(study, y=y), BoundStudy(study))
    assert found is not None
    return found


def by_name(found: Effects) -> dict[str, ParameterEffect]:
    return {one.parameter: one for one in found.parameters}


# ---------------------------------------------------------------------- known differences


def test_effects_find_known_differences_that_raw_means_miss() -> None:
    study = toy(0)
    effects = by_name(found_in(study))
    pooling = effects["pooling"]
    assert pooling.reference == "average"  # the default
    assert pooling.models == ("sft_po",)
    values = {value.value: value for value in pooling.values}
    low, high = values["max"].interval
    assert 0 < low < 0.02 < high < 0.04
    assert values["attention"].within_noise
    raw = {
        name: np.mean(
            [t.values["top1"] for t in study.trials if t.configuration["pooling"] == name]
        )
        for name in ("max", "average")
    }
    assert raw["max"] - raw["average"] > high  # confounded with the width
    (mixup,) = effects["mixup"].values
    assert effects["mixup"].reference == "none"
    assert mixup.interval[0] < 0.03 + 0.01 / 3 < mixup.interval[1]
    assert not mixup.within_noise
    widths = {value.value: value.mean for value in effects["dim"].values}
    assert effects["dim"].reference == 4  # the lowest number: the default was not tried
    assert widths[8] == pytest.approx(0.04, abs=0.012)
    assert widths[16] == pytest.approx(0.08, abs=0.016)


def test_effects_of_alpha_are_averaged_over_configurations_with_mixup() -> None:
    study = toy(1, noise=0.002)
    alpha = by_name(found_in(study))["mixup_alpha"]
    with_mixup = sum(t.configuration["mixup"] == "manifold" for t in study.trials)
    assert (alpha.num_configurations, alpha.num_without) == (with_mixup, 50 - with_mixup)
    assert alpha.reference == 0.3
    values = {value.value: value for value in alpha.values}
    assert values[1.0].interval[0] < 0.01 < values[1.0].interval[1]
    assert not values[1.0].within_noise
    assert values[0.1].within_noise
    counts = [value.num_configurations for value in alpha.values]
    assert sum(counts) < alpha.num_configurations  # the rest has the reference


@pytest.mark.medium
def test_intervals_cover_the_true_difference_at_their_rate() -> None:
    """95 % of 2 x 80 intervals; three binomial standard errors are five points."""
    covered = []
    for seed in range(80):
        generator = np.random.default_rng(seed)
        rows = [_flat(draw(generator)) for _ in range(40)]
        values = [accuracy(row) + generator.normal(0, 0.02) for row in rows]
        model = EffectModel(
            rows,
            np.array(values)[:, None],
            num_folds=None,
            transform=OutcomeTransform(True, 1.0),
        )
        kinds = ("average", "max", "attention")
        levels = [kinds.index(row["pooling"]) for row in rows]
        sides = [([row | {"pooling": kind} for row in rows], n) for n, kind in enumerate(kinds)]
        for side, truth in ((1, 0.02), (2, 0.0)):
            _, low, high = model.difference(levels, sides[side], sides[0])
            covered.append(low <= truth <= high)
    assert np.mean(covered) > 0.90


def _flat(row: Row) -> Row:
    strides = {f"stride.{name}": row["stride"][name] for name in row["modalities"]}
    return {name: v for name, v in row.items() if name != "stride"} | strides


def test_effects_of_a_minimized_metric_keep_its_sign() -> None:
    generator = np.random.default_rng(2)
    rows = [draw(generator) for _ in range(40)]
    errors = [1.5 - accuracy(row) + generator.normal(0, 0.005) for row in rows]
    pooling = by_name(found_in(study_of(rows, errors, metric="mae"), y="mae"))["pooling"]
    best = next(value for value in pooling.values if value.value == "max")
    assert best.interval[0] < -0.02 < best.interval[1] < 0


def test_effects_count_stopped_configurations_and_all_replicates() -> None:
    study = toy(3, 40)
    first, second, *others = study.trials
    stopped = replace(first, status="stopped", epoch=2, reason="unlikely")
    fresh = replace(second, key=f"{second.configuration_id}-1", seed=1)
    study = replace(
        study, trials=(stopped, second, fresh, *others), fresh={second.configuration_id: (1,)}
    )
    found = found_in(study)
    assert (found.num_configurations, found.num_stopped) == (39, 1)


def test_effects_need_enough_configurations_and_values() -> None:
    study = toy(4, FEWEST_OF_STUDY - 1)
    assert effects_of(summarize(study), BoundStudy(study)) is None
    rows = [{"patch": 2, "dim": 4 + 2 * n, "num_heads": 2} for n in range(20)]
    study = study_of(rows, [0.5] * 20)
    assert effects_of(summarize(study), BoundStudy(study)) is None  # only many values
    found = found_in(toy(5, 60))
    assert not any(len(one.values) >= MOST_VALUES for one in found.parameters)


def test_effects_of_a_large_study_are_fitted_to_some_configurations() -> None:
    generator = np.random.default_rng(6)
    rows = [{"dim": int(generator.choice([4, 8])), "num_heads": 2} for _ in range(260)]
    values = [0.5 + 0.1 * (row["dim"] == 8) + generator.normal(0, 0.01) for row in rows]
    found = found_in(study_of(rows, values))
    assert found.num_configurations == MOST_OF_STUDY
    ((width,),) = [one.values for one in found.parameters]
    assert width.interval[0] < 0.1 < width.interval[1]


def test_effects_of_an_unknown_model_use_its_parameters_as_they_are() -> None:
    """Without the model, whether a parameter has an effect is unknown, so it counts everywhere."""
    generator = np.random.default_rng(7)
    rows = [draw(generator) for _ in range(40)]
    study = study_of(rows, [accuracy(row) for row in rows], models=("mine",))
    alpha = by_name(found_in(study))["mixup_alpha"]
    assert alpha.num_without == 0
    assert alpha.reference == 0.1  # the lowest, because defaults are unknown


def test_effects_use_folds() -> None:
    """Replicate 1 is validated on a fold that is 20 points harder."""
    generator = np.random.default_rng(8)
    rows = [draw(generator) for _ in range(40)]
    study = study_of(rows, [accuracy(row) for row in rows])
    trials = []
    for n, one in enumerate(study.trials):
        harder = one.values | {"top1": one.values["top1"] - 0.2}
        trials += [one] if n % 3 else [one, replace(one, seed=1, key=f"{n}", values=harder)]
    study = replace(study, trials=tuple(trials), folds=2)
    values = {v.value: v for v in by_name(found_in(study))["pooling"].values}
    assert values["max"].mean == pytest.approx(0.02, abs=0.01)


# ---------------------------------------------------------------------- switching


def variants(study: StudyRecord) -> Variants:
    front = summarize(study)
    tried = sorted(front.finished, key=lambda c: c.configuration_id)
    return Variants(tried, BoundStudy(study), most_values=MOST_VALUES)


def test_variants_divide_models_without_a_common_value() -> None:
    rows = [{"modalities": [name], "dim": 4, "num_heads": 2} for name in SENSORS[:2]] * 10
    pairs = [{"modalities": SENSORS[:n], "dim": 4, "num_heads": 2} for n in (2, 3)] * 10
    single = study_of(rows, [0.5] * 20, models=("unimodal",)).trials
    several = study_of(pairs, [0.5] * 20, models=("concat", "concat", "mbt", "mbt")).trials
    moved = [replace(t, configuration_id=f"d{n}", key=f"d{n}") for n, t in enumerate(several)]
    study = replace(study_of(rows, [0.5] * 20), trials=(*single, *moved))
    assert variants(study).comparable_models("modalities") == [("unimodal",), ("concat", "mbt")]


def test_variants_switch_only_one_parameter_of_the_modalities_used() -> None:
    row = draw(np.random.default_rng(0)) | {
        "modalities": ["watch_acc"], "mixup": "none", "stride": dict.fromkeys(SENSORS, 8),
    }  # fmt: skip
    others = [row | {"mixup": "manifold", "mixup_alpha": 0.1}, row | {"modalities": SENSORS}]
    others += [row | {"mixup_alpha": 1.0}, row | {"stride": dict.fromkeys(SENSORS, 16)}]
    found = variants(study_of([row, *others], [0.5] * 5, models=("sft_po",)))
    plain = found.rows[0]
    assert plain["stride.watch_acc"] == 8
    assert "stride.phone_acc" not in plain  # not used
    assert "mixup_alpha" not in plain  # without mixup it has no effect
    mixed = found.switched(0, "mixup", "manifold")
    assert mixed == plain | {"mixup": "manifold", "mixup_alpha": row["mixup_alpha"]}
    longer = found.switched(0, "stride.watch_acc", 16)
    assert longer == plain | {"stride.watch_acc": 16}
    wider = found.switched(0, "modalities", SENSORS)
    assert wider is not None
    assert [wider[f"stride.{name}"] for name in SENSORS] == [8, 8, 8, 8]
    assert found.switched(0, "mixup", "input") is None  # not tried


def test_variants_leave_out_what_a_model_does_not_allow() -> None:
    """MulT needs two modalities; `num_heads` must divide `dim`."""
    rows = [{"dim": 4, "num_heads": 2}, {"dim": 6, "num_heads": 2}, {"dim": 4, "num_heads": 4}]
    found = variants(study_of(rows, [0.5] * 3))
    assert found.switched(1, "num_heads", 4) is None
    assert found.switched(0, "num_heads", 4) is not None


def test_variants_keep_a_parameter_that_never_seems_to_have_an_effect() -> None:
    """The record lacks the training section, in which mixup may be on."""
    rows = [{"dim": 4, "num_heads": 2, "mixup_alpha": alpha} for alpha in (0.1, 0.3, 1.0)]
    found = variants(study_of(rows, [0.5] * 3))
    assert all(found.has_effect(n, "mixup_alpha") for n in range(3))


# ---------------------------------------------------------------------- the process


@pytest.mark.parametrize("is_share", [False, True])
def test_difference_equals_a_dense_reference(is_share: bool) -> None:
    """Textbook formulas with an explicit inverse, and the transformation by finite differences."""
    generator = np.random.default_rng(9)
    rows: list[Row] = [
        {
            "dim": int(generator.choice([4, 8, 16])),
            "pooling": str(generator.choice(["a", "b", "c"])),
        }
        for _ in range(25)
    ]
    values = np.array([0.5 + 0.01 * row["dim"] + generator.normal(0, 0.02) for row in rows])
    transform = OutcomeTransform(is_share, 1.0)
    model = EffectModel(rows, values[:, None], num_folds=None, transform=transform)
    level_N = np.array(["abc".index(row["pooling"]) for row in rows])
    switched = [row | {"pooling": "b"} for row in rows]
    reference = [row | {"pooling": "a"} for row in rows]
    found = model.difference(level_N.tolist(), (switched, 1), (reference, 0))

    features = [f for name in ("dim", "pooling") for f in features_of(name, rows)]

    def encode(some: Sequence[Row]) -> np.ndarray:
        return np.array([[feature(row) for feature in features] for row in some])

    y = transform.to_latent(values)
    h = fit_hyperparameters(encode(rows), y, np.ones(25))
    x, points = encode(rows), encode([*switched, *reference])
    level_M = np.repeat([1, 0], 25)
    prior = max(float(np.var(y)), h.sigma**2)

    def kernel(a: np.ndarray, b: np.ndarray, level_a: np.ndarray, level_b: np.ndarray) -> Any:
        r = np.sqrt((((a[:, None] - b) / h.lengthscales) ** 2).sum(axis=2))
        smooth = (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r)
        return h.amplitude**2 * smooth + prior * (level_a[:, None] == level_b)

    inverse = np.linalg.inv(kernel(x, x, level_N, level_N) + (h.sigma**2 + h.tau**2) * np.eye(25))
    cross = kernel(points, x, level_M, level_N)
    mean = h.mean + cross @ inverse @ (y - h.mean)
    covariance = kernel(points, points, level_M, level_M) - cross @ inverse @ cross.T

    def to_values(latent: np.ndarray) -> np.ndarray:
        return np.asarray(transform.to_values(latent, h.sigma))

    share = np.repeat([1 / 25, -1 / 25], 25)
    slope = (to_values(mean + 1e-6) - to_values(mean - 1e-6)) / 2e-6
    sd = math.sqrt((share * slope) @ covariance @ (share * slope))
    center = share @ to_values(mean)
    assert found == pytest.approx((center, center - 1.96 * sd, center + 1.96 * sd), abs=1e-5)


def test_difference_does_not_use_configurations_without_an_effect() -> None:
    """Levels of None are explained by the process alone; with all None only the prior is left."""
    rows: list[Row] = [{"dim": 4 * (1 + n % 2), "pooling": "ab"[n // 2 % 2]} for n in range(16)]
    values = np.array([0.5 + 0.1 * (row["pooling"] == "b") for row in rows])[:, None]
    transform = OutcomeTransform(False, 1.0)
    model = EffectModel(rows, values, num_folds=None, transform=transform)
    sides = (
        ([row | {"pooling": "b"} for row in rows], 1),
        ([row | {"pooling": "a"} for row in rows], 0),
    )
    known = model.difference([int(row["pooling"] == "b") for row in rows], *sides)
    unknown = model.difference([None] * 16, *sides)
    assert known[0] == pytest.approx(0.1, abs=0.002)
    assert unknown[2] - unknown[1] > 5 * (known[2] - known[1])


def test_effects_are_json() -> None:
    found = found_in(toy(10))
    texts = [json.dumps(value.value) for one in found.parameters for value in one.values]
    assert '"max"' in texts
