"""Measure what a newcomer gets on small real data: the chosen model against the best baseline.

For each dataset and search seed: `sftsearch run stride --dataset NAME`, then `confirm`. The chosen
model has the best accuracy that the front reports on validation; the baseline is the best on
validation of those that the study fits by itself. Both are evaluated on the test split, the model
by the mean over its fresh replicates. Differences are paired by subject; their 95 % intervals are
t-based over the subjects of the test split, and there are none below three subjects.

`wearables` and `digits` are always measured; `--data FOLDER` adds those that the folder has:
`umafall/umafall.parquet` and `avdigits/avdigits.parquet`.

Run with `python -P tests/benchmarks/bench_small_data.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from sftsearch.orchestrator.analysis.front import FrontOptions, mark_front
from sftsearch.orchestrator.cli.main import main as cli
from sftsearch.orchestrator.confirm import confirm_study
from sftsearch.orchestrator.study import run_study
from sftsearch.search_spaces.load import find_study_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sftsearch.orchestrator.storage.study_record import BaselineRecord, StudyRecord

MIN_SUBJECTS = 3
OPTIONS = {
    "umafall": ["--option", "axes=pocket=3,wrist=3,chest=3,waist=3,ankle=3"],
    "avdigits": [],
}
"""Options of `data prepare` for the datasets of `--data`."""


def search(dataset: str, seed: int, folder: Path) -> tuple[StudyRecord, float]:
    """Run and confirm the main study on a dataset; return its record and the seconds of the run."""
    text, count = re.subn(r"seed: 0", f"seed: {seed}", find_study_file("stride").read_text())
    assert count == 1
    folder.mkdir()
    file = folder / "stride.yaml"
    file.write_text(text)
    start = time.perf_counter()
    other = None if dataset == "wearables" else dataset
    result = run_study(file, runs=str(folder), dataset=other, formats=())
    seconds = time.perf_counter() - start
    return confirm_study(result.folder), seconds


def compare(record: StudyRecord) -> dict[str, object]:
    """Return test accuracies of the chosen model and the best baseline, and their difference."""
    chosen = max(mark_front(record, FrontOptions()).points, key=lambda one: one.values["top1"])
    trials = {(trial.configuration_id, trial.seed): trial for trial in record.trials}
    own = [trials[chosen.configuration_id, seed].test_groups or {} for seed in chosen.seeds]
    best = best_baseline(record.baselines)
    right = mean_right(own)
    sizes = {s: own[0][s][1] for s in own[0]}
    theirs = mean_right([one.test_groups or {} for one in best])
    total = sum(sizes.values())
    return {
        "model": chosen.model,
        "gmacs": chosen.values["gmacs"],
        "test": sum(right.values()) / total,
        "baseline": described(best[0]),
        "baseline_test": sum(theirs.values()) / total,
        **difference(right, theirs, sizes),
    }


def best_baseline(baselines: Sequence[BaselineRecord]) -> list[BaselineRecord]:
    """Return the results, one for each fold, of the baseline that is best on validation."""
    by_name: dict[str, list[BaselineRecord]] = defaultdict(list)
    for one in baselines:
        by_name[one.name].append(one)
    return max(by_name.values(), key=lambda ones: float(np.mean([x.values["top1"] for x in ones])))


def mean_right(found: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return the correct decisions by subject, averaged over replicates or folds."""
    return {s: float(np.mean([groups[s][0] for groups in found])) for s in found[0]}


def described(baseline: BaselineRecord) -> str:
    """Return the name of a baseline and what it is."""
    return f"{baseline.name}, {baseline.description}" if baseline.description else baseline.name


def difference(
    right: Mapping[str, float], theirs: Mapping[str, float], sizes: Mapping[str, float]
) -> dict[str, object]:
    """Return the difference of two accuracies with its interval over subjects."""
    extra = np.array([right[subject] - theirs[subject] for subject in sizes])
    size = np.array(list(sizes.values()))
    gap, count = float(extra.sum() / size.sum()), len(size)
    if count < MIN_SUBJECTS:
        return {"difference": gap, "interval": None}
    error = math.sqrt(count / (count - 1) * np.sum((extra - gap * size) ** 2)) / size.sum()
    half = float(student.ppf(0.975, count - 1)) * error
    return {"difference": gap, "interval": [gap - half, gap + half]}


def prepared(data: Path | None) -> list[str]:
    """Prepare the datasets of a folder; return the names of all datasets."""
    names = ["wearables", "digits"]
    for name, options in OPTIONS.items():
        file = (data or Path()) / name / f"{name}.parquet"
        if data is not None and file.is_file():
            command = ["data", "prepare", name, "--reader", "parquet", "--from", str(file)]
            cli([*command, *options], standalone_mode=False)
            names.append(name)
    return names


def summary(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the means over the search seeds of one dataset."""
    return {
        name: float(np.mean([float(str(row[name])) for row in rows]))
        for name in ("test", "baseline_test", "difference", "seconds")
    }


def main() -> None:
    """Search all datasets with all seeds and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with more datasets")
    parser.add_argument("--only", nargs="+", help="names of datasets; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="search seeds")
    options = parser.parse_args()
    found: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SFTSEARCH_CACHE"] = str(Path(folder, "cache"))
        for name in prepared(options.data):
            if name not in (options.only or [name]):
                continue
            found[name] = []
            for seed in range(options.seeds):
                record, seconds = search(name, seed, Path(folder, f"{name}-{seed}"))
                found[name].append({"seed": seed, "seconds": seconds, **compare(record)})
                print(name, json.dumps(found[name][-1]), flush=True)
            print(name, json.dumps(summary(found[name])), flush=True)
    means = {name: summary(rows) for name, rows in found.items()}
    print(json.dumps({"rows": found, "means": means}))


if __name__ == "__main__":
    main()
