"""Time and memory of a training step of every model, beside Table 2 of the SFT paper.

A step is forward, backward and AdamW on random samples of the shapes of VGGSound and MOSEI, on one
thread. Each model runs in a process of its own, so that its peak of resident memory is its own;
memory is that peak above what the process had before its first step. The paper measured on an RTX
3090, so ratios to SFT are what compares.

Run with `python -P tests/benchmarks/bench_train_step.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import timeit
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "vggs": {
        "classes": 100,
        "modalities": {"rgb": (38, 1024), "spec": (1200, 128), "flow": (38, 1024)},
        "stride": {"rgb": 3, "spec": 60, "flow": 3},
        "longest": "spec",
    },
    "mosei": {
        "classes": 7,
        "modalities": {"vision": (500, 35), "audio": (500, 74), "text": (50, 300)},
        "stride": {"vision": 50, "audio": 50, "text": 2},
        "longest": "audio",
    },
}
# Ding et al. 2021, Table 2: training milliseconds and gigabytes a sample, GFLOPs.
PAPER = {
    "vggs": {
        "sft": (4.27, 0.48, 0.25),
        "late_fusion": (12.32, 1.35, 1.51),
        "concat": (10.93, 1.52, 1.68),
    },
    "mosei": {
        "sft": (3.99, 0.09, 0.10),
        "late_fusion": (7.66, 0.49, 0.59),
        "concat": (8.02, 1.04, 1.16),
    },
}
MEASURES = ("step_ms", "memory_mib", "gflops")


def measure(name: str, data: str, batch: int, steps: int) -> dict[str, Any]:
    """Run one model in this process and return its figures."""
    import torch
    import torch.nn.functional as F

    from sftsearch.datasets.catalog import describe
    from sftsearch.datasets.spec import ModalitySpec
    from sftsearch.trainables.catalog import MODELS, build_model

    torch.set_num_threads(1)
    shape = SHAPES[data]
    spec = dataclasses.replace(
        describe("synthetic"),
        modalities={
            key: ModalitySpec(num_tokens=tokens, num_features=features)
            for key, (tokens, features) in shape["modalities"].items()
        },
        classes=tuple(f"class_{index}" for index in range(shape["classes"])),
    )
    system = MODELS[name]
    options: dict[str, Any] = (
        {"stride": shape["stride"]} if hasattr(system.config, "stride") else {}
    )
    if name == "unimodal":
        options["modalities"] = (shape["longest"],)
    config = system.config(**options)
    model = build_model(name, spec, config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = {key: torch.randn(batch, *sizes) for key, sizes in shape["modalities"].items()}
    labels = torch.randint(shape["classes"], (batch,))

    baseline = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    times = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
    quartiles = statistics.quantiles(times[1:], n=4)  # the first step warms up
    cost = system.cost(spec, config)
    return {
        "data": data,
        "model": name,
        "step_ms": quartiles[1],
        "iqr_ms": quartiles[2] - quartiles[0],
        "memory_mib": resident_mib("VmHWM") - baseline,
        "gflops": cost.gflops,
        "parameters": cost.parameters,
        "cost_us": 1e3 * timeit.timeit(lambda: system.cost(spec, config), number=1000),
        "torch": torch.__version__,
    }


def resident_mib(field: str) -> float:
    """Read VmRSS (resident now) or VmHWM (its peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux.")


def measure_apart(name: str, data: str, batch: int, steps: int) -> dict[str, Any]:
    """Run `measure` in a process of its own."""
    arguments = ["--model", name, "--data", data, "--batch", str(batch), "--steps", str(steps)]
    done = subprocess.run(
        [sys.executable, "-P", __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Divide each row by SFT's on the same shapes; so the paper's, where it prints the model."""
    for row in rows:
        sft = next(r for r in rows if r["model"] == "sft" and r["data"] == row["data"])
        row["to_sft"] = {key: row[key] / sft[key] for key in MEASURES}
        printed = PAPER[row["data"]]
        if row["model"] in printed:
            pairs = zip(MEASURES, printed[row["model"]], printed["sft"], strict=True)
            row["paper_to_sft"] = {key: value / of_sft for key, value, of_sft in pairs}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table: measured, as ratio to SFT, and the paper's ratio in brackets."""
    print("| data | model | ms a step | IQR | MiB | us to price | x time | x memory | x GFLOPs |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        printed = row.get("paper_to_sft")
        ratios = [
            f"{row['to_sft'][key]:.2f}" + (f" ({printed[key]:.2f})" if printed else "")
            for key in MEASURES
        ]
        figures = [f"{row[key]:.0f}" for key in ("step_ms", "iqr_ms", "memory_mib", "cost_us")]
        print(f"| {' | '.join([row['data'], row['model'], *figures, *ratios])} |")


def main() -> None:
    """Measure all models, or with --model and --data one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="samples a step")
    parser.add_argument("--steps", type=int, default=5, help="steps timed, after one to warm up")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--data", choices=list(SHAPES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        print(json.dumps(measure(args.model, args.data, args.batch, args.steps)))
        return
    from sftsearch.trainables.catalog import MODELS

    rows = []
    for data in SHAPES:
        for name in MODELS:
            print(f"{data} {name} ...", file=sys.stderr, flush=True)
            rows.append(measure_apart(name, data, args.batch, args.steps))
    add_ratios(rows)
    print_table(rows)
    facts = {"batch": args.batch, "steps": args.steps, "threads": 1, "cpus": os.cpu_count()}
    print(json.dumps({**facts, "machine": platform.machine(), "rows": rows}))


if __name__ == "__main__":
    main()
