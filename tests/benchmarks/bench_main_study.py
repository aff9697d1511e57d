"""Compare the fronts of the main study and of the one before it, after equal seconds.

For each search seed both are run, one after the other: `stride.yaml` as shipped, then the study
before it (`tests/golden/stride.yaml`) for as many seconds. Both have executed multiply-adds as
their cost. The score of a front is the mean accuracy of what it gives within a budget, over all
budgets: the logarithm of the budget is uniform between the cheapest and the most expensive
configuration of both fronts, and a budget below a front's cheapest gives chance (0.2).

- validation: the values that the study reports, of which the older study's are optimistic;
- test: of the same configurations, evaluated once (`sftsearch confirm`).

Intervals are 95 % of a paired bootstrap over people. They are conditional on the three people in
validation and five in test, so they are too narrow.

Run with `python -P tests/benchmarks/bench_main_study.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sftsearch.orchestrator.analysis.front import FrontOptions, mark_front
from sftsearch.orchestrator.confirm import confirm_study
from sftsearch.orchestrator.study import run_study
from sftsearch.search_spaces.load import find_study_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from sftsearch.orchestrator.storage.study_record import StudyRecord

    Floats = npt.NDArray[np.float64]

CHANCE = 0.2
NUM_BUDGETS = 200
NUM_DRAWS = 2_000
OLD = Path(__file__).parents[1] / "golden" / "stride.yaml"

Split = Literal["validation", "test"]


def run(text: str, name: str, folder: Path, seed: int) -> tuple[StudyRecord, float]:
    """Run a study with a search seed and confirm it; return its record and its seconds."""
    text, count = re.subn(r"^  name: \w+", f"  name: {name}", text, count=1, flags=re.MULTILINE)
    text, other = re.subn(r"seed: 0", f"seed: {seed}", text, count=1)
    assert count == other == 1
    file = folder / f"{name}.yaml"
    file.write_text(text.replace("metric: gflops", "metric: gmacs"))
    start = time.perf_counter()
    run_study(file, runs=str(folder), formats=())
    seconds = time.perf_counter() - start
    return confirm_study(folder / name), seconds


def limited(text: str, seconds: float) -> str:
    """Return a study file without a limit on trials but one on seconds."""
    hours = f"  max_hours: {seconds / 3600:.6f}"
    text, count = re.subn(r"^  trials: \d+", f"  trials: 2000\n{hours}", text, flags=re.MULTILINE)
    assert count == 1
    return text


class Front:
    """A study's front: costs, and correct decisions by person on both splits."""

    def __init__(self, record: StudyRecord) -> None:
        points = sorted(
            mark_front(record, FrontOptions()).points, key=lambda point: point.values["gmacs"]
        )
        self.costs = np.array([point.values["gmacs"] for point in points])
        trials = {(trial.configuration_id, trial.seed): trial for trial in record.trials}
        self.groups: dict[Split, list[list[Mapping[str, Sequence[float]]]]] = {
            "validation": [], "test": [],
        }  # fmt: skip
        for point in points:
            own = [trials[point.configuration_id, seed] for seed in point.seeds]
            self.groups["validation"].append([trial.groups or {} for trial in own])
            self.groups["test"].append([trial.test_groups or {} for trial in own])

    def people(self, split: Split) -> list[str]:
        """Return the people of a split."""
        return sorted(self.groups[split][0][0])

    def scores(self, split: Split, costs: Floats, weights: Floats) -> Floats:
        """Return the score for each draw of people: weights (R, people), costs (budgets,)."""
        people = self.people(split)
        accuracies = []
        for replicates in self.groups[split]:
            right = np.mean([[one[p][0] for p in people] for one in replicates], axis=0)
            sizes = np.array([replicates[0][p][1] for p in people])
            accuracies.append((weights @ right) / (weights @ sizes))
        which = np.searchsorted(self.costs, costs, side="right") - 1
        reached = np.vstack([np.full(len(weights), CHANCE), *accuracies])[which + 1]
        mean: Floats = reached.mean(axis=0)
        return mean


def compare(new: Front, old: Front, split: Split, seed: int) -> dict[str, object]:
    """Return both scores and their difference, with intervals."""
    low = min(new.costs[0], old.costs[0])
    high = max(new.costs[-1], old.costs[-1])
    costs = np.geomspace(low, high, NUM_BUDGETS)
    count = len(new.people(split))
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), NUM_DRAWS)
    weights = np.vstack([np.ones(count), draws]).astype(float)
    scores = [front.scores(split, costs, weights) for front in (new, old)]
    gap = scores[0] - scores[1]
    return {
        "new": float(scores[0][0]),
        "old": float(scores[1][0]),
        "difference": float(gap[0]),
        "interval": np.percentile(gap[1:], [2.5, 97.5]).tolist(),
        "draws": gap[1:],
    }


def main() -> None:
    """Run the pairs and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="search seeds")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    gaps: dict[Split, list[Floats]] = {"validation": [], "test": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(options.seeds):
            newer, seconds = run(find_study_file("stride").read_text(), f"new_{seed}", folder, seed)
            older, others = run(limited(OLD.read_text(), seconds), f"old_{seed}", folder, seed)
            fronts = Front(newer), Front(older)
            row: dict[str, object] = {"seed": seed, "seconds": [seconds, others]}
            for split in gaps:
                found = compare(*fronts, split, seed=0)
                gaps[split].append(found.pop("draws"))  # type: ignore[arg-type]
                row[split] = found
                low, high = found["interval"]  # type: ignore[misc]
                print(
                    f"seed {seed}, {split}: new {found['new']:.3f}, old {found['old']:.3f}, "
                    f"difference {found['difference']:+.3f} [{low:+.3f}, {high:+.3f}] after "
                    f"{seconds:.0f} and {others:.0f} s",
                    flush=True,
                )
            rows.append(row)
    means = {}
    for split, draws in gaps.items():
        joint = np.mean(draws, axis=0)  # the same people in each draw of all seeds
        mean = float(np.mean([row[split]["difference"] for row in rows]))  # type: ignore[index]
        low, high = np.percentile(joint, [2.5, 97.5]).tolist()
        means[split] = {"difference": mean, "interval": [low, high]}
        print(f"all seeds, {split}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(json.dumps({"rows": rows, "means": means}))


if __name__ == "__main__":
    main()
