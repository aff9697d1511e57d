"""Define metrics: label, direction and format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

GIGA = 1e9

MISSING = "\N{EN DASH}"
"""Shown in tables for a missing value."""

EXACT_COSTS = ("gflops", "gmacs", "parameters", "gflops_dense")
"""Costs known exactly before training."""

BOUNDED_COSTS = {"gflops_expected": "gflops"}
"""Measured costs of gated models, and the exact cost that is an upper bound of each."""

MEMORY_COSTS = ("train_memory_mb", "inference_memory_mb", "weights_mb")
"""Costs counted on the model before a trial starts, in about a second: not for a whole space."""

Direction = Literal["maximize", "minimize"]
DIRECTIONS: tuple[Direction, ...] = ("maximize", "minimize")
"""As in Optuna."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Label, direction and format of a metric."""

    label: str
    direction: Direction = "minimize"
    is_share: bool = False
    """In [0, 1]; differences are shown in points of 0.01."""
    is_counted: bool = False
    """A share of correct decisions that trials count by subject, so it has intervals."""
    is_cost: bool = False
    """A cost of the model, shown on a log scale."""
    unit: float | None = None
    """Of what a count counts, in one unit of the value; the text has an SI prefix: `8.1 k`."""

    def scaled(self, value: float) -> float:
        """Return the value in units of what a count counts, for axes with SI prefixes."""
        return value * (self.unit or 1.0)

    def format(self, value: float | None) -> str:
        """Return the value as text: shares with 3 decimals, others with 3 significant digits."""
        if value is None:
            return MISSING
        if self.unit is not None:
            return format_count(self.scaled(value))
        return f"{value:.3f}" if self.is_share else format_number(value)


def _share(label: str, *, is_counted: bool = False) -> Metric:
    return Metric(label=label, direction="maximize", is_share=True, is_counted=is_counted)


def _cost(label: str, unit: float | None = None) -> Metric:
    return Metric(label=label, is_cost=True, unit=unit)


KNOWN_METRICS: dict[str, Metric] = {
    "top1": _share("top-1 accuracy", is_counted=True),
    "top5": _share("top-5 accuracy"),
    "map": _share("mean average precision"),
    "balanced_accuracy": _share("balanced accuracy"),
    "macro_f1": _share("macro F1"),
    "micro_f1": _share("micro F1"),
    "mae": Metric(label="mean absolute error"),
    "pearson": Metric(label="Pearson's r", direction="maximize"),
    "acc2": _share("accuracy of the sign", is_counted=True),
    "acc2_nonzero": _share("accuracy of the sign, without zeros"),
    "acc2_msaf": _share("accuracy of the sign (MSAF)"),
    "acc2_sft": _share("accuracy of the sign (SFT)"),
    "f1": _share("F1 of the sign"),
    "f1_nonzero": _share("F1 of the sign, without zeros"),
    "f1_mult": _share("F1 of the sign (MulT)"),
    "f1_msaf": _share("F1 of the sign (MSAF)"),
    "f1_sft": _share("F1 of the sign (SFT)"),
    "acc5": _share("accuracy of five steps"),
    "acc7": _share("accuracy of seven steps"),
    "loss": Metric(label="loss"),
    "gflops": _cost("multiply-adds (paper)", GIGA),
    "gmacs": _cost("multiply-adds", GIGA),
    "parameters": _cost("parameters", 1.0),
    "gflops_dense": _cost("multiply-adds (paper, sparse attention as dense)", GIGA),
    "gflops_expected": _cost("expected multiply-adds (paper)", GIGA),
    "latency_ms": _cost("latency (ms)"),
    "train_step_ms": _cost("training step (ms)"),
    "train_memory_mb": _cost("training memory (MB)"),
    "inference_memory_mb": _cost("inference memory (MB)"),
    "weights_mb": _cost("weights (MB)"),
    "seconds": _cost("training time (s)"),
}
"""Metrics by name; an unknown metric is labeled by its name and minimized."""

COSTS = tuple(name for name, known in KNOWN_METRICS.items() if known.is_cost)
"""Costs known before training or measured in the trial."""


def sign_of(direction: str) -> float:
    """Return the factor that makes more better: 1 to maximize, -1 to minimize."""
    return 1.0 if direction == "maximize" else -1.0


def metric(name: str) -> Metric:
    """Return the metric of this name, known or not."""
    return KNOWN_METRICS.get(name) or Metric(label=name)


WHAT_IS_COUNTED = {
    "gmacs": "Multiply-adds that run for one sample (`gmacs`): all matrix products and "
    "convolutions, without biases, normalization and activations.",
    "gflops": "Multiply-adds for one sample by the SFT paper's formula (`gflops`): attention and "
    "MLPs of the layers, without tokenizer and head.",
}
"""What a cost counts and leaves out, in a sentence."""


def what_is_counted(names: Iterable[str]) -> str:
    """Return sentences on what the counts of multiply-adds among some metrics leave out."""
    paper = ("gflops_dense", "gflops_expected")
    found = dict.fromkeys("gflops" if name in paper else name for name in names)
    return " ".join(WHAT_IS_COUNTED[name] for name in found if name in WHAT_IS_COUNTED)


def format_count(value: float) -> str:
    """Format a count with up to 3 significant digits and an SI prefix: `353`, `8.1 k`, `1.25 M`."""
    if not math.isfinite(value):
        return str(value)
    for prefix in ("", " k", " M", " G", " T"):
        digits = f"{value:.3g}"
        if abs(float(digits)) < 1000 or prefix == " T":
            return f"{float(digits):g}{prefix}"
        value /= 1000
    raise AssertionError("the last prefix returns")


def format_number(value: float) -> str:
    """Format with 3 significant digits; from 1000 on, as a whole number with separators."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if decimals < 7 else f"{value:.2e}"
