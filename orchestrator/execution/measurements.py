"""Measure a trial on its device: latency of one sample, peak memory."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.trainables.fit import Fit

WARM_UPS = 5


def latency_ms(fit: Fit, *, repeats: int = 30) -> float:
    """Measure the median forward time of one validation sample in milliseconds, after warm-ups.

    Runs in the trial's precision, without compilation.
    """
    import torch

    inputs, lengths, _ = next(fit.validation_batches.in_order(1))
    fit.model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(WARM_UPS + repeats):
            start = time.perf_counter()
            fit.network(inputs, lengths)
            if fit.device == "cuda":
                torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[WARM_UPS:])


def reset_peak_memory(device: str) -> None:
    """Reset the peak memory counter, where the operating system allows it."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak then includes earlier trials
        return


def peak_memory_mb(device: str) -> float:
    """Return the trial's peak memory in MiB: CUDA allocations, or the process's resident memory."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**10
