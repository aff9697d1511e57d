"""Measure time and memory of a training step of every model; compare with the SFT paper's Table 2.

A step is forward, backward and AdamW on random samples with the shapes of VGGSound and MOSEI, on
one thread. Its time is that of the processor, which other work on the machine disturbs least. Each
model runs in its own process; memory is the peak resident size minus that before the first step.
The paper used an RTX 3090, so only ratios to SFT are comparable. For MOSEI, times of the authors'
code are included (batch 8, one thread, on a similar machine).

Strided sparse attention is also compared with dense attention at 1,216 tokens.

Run with `python -P tests/benchmarks/bench_train_step.py`; the last line is JSON. `--against
CHECKOUT` compares with the models of another checkout instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

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
# Ding et al. 2021, Table 2: training milliseconds and gigabytes per sample, GFLOPs.
PAPER = {
    "vggs": {
        "sft": (4.27, 0.48, 0.25),
        "late_fusion": (12.32, 1.35, 1.51),
        "concat": (10.93, 1.52, 1.68),
        "mult": (16.73, 1.18, 2.64),
        "mbt": (12.02, 1.35, 1.52),
    },
    "mosei": {
        "sft": (3.99, 0.09, 0.10),
        "late_fusion": (7.66, 0.49, 0.59),
        "concat": (8.02, 1.04, 1.16),
        "mult": (11.49, 0.62, 1.03),
        "mbt": (7.42, 0.50, 0.59),
    },
}
# The authors' code on MOSEI shapes, batch 8, one thread: milliseconds per step, peak MiB.
AUTHORS = {
    "sft": (546, 545),
    "late_fusion": (2994, 1585),
    "mbt": (3204, 1510),
    "mult": (3639, 2072),
    "concat": (6793, 2850),
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
    definition = MODELS[name]
    config = definition.config(**options_of(name, shape))
    model = build_model(name, spec, config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = {key: torch.randn(batch, *sizes) for key, sizes in shape["modalities"].items()}
    labels = torch.randint(shape["classes"], (batch,))

    baseline = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def step() -> None:
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    times = []
    for _ in range(1 + steps):
        start = time.process_time()
        step()
        times.append(1e3 * (time.process_time() - start))
    peak = resident_mib("VmHWM")
    quartiles = statistics.quantiles(times[1:], n=4)  # the first step warms up
    cost = definition.cost(spec, config)
    return {
        "data": data,
        "model": name,
        "step_ms": quartiles[1],
        "iqr_ms": quartiles[2] - quartiles[0],
        "memory_mib": peak - baseline,
        "limits": profile(step),
        "gflops": cost.gflops,
        "parameters": cost.parameters,
        "cost_us": 1e3 * timeit.timeit(lambda: definition.cost(spec, config), number=1000),
        "torch": torch.__version__,
    }


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Return the three operations that take most of a step, with their share of its time."""
    from torch.profiler import profile

    with profile() as profiler:
        step()
    operations = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    whole = sum(operations.values())
    most = sorted(operations, key=lambda name: -operations[name])[:3]
    return {name.removeprefix("aten::"): operations[name] / whole for name in most}


def options_of(name: str, shape: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the SFT paper sets; the others have defaults."""
    if name in ("sft", "sft_po"):
        return {"stride": shape["stride"]}
    if name == "unimodal":
        return {"stride": shape["stride"], "modalities": (shape["longest"],)}
    return {"fusion_layer": 1} if name == "mbt" else {}


def measure_sparse(repeats: int) -> dict[str, float]:
    """Time strided and dense attention in turns: 1,216 tokens, batch 8, 5 heads of 8, one thread.

    The window is 35, the square root of the tokens. Dense attention is torch's, and ours with
    padded heads. Queries, keys and values are slices of one tensor, as in a layer; there are no
    projections.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from sftsearch.trainables.layers.fused_attention import attend_fused
    from sftsearch.trainables.layers.sparse_attention import attend_sparsely
    from sftsearch.trainables.token_windows import Pattern

    torch.set_num_threads(1)
    in_BTD = torch.randn(8, 1216, 3 * 40, requires_grad=True)
    out_BHTd = torch.randn(8, 5, 1216, 8)
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "torch_ms": scaled_dot_product_attention,
        "dense_ms": attend_fused,
        "strided_ms": functools.partial(attend_sparsely, pattern=Pattern("strided", 35, 8)),
    }

    def step(attend: Callable[..., torch.Tensor]) -> float:
        q, k, v = (x.unflatten(2, (5, 8)).transpose(1, 2) for x in in_BTD.chunk(3, dim=2))
        start = time.process_time()
        torch.autograd.grad(attend(q, k, v), in_BTD, out_BHTd)
        return 1e3 * (time.process_time() - start)

    rounds = [{name: step(way) for name, way in ways.items()} for _ in range(2 + repeats)][2:]
    medians = {name: statistics.median(one[name] for one in rounds) for name in ways}
    ratios = {
        f"times_faster_than_{name.removesuffix('_ms')}": statistics.median(
            one[name] / one["strided_ms"] for one in rounds
        )
        for name in ("torch_ms", "dense_ms")
    }
    return medians | ratios


