"""Measure the times of a trial on its device, one trial of a node at a time."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sftsearch.datasets.file_lock import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftsearch.trainables.fit import Fit

WARM_UPS = 5
PATIENCE = 30.0
"""Longest wait, in seconds, for the measurements of other trials."""
_POLL = 0.01


def lock_file() -> Path:
    """Return the file that all of a user's workers on a node lock; it is on the node's own disk."""
    return Path(tempfile.gettempdir()) / f"sftsearch-{os.getuid()}-measuring.lock"


@contextlib.contextmanager
def measuring_alone(file: Path | None = None, *, patience: float = PATIENCE) -> Iterator[bool]:
    """Measure while no other trial of this node does; measure anyway if that is not possible.

    Args:
        file: to lock; None: `lock_file()`.
        patience: longest wait for other trials, in seconds.

    Yields:
        whether the measurement has the lock: false if others kept it, or it cannot be written.
    """
    deadline = time.monotonic() + patience
    with contextlib.ExitStack() as stack:
        yield _lock(stack, file or lock_file(), deadline)


def _lock(stack: contextlib.ExitStack, file: Path, deadline: float) -> bool:
    while True:
        try:
            stack.enter_context(locked(file, wait=False))
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        except OSError:
            return False
        else:
            return True


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


def train_step_ms(fit: Fit) -> float:
    """Measure the median time of a training step in milliseconds; changes the fit's weights."""
    return 1e3 * fit.seconds_a_step()
