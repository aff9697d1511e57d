"""Say of every metric what it is called, which way is better, and how its values print."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MISSING = "\N{EN DASH}"
"""What a table shows where a value is not known."""

EXACT_COSTS = ("gflops", "gmacs", "parameters")
"""Costs that are known without training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Say how a value is called, ordered and printed."""

    label: str
    direction: Literal["maximize", "minimize"] = "minimize"
    is_share: bool = False
    """In [0, 1]; differences are told in points of 0.01."""
    is_counted: bool = False
    """The share of right decisions that trials count by subject: it has intervals."""
    is_cost: bool = False
    """What a model takes, not how good it is: ratios count, so it is shown on a log scale."""

    def format(self, value: float | None) -> str:
        """Return the value as text, shares with three decimals, others with three digits."""
        if value is None:
            return MISSING
        return f"{value:.3f}" if self.is_share else format_number(value)


def _share(label: str, *, is_counted: bool = False) -> Metric:
    return Metric(label=label, direction="maximize", is_share=True, is_counted=is_counted)


def _cost(label: str) -> Metric:
    return Metric(label=label, is_cost=True)


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
    "f1": _share("F1 of the sign"),
    "f1_nonzero": _share("F1 of the sign, without zeros"),
    "acc7": _share("accuracy of seven steps"),
    "loss": Metric(label="loss"),
    "gflops": _cost("GFLOPs"),
    "gmacs": _cost("GMACs"),
    "parameters": _cost("parameters"),
    "gflops_expected": _cost("expected GFLOPs"),
    "latency_ms": _cost("latency (ms)"),
    "peak_memory_mb": _cost("peak memory (MB)"),
    "seconds": _cost("training time (s)"),
}
"""What is known of a value by its name; other names are shown as they are, and less is better."""

COSTS = tuple(name for name, known in KNOWN_METRICS.items() if known.is_cost)
"""Known before training, measured in the trial, or measured and dependent on the machine."""


def metric(name: str) -> Metric:
    """Return what is known of a metric; of an unknown one, its name."""
    return KNOWN_METRICS.get(name) or Metric(label=name)


def format_number(value: float) -> str:
    """Return three significant digits, or a whole number with separators from 1000 on."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if decimals < 7 else f"{value:.2e}"
