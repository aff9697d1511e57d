"""Compare all fusion models on `wearables`: equal tuning, five seeds, evaluation on test people.

All models have the same width and about the same depth. Each is tuned on validation over the same
six pairs of learning rate and weight decay; the best pair is trained with five seeds. Every model
runs in its own process, which gives its peak resident memory.

Run with `python -P tests/benchmarks/bench_models.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

DATA = "wearables"
LEARNING_RATES = (5e-4, 1e-3, 2e-3)
WEIGHT_DECAYS = (0.0, 0.1)
SEEDS = 5
EPOCHS = 12
SHARED: dict[str, Any] = {"patch": 8, "dim": 16, "num_heads": 2, "dropout": 0.3}
"""A sensor has 128 samples, so 16 tokens."""
MODEL_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "unimodal": (
        "unimodal",
        {"modalities": ("watch_acc",), "tokens": 4, "unimodal_layers": 1, "fused_layers": 3},
    ),
    "concat": ("concat", {"num_layers": 4}),
    "late fusion": ("late_fusion", {"num_layers": 4}),
    "MulT": ("mult", {"crossmodal_layers": 2, "memory_layers": 2}),
    "MulT, original": ("mult_original", {"crossmodal_layers": 2, "memory_layers": 2}),
    "MBT": ("mbt", {"num_layers": 4, "fusion_layer": 1}),
    "MBT+MM": ("mbt", {"num_layers": 4, "fusion_layer": 1}),
    "DynMM": (
        "dynmm",
        {
            "experts": (
                {
                    "kind": "unimodal",
                    "modalities": ("watch_gyro",),
                    "tokens": 4,
                    "unimodal_layers": 1,
                    "fused_layers": 3,
                },
                {"kind": "late_fusion", "num_layers": 4},
            ),
            "resource_weight": 0.1,
        },
    ),
    "DynMM, fusion": ("dynmm_fusion", {"num_layers": 4, "resource_weight": 0.1}),
    "MSAF": ("msaf", {"num_layers": 4}),
    "MSAF, LSTM": ("msaf_lstm", {"segments": 4}),
    "MMTM": ("mmtm", {"modalities": ("watch_acc", "watch_gyro"), "num_layers": 4}),
    "Concat+FC": ("concat_fc", {"num_layers": 4}),
    "TFN": ("tfn", {"num_layers": 4}),
    "LMF": ("lmf", {"num_layers": 4}),
    "MI-Matrix": ("mi_matrix", {"modalities": ("watch_acc", "watch_gyro"), "num_layers": 4}),
    "averaging": ("averaging", {"num_layers": 4}),
    "multiplication": ("multiplication", {"num_layers": 4}),
    "multiplicative": ("multiplicative", {"num_layers": 4}),
    "gradient blending": ("gradient_blending", {"num_layers": 4}),
    "SFT-PO": ("sft_po", {"tokens": 4, "unimodal_layers": 1, "fused_layers": 3}),
    "SFT": ("sft", {"tokens": 4, "unimodal_layers": 1, "fused_layers": 3}),
    "SFT+MM": ("sft", {"tokens": 4, "unimodal_layers": 1, "fused_layers": 3}),
}
"""All models of the catalog; MM is with multimodal manifold mixup."""


def train(label: str) -> dict[str, Any]:
    """Tune one model, train it with five seeds, and evaluate it on the test split."""
    import numpy as np
    import torch

    from sftsearch.datasets.catalog import open_dataset
    from sftsearch.orchestrator.bootstrap import percentile_interval, resample_accuracies
    from sftsearch.trainables.catalog import MODELS, build_model
    from sftsearch.trainables.config import TrainConfig
    from sftsearch.trainables.evaluation import evaluate
    from sftsearch.trainables.fit import Fit

    torch.set_num_threads(1)
    store = open_dataset(DATA)
    name, options = MODEL_OPTIONS[label]
    config = MODELS[name].config(**SHARED, **options)
    mixes = label.endswith("+MM")
    mixup: dict[str, Any] = {"mixup": "manifold", "mixup_warmup": 3} if mixes else {}

    def fit(pair: tuple[float, float], seed: int) -> Fit:
        rate, decay = pair
        training = TrainConfig(epochs=EPOCHS, learning_rate=rate, weight_decay=decay, **mixup)
        run = Fit(build_model(name, store.spec, config, seed), store, training, seed=seed)
        while not run.done:
            run.run_epoch()
        return run

    pairs = list(itertools.product(LEARNING_RATES, WEIGHT_DECAYS))
    tuned = {pair: fit(pair, seed=100).result()["top1"] for pair in pairs}
    best = max(tuned, key=lambda pair: tuned[pair])
    runs = [fit(best, seed) for seed in range(SEEDS)]
    test = store.split("test", unseal_test=True)
    evaluations = [evaluate(run.model, store, test) for run in runs]
    people = [{who: (n[0], n[1]) for who, n in one.groups.items()} for one in evaluations]
    cost = MODELS[name].cost(store.spec, config)

    def summarize(key: str) -> dict[str, float]:
        values = [evaluation.metrics[key] for evaluation in evaluations]
        return {"mean": float(np.mean(values)), "std": statistics.stdev(values)}

    return {
        "model": label,
        "learning_rate": best[0],
        "weight_decay": best[1],
        "validation_top1": float(np.mean([run.result()["top1"] for run in runs])),
        "test_top1": summarize("top1"),
        "test_interval": percentile_interval(resample_accuracies([people])[:, 0]),
        "balanced_accuracy": summarize("balanced_accuracy"),
        "macro_f1": summarize("macro_f1"),
        "gflops": cost.gflops,
        "gmacs": cost.gmacs,
        "parameters": cost.parameters,
        "memory_mib": resident_mib("VmHWM"),
        "step_ms": 1e3 * runs[0].seconds_a_step(repeats=20),
    }


def resident_mib(field: str) -> float:
    """Read VmRSS (resident now) or VmHWM (its peak) of this process."""
    status = Path("/proc/self/status").read_text()
    return next(int(one.split()[1]) / 1024 for one in status.splitlines() if one.startswith(field))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table, cheapest first."""
    print(
        "| model | GFLOPs | parameters | test top-1 | std | 95 % interval | balanced accuracy "
        "| macro F1 | MiB | ms per step | tuned to |"
    )
    print("| --- |" + " ---: |" * 9 + " --- |")
    for row in sorted(rows, key=lambda row: row["gflops"]):
        low, high = row["test_interval"]
        cells = [
            row["model"],
            f"{row['gflops']:.3g}",
            f"{row['parameters']:,}",
            f"{row['test_top1']['mean']:.3f}",
            f"{row['test_top1']['std']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['balanced_accuracy']['mean']:.3f}",
            f"{row['macro_f1']['mean']:.3f}",
            f"{row['memory_mib']:.0f}",
            f"{row['step_ms']:.1f}",
            f"{row['learning_rate']:g}, {row['weight_decay']:g}",
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Train all models, or with --model one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    labels = list(MODEL_OPTIONS)
    parser.add_argument("--model", choices=labels, help="run one model in this process")
    parser.add_argument("--only", nargs="+", choices=labels, help="run only these models")
    options = parser.parse_args()
    if options.model:
        print(json.dumps(train(options.model)))
        return
    from sftsearch.trainables.catalog import MODELS

    assert {name for name, _ in MODEL_OPTIONS.values()} == set(MODELS), "a model is missing here"
    rows = []
    for label in options.only or MODEL_OPTIONS:
        print(f"{label} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-P", __file__, "--model", label]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # in case it is stopped
    print_table(rows)
    print(json.dumps({"data": DATA, "epochs": EPOCHS, "cpus": os.cpu_count(), "rows": rows}))


if __name__ == "__main__":
    main()