def resident_mib(field: str) -> float:
    """Read VmRSS (resident now) or VmHWM (its peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux.")


def measure_apart(
    name: str, data: str, batch: int, steps: int, path: str | None = None
) -> dict[str, Any]:
    """Run `measure` in its own process; `path` is searched first for the package."""
    arguments = ["--model", name, "--data", data, "--batch", str(batch), "--steps", str(steps)]
    done = subprocess.run(
        [sys.executable, "-P", __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | ({} if path is None else {"PYTHONPATH": path}),
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def compare(other: Path, names: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure models of this and of another checkout in turns; ratios above 1: this is faster."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "sftsearch")
        package.mkdir()
        for part in ("datasets", "orchestrator", "search_spaces", "trainables"):
            (package / part).symlink_to(other.resolve() / part)
        for data in SHAPES:
            for name in names:
                pairs = [
                    [
                        measure_apart(name, data, args.batch, args.steps, path)["step_ms"]
                        for path in (folder, None)
                    ]
                    for _ in range(args.repeats)
                ]
                before, now = (statistics.median(times) for times in zip(*pairs, strict=True))
                faster = statistics.median(old / new for old, new in pairs)
                print(f"{data} {name}: {before:.0f} ms before, {now:.0f} now: {faster:.2f} times")
                rows.append({"data": data, "model": name, "pairs": pairs, "times_faster": faster})
    return rows


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add the ratios to SFT on the same shapes, measured and as printed in the paper."""
    for row in rows:
        sft = next(r for r in rows if r["model"] == "sft" and r["data"] == row["data"])
        row["to_sft"] = {key: row[key] / sft[key] for key in MEASURES}
        printed = PAPER[row["data"]]
        if row["model"] in printed:
            pairs = zip(MEASURES, printed[row["model"]], printed["sft"], strict=True)
            row["paper_to_sft"] = {key: value / of_sft for key, value, of_sft in pairs}
        if row["data"] == "mosei" and row["model"] in AUTHORS:
            row["authors"] = dict(
                zip(("step_ms", "memory_mib"), AUTHORS[row["model"]], strict=True)
            )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table: measurements, ratios to SFT, and the paper's ratios in brackets."""
    print(
        "| data | model | ms per step | IQR | authors' ms | MiB | authors' MiB | us per cost "
        "| x time | x memory | x GFLOPs | most time |"
    )
    print("| --- | --- |" + " ---: |" * 9 + " --- |")
    for row in rows:
        printed = row.get("paper_to_sft")
        ratios = [
            f"{row['to_sft'][key]:.2f}" + (f" ({printed[key]:.2f})" if printed else "")
            for key in MEASURES
        ]
        authors = row.get("authors", {})
        limits = ", ".join(f"{name.strip('_')} {x:.0%}" for name, x in row["limits"].items())
        figures = [
            f"{row['step_ms']:.0f}",
            f"{row['iqr_ms']:.0f}",
            str(authors.get("step_ms", "")),
            f"{row['memory_mib']:.0f}",
            str(authors.get("memory_mib", "")),
            f"{row['cost_us']:.0f}",
        ]
        print(f"| {' | '.join([row['data'], row['model'], *figures, *ratios, limits])} |")


def main() -> None:
    """Measure all models, or with --model and --data one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="samples per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one warm-up step")
    parser.add_argument("--models", nargs="*", help="only these models")
    parser.add_argument("--against", type=Path, help="another checkout to compare with, in turns")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs with --against")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--data", choices=list(SHAPES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        print(json.dumps(measure(args.model, args.data, args.batch, args.steps)))
        return
    from sftsearch.trainables.catalog import MODELS

    facts = {"batch": args.batch, "steps": args.steps, "threads": 1, "cpus": os.cpu_count()}
    names = args.models or list(MODELS)
    if args.against:
        rows = compare(args.against, names, args)
        print(json.dumps({**facts, "machine": platform.machine(), "rows": rows}))
        return
    rows = []
    for data in SHAPES:
        for name in names:
            print(f"{data} {name} ...", file=sys.stderr, flush=True)
            rows.append(measure_apart(name, data, args.batch, args.steps))
    add_ratios(rows)
    print_table(rows)
    sparse = measure_sparse(repeats=15)
    print(f"strided attention at 1,216 tokens: {sparse['strided_ms']:.1f} ms")
    for name, whose in (("torch", "torch's"), ("dense", "our")):
        times = sparse[f"times_faster_than_{name}"]
        print(f"{times:.1f} times faster than {whose} dense: {sparse[f'{name}_ms']:.1f} ms")
    print(json.dumps({**facts, "machine": platform.machine(), "sparse": sparse, "rows": rows}))


if __name__ == "__main__":
    main()
