"""Measure how often 95 % intervals of accuracies and differences contain the true value.

- recorded tables: six configurations of those that were recorded most often, 3, 5 or 10 of the
  people of all folds, and two replicates. The true value of a configuration is its mean over all
  people and replicates. The people are drawn from few, so the coverage is slightly too high.
- simulated data: invented people, seeds and samples with known standard deviations, in points: of
  people 5, of a configuration on a person 2, of seeds 1 or 3, of a seed on a person 2; 100 samples
  of a person, six configurations of two seeds.

`bootstrap of people` are the percentile intervals of resampled people and seeds, for comparison.

Run with `python -P tests/benchmarks/bench_coverage.py --tables tests/benchmarks/tables`, two
minutes of one core; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from sftsearch.orchestrator.bootstrap import percentile_interval, resample_accuracies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Study = list[list[dict[str, tuple[float, float]]]]

NUM_PEOPLE = (3, 5, 10)
NUM_DRAWS = 2000
NUM_CONFIGURATIONS = 6
NUM_SEEDS = 2


class Count:
    """Counts how often intervals contain the truth."""

    def __init__(self) -> None:
        self.hits: dict[str, list[bool]] = defaultdict(list)
        self.widths: dict[str, list[float]] = defaultdict(list)

    def add(self, study: Study, truth: Sequence[float], seed: int) -> None:
        """Count the first configuration of a study, and its difference from the second."""
        ways = {"t": resample_accuracies(study, num_resamples=NUM_DRAWS, seed=seed),
                "bootstrap of people": resampled(study, seed)}  # fmt: skip
        for way, draws in ways.items():
            for what, column, true in (
                ("accuracy", draws[:, 0], truth[0]),
                ("difference", draws[:, 0] - draws[:, 1], truth[0] - truth[1]),
            ):
                low, high = percentile_interval(column)
                self.hits[f"{way}: {what}"].append(low <= true <= high)
                self.widths[f"{way}: {what}"].append(high - low)

    def result(self) -> dict[str, Any]:
        """Return the coverage and mean width of each interval, in percent and points."""
        found = {}
        for name, hits in self.hits.items():
            found[name] = [round(100 * float(np.mean(x)), 1) for x in (hits, self.widths[name])]
        return found


def resampled(study: Study, seed: int) -> Floats:
    """Return draws of each accuracy if people and seeds are drawn with replacement, (R, N)."""
    random = np.random.default_rng(seed)
    names = sorted(study[0][0])
    people_RG = random.multinomial(len(names), np.full(len(names), 1 / len(names)), NUM_DRAWS)
    columns = []
    for seeds in study:
        right_SG, count_SG = np.moveaxis(
            np.array([[groups[name] for name in names] for groups in seeds]), 2, 0
        )
        shares_RS = (people_RG @ right_SG.T) / (people_RG @ count_SG.T)
        picks_RS = random.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), NUM_DRAWS)
        columns.append((picks_RS * shares_RS).sum(axis=1) / len(seeds))
    return np.stack(columns, axis=1)


# ------------------------------------------------------------------ simulated data


def simulate(num_people: int, seed_sd: float, repeats: int) -> Count:
    """Return the counts of invented studies."""
    random, count = np.random.default_rng([num_people, round(1e3 * seed_sd)]), Count()
    for repeat in range(repeats):
        people_G = random.normal(0, 0.05, num_people)
        truth = [0.8] * NUM_CONFIGURATIONS
        study: Study = []
        for accuracy in truth:
            own_G = people_G + random.normal(0, 0.02, num_people)
            seeds_SG = random.normal(0, seed_sd, (NUM_SEEDS, 1))
            seeds_SG = seeds_SG + random.normal(0, 0.02, (NUM_SEEDS, num_people))
            share_SG = (accuracy + own_G + seeds_SG).clip(0.01, 0.99)
            right_SG = random.binomial(100, share_SG)
            study.append(
                [{f"s{g}": (float(c), 100.0) for g, c in enumerate(row)} for row in right_SG]
            )
        count.add(study, truth, repeat)
    return count


# ------------------------------------------------------------------ recorded tables


class Recorded:
    """The validation decisions of the configurations of a table that were recorded most often."""

    def __init__(self, path: Path) -> None:
        file = pq.ParquetFile(path)
        facts = json.loads(file.schema_arrow.metadata[b"sftsearch.table"])
        self.folds: int = facts["folds"]
        people: list[list[str]] = facts["subjects"]["validation"]
        rows = file.read(columns=["configuration_id", "replicate", "epoch", "right_validation"])
        last = rows.filter(np.array(rows["epoch"]) == max(rows["epoch"].to_pylist()))
        counts: dict[str, dict[int, dict[str, tuple[float, float]]]] = defaultdict(dict)
        for row in last.to_pylist():
            fold = row["replicate"] % self.folds
            names = np.array(people[fold])
            right = np.unpackbits(np.frombuffer(row["right_validation"], dtype=np.uint8))
            right = right[: len(names)]
            counts[row["configuration_id"]][row["replicate"]] = {
                name: (float(right[names == name].sum()), float(np.sum(names == name)))
                for name in dict.fromkeys(people[fold])
            }
        most = max(map(len, counts.values()))
        self.counts = [found for found in counts.values() if len(found) == most]
        self.truth = [float(np.mean(self._shares(found))) for found in self.counts]

    def _shares(self, found: dict[int, dict[str, tuple[float, float]]]) -> list[float]:
        """Return the accuracy of each person, over the replicates that were validated on it."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for groups in found.values():
            for name, (right, count) in groups.items():
                totals[name][0] += right
                totals[name][1] += count
        return [right / count for right, count in totals.values()]

    def draw(
        self, num_people: int, random: np.random.Generator
    ) -> tuple[Study, list[float]] | None:
        """Return a study on people of all folds, and its true values; None with too few people.

        Replicate r of a study takes each person from the r-th replicate of the person's fold, as if
        one model had been validated on all of them.
        """
        rows = random.choice(len(self.counts), NUM_CONFIGURATIONS, replace=False)
        fold_of = {name: r % self.folds for r, groups in self.counts[0].items() for name in groups}
        if len(fold_of) <= num_people:
            return None
        people = random.choice(sorted(fold_of), num_people, replace=False)
        rounds = {row: random.permutation(len(self.counts[row]) // self.folds) for row in rows}
        study: Study = []
        for row in rows:
            found, seeds = self.counts[row], []
            for k in rounds[row][:NUM_SEEDS]:
                replicates = {name: fold_of[name] + self.folds * int(k) for name in people}
                seeds.append({n: _with_equal_weight(found[r][n]) for n, r in replicates.items()})
            study.append(seeds)
        return study, [self.truth[row] for row in rows]


def _with_equal_weight(cell: tuple[float, float]) -> tuple[float, float]:
    """Return a person's counts as if all people had 100 samples: the truth is a mean of people."""
    return 100 * cell[0] / cell[1], 100.0


def main() -> None:
    """Print the coverage of every kind of interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of tables")
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for num_people in NUM_PEOPLE:
        for seed_sd in (0.01, 0.03):
            name = f"simulated, {num_people} people, seeds {100 * seed_sd:.0f}"
            found[name] = simulate(num_people, seed_sd, options.repeats).result()
            print(name, found[name], flush=True)
    for path in sorted(options.tables.glob("*.parquet")):
        recorded = Recorded(path)
        for num_people in NUM_PEOPLE:
            count, random = Count(), np.random.default_rng(num_people)
            for repeat in range(options.repeats):
                drawn = recorded.draw(num_people, random)
                if drawn is not None:
                    count.add(*drawn, repeat)
            if count.hits:
                name = f"{path.stem}, {num_people} people"
                found[name] = count.result()
                print(name, found[name], flush=True)
    print(json.dumps({"repeats": options.repeats, "coverage_and_width": found}))


if __name__ == "__main__":
    sys.exit(main())
