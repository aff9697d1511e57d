"""Measure the test accuracy of the configuration that a search chooses, on unseen people.

Runs `stride.yaml` with three fresh replicates, chooses the configuration with the best mean
validation top-1 over them, and confirms it: mean test top-1 over the same, with a 95 % interval
over people and seeds. The baseline is logistic regression on simple features, with C chosen on
validation.

Run with `python -P tests/benchmarks/bench_accuracy.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sftsearch.datasets.catalog import open_dataset
from sftsearch.orchestrator.analysis.analyse import analyse
from sftsearch.orchestrator.confirm import confirm_study
from sftsearch.orchestrator.study import run_study
from sftsearch.search_spaces.load import find_study_file

if TYPE_CHECKING:
    import numpy.typing as npt

    from sftsearch.datasets.samples import Split

SEEDS = 3


def simple_features(split: Split, *, deviation: bool) -> npt.NDArray[np.float64]:
    """Return the mean of every feature over time, and optionally its standard deviation."""
    columns = []
    for x_NTF in split.modalities.values():
        columns.append(x_NTF.mean(axis=1))
        if deviation:
            columns.append(x_NTF.std(axis=1))
    return np.concatenate(columns, axis=1).astype(np.float64)


def baseline(*, deviation: bool) -> float:
    """Return the test top-1 of logistic regression on simple features."""
    store = open_dataset("wearables")
    splits = [store.split("train"), store.split("validation")]
    splits.append(store.split("test", unseal_test=True))
    train, validation, test = (simple_features(split, deviation=deviation) for split in splits)
    labels = [split.labels for split in splits]
    best, chosen = 0.0, None
    for strength in 10.0 ** np.arange(-3, 3):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        model.fit(train, labels[0])
        score = model.score(validation, labels[1])
        if score > best:
            best, chosen = score, model
    assert chosen is not None
    return float(chosen.score(test, labels[2]))


def main() -> None:
    """Search, choose on validation, confirm and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=84)
    options = parser.parse_args()
    text = find_study_file("stride").read_text()
    for given, changed in {
        r"trials: \d+": f"trials: {options.configurations}",
        r"fresh: \d+": f"fresh: {SEEDS}",
    }.items():
        text, count = re.subn(given, changed, text)
        assert count == 1, given
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "stride.yaml")
        file.write_text(text)
        result = run_study(file, runs=folder, formats=())
        before = analyse(result.record).front
        fresh = [c for c in before.finished if c.is_fresh]
        best = max(fresh, key=lambda c: c.values["top1"])
        assert len(best.seeds) == SEEDS
        after = analyse(confirm_study(result.folder)).front
    confirmed = next(c for c in after.points if c.configuration_id == best.configuration_id)
    row = {
        "model": best.model,
        "parameters": best.parameters,
        "gmacs": best.values["gmacs"],
        "validation_top1": best.values["top1"],
        "test_top1": confirmed.test_values["top1"],
        "test_interval": confirmed.test_interval,
        "seeds": len(best.seeds),
        "configurations": len(before.finished),
    }
    simple = {"mean": baseline(deviation=False), "mean and deviation": baseline(deviation=True)}
    print(f"chosen on validation among {row['configurations']} configurations: {best.model}")
    print(f"  {json.dumps(best.parameters)}")
    print(f"  validation top-1 {row['validation_top1']:.4f} over {SEEDS} seeds")
    print(f"  test top-1       {row['test_top1']:.4f}, 95 % interval {confirmed.test_interval}")
    for name, score in simple.items():
        print(f"logistic regression on the {name}: test top-1 {score:.4f}")
    print(json.dumps({**row, "baselines": simple}))


if __name__ == "__main__":
    main()
