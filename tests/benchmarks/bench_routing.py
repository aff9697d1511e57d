"""Compare the time saved by DynMM's hard routing with the saved operations, at CMU-MOSEI sizes.

The gate sends 16.4 % of a batch of 256 samples to the expensive expert E2, the rate of the paper's
DynMM-a. The time of the gate and the routed experts is divided by that of E2 on all samples, and
compared with the same ratio of multiply-adds, attention included. Runs alternate in one process on
one thread. Ratios of the gate and of each expert show where time and operations differ.

Run with `python -P tests/benchmarks/bench_routing.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from sftsearch.trainables.layers import dynmm_paper as paper

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

RATE = 0.164
"""Share of the samples that E2 gets."""
LIMIT = 0.20
"""Largest relative difference of the time ratio from the cost ratio."""


def batch_of(size: int, device: str) -> dict[str, Tensor]:
    """Return samples of CMU-MOSEI's shapes."""
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(size, 50, width, generator=random).to(device)
        for name, width in paper.MOSEI_FEATURES.items()
    }


def set_rate(model: paper.Routed, inputs: dict[str, Tensor], rate: float) -> int:
    """Shift the gate to send a share of samples to the expensive expert; return their number."""
    with torch.no_grad():
        scores = model.gate(inputs)
        lead = (scores[:, 1] - scores[:, 0]).sort(descending=True).values
        count = round(rate * len(lead))
        model.gate.network[1].bias[1] -= (lead[count - 1] + lead[count]) / 2  # type: ignore[index, union-attr, operator]
        chosen = int(model.gate(inputs).argmax(dim=1).sum())
    assert chosen == count, (chosen, count)
    return count


def macs_of(model: nn.Module) -> int:
    """Count the multiply-adds of one sample, attention included."""
    shapes = paper.MOSEI_FEATURES.items()
    inputs = {name: torch.empty(1, 50, width, device="meta") for name, width in shapes}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(inputs)
    return int(counter.get_total_flops()) // 2


def median_seconds(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Time all runs in turns, after a warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run().sum().item()  # waits for a GPU
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = paper.mosei_dynmm().eval().to(options.device)
    inputs = batch_of(options.batch, options.device)
    cheap, expensive = model.experts
    share = set_rate(model, inputs, RATE) / options.batch
    runs: dict[str, Callable[[], Tensor]] = {
        "routed": lambda: model(inputs),
        "dear": lambda: expensive(inputs),
        "cheap": lambda: cheap(inputs),
        "gate": lambda: model.gate(inputs),
    }
    with torch.inference_mode():
        seconds = median_seconds(runs, options.repeats)
    parts = {"cheap": paper.mosei_unimodal("text"), "dear": paper.mosei_late(),
             "gate": paper.mosei_gate()}  # fmt: skip
    macs = {name: macs_of(part) for name, part in parts.items()}
    routed = macs["gate"] + (1 - share) * macs["cheap"] + share * macs["dear"]
    price = {name: macs[name] / macs["dear"] for name in ("gate", "cheap")}
    price |= {"routed": routed / macs["dear"], "experts": (routed - macs["gate"]) / macs["dear"]}
    took = {name: seconds[name] / seconds["dear"] for name in ("gate", "cheap", "routed")}
    took["experts"] = took["routed"] - took["gate"]
    where = "one thread" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{options.batch} samples, {share:.1%} to the expensive expert, {where}; E2 on all = 1")
    for name in ("cheap", "gate", "experts", "routed"):
        print(f"  {name:8} price {price[name]:.3f}   time {took[name]:.3f}   "
              f"{took[name] / price[name] - 1:+.1%}")  # fmt: skip
    deviation = took["routed"] / price["routed"] - 1
    result = {
        "device": where,
        "batch": options.batch,
        "share": share,
        "seconds": seconds,
        "price_ratio": price,
        "time_ratio": took,
        "deviation": deviation,
        "within": abs(deviation) <= LIMIT,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
