"""Measure the CPU seconds of computing a front, by number of objectives and size of the front.

Few `uniform` points are on the front. `sphere` points have a constant norm, so all of them are: the
worst case. Times are the best of three.

Run with `python -P tests/benchmarks/bench_pareto.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from sftsearch.orchestrator.pareto import non_dominated, thin

CASES = (("uniform", 2), ("sphere", 2), ("uniform", 3), ("uniform", 4))
"""Kind of points and number of objectives, with all points."""
WORST = (("sphere", 3), ("sphere", 4))
"""With a hundredth of the points, because the time is quadratic."""


def draw(kind: str, num_points: int, num_objectives: int) -> np.ndarray:
    """Return points to minimize, (N, D)."""
    generator = np.random.default_rng(num_objectives)
    points = generator.random((num_points, num_objectives))
    return points / np.linalg.norm(points, axis=1, keepdims=True) if kind == "sphere" else points


def measure(kind: str, num_points: int, num_objectives: int) -> dict[str, object]:
    """Return the best time of three."""
    points = draw(kind, num_points, num_objectives)
    seconds, size = [], 0
    for _ in range(3):
        started = time.process_time()
        size = int(non_dominated(points, ["minimize"] * num_objectives).sum())
        seconds.append(time.process_time() - started)
    row = {"points": kind, "num_points": num_points, "num_objectives": num_objectives}
    return row | {"num_front": size, "seconds": round(min(seconds), 4)}


def main() -> None:
    """Measure every case, and thinning a front of all points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    options = parser.parse_args()
    rows = [measure(kind, options.points, d) for kind, d in CASES]
    rows += [measure(kind, options.points // 100, d) for kind, d in WORST]
    for row in rows:
        print(row)
    x, y = draw("sphere", options.points, 2).T
    started = time.process_time()
    kept = thin(x, -y)
    seconds = time.process_time() - started
    thinned = {"num_points": options.points, "num_kept": int(kept.sum()), "seconds": seconds}
    print(json.dumps({"numpy": np.__version__, "non_dominated": rows, "thin": thinned}))


if __name__ == "__main__":
    main()
