"""Measure what torch really allocates on a CPU in a training step and in a forward pass.

Run as a script in its own process: it prints {"train": bytes, "inference": bytes} as JSON. The
allocations are those of torch's profiler, which hooks the allocator, so nothing is shared with the
count that is tested. A kernel's scratch space, allocated and freed within one of `KERNELS`, is left
out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch._C._profiler import _EventType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from sftsearch.datasets.samples import Split
from sftsearch.datasets.store import open_store
from sftsearch.datasets.writer import write_store
from sftsearch.orchestrator.pricing.paper_tables import spec_of
from sftsearch.search_spaces.papers import paper_tables
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.datasets.store import Store
    from sftsearch.trainables.config import TransformerConfig

KERNELS = ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::mkldnn_rnn_layer")
"""Operations, and their backward passes, that need scratch space."""
TABLE = paper_tables()["SFT table 2"]
NUM_SAMPLES = 4


def spec_at(shape: str) -> DatasetSpec:
    """Return a dataset of the paper's sizes with a few samples."""
    return spec_of(TABLE, shape, num_samples=NUM_SAMPLES)


def config_at(name: str, shape: str) -> TransformerConfig:
    """Return a model's default configuration, of SFT the paper's strides, on what it can read."""
    known = list(TABLE.shapes[shape])
    options: dict[str, Any] = {}
    if name == "sft":
        options |= next(row for row in TABLE.rows if row.name == "SFT").parameters[shape]
    if name == "unimodal":
        options["modalities"] = (known[1],)
    if name in ("mmtm", "mi_matrix"):
        options["modalities"] = tuple(known[:2])
    return MODELS[name].config(**options)


def store_of(spec: DatasetSpec, folder: Path) -> Store:
    """Write random samples and open their store."""
    random = np.random.default_rng(0)

    def split(name: str) -> Split:
        size = spec.num_samples[name]
        shapes = {m: (size, one.num_tokens, one.num_features) for m, one in spec.modalities.items()}
        modalities = {m: random.normal(size=s).astype(np.float32) for m, s in shapes.items()}
        labels, nobody = np.arange(size) % 2, np.full(size, -1)
        return Split(name=name, modalities=modalities, labels=labels, subjects=nobody)

    write_store(folder, spec, {name: split(name) for name in spec.num_samples})
    return open_store(folder)


def peak(profiled: profile) -> int:
    """Return the highest sum of the bytes allocated and not yet freed since the start."""
    events = sorted(_allocations(profiled), key=lambda event: event[0])
    scratch: set[int] = set()
    owners: dict[int, int] = {}
    now = highest = 0
    for i, (_, address, size, within) in enumerate(events):
        if size > 0:
            owners[address] = i
        elif address in owners and events[owners[address]][3] & within:
            scratch |= {i, owners.pop(address)}
    for i, (_, _, size, _) in enumerate(events):
        now += 0 if i in scratch else size
        highest = max(highest, now)
    return highest


def _allocations(profiled: profile) -> Iterator[tuple[int, int, int, set[int]]]:
    """Yield time, address, signed bytes, and the start times of the enclosing `KERNELS`."""

    def walk(nodes: list[Any], within: set[int]) -> Iterator[tuple[int, int, int, set[int]]]:
        for node in nodes:
            if node.tag == _EventType.Allocation:
                yield (
                    node.start_time_ns,
                    node.extra_fields.ptr,
                    node.extra_fields.alloc_size,
                    within,
                )
            is_kernel = node.name.startswith(KERNELS)
            yield from walk(node.children, within | {node.start_time_ns} if is_kernel else within)

    assert profiled.profiler is not None
    return walk(profiled.profiler.kineto_results.experimental_event_tree(), set())


def measure(name: str, shape: str, training: TrainConfig, attention: str) -> dict[str, int]:
    """Return the peaks of a training step and of a forward pass of one sample, in bytes."""
    spec, config = spec_at(shape), config_at(name, shape)
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(spec, Path(folder, "store"))
        fit = Fit(build_model(name, spec, config, 0), store, training, seed=0)
        fit.model.begin_epoch(training.epochs - 1, training.epochs)
        held = {t.untyped_storage().data_ptr(): t for t in _held(fit)}
        before = sum(t.untyped_storage().nbytes() for t in held.values())
        weights = sum(t.nbytes for t in [*fit.model.parameters(), *fit.model.buffers()])
        inputs = {m: torch.randn(1, *TABLE.shapes[shape][m]) for m in fit.model.modalities}
        sample = sum(x.nbytes for x in inputs.values())
        batch = training.batch_size * (sample + 8)  # from numpy, so the profiler does not see it
        kernel = sdpa_kernel(SDPBackend.MATH) if attention == "math" else nullcontext()
        options: dict[str, Any] = {"activities": [ProfilerActivity.CPU], "profile_memory": True}
        with kernel:
            with profile(**options) as profiled:
                fit.seconds_a_step(repeats=1)
            train = before + batch + peak(profiled)
            fit.model.eval()
            routes = []
            for number in range(fit.model.num_routes):
                with profile(**options) as profiled, torch.inference_mode():
                    fit.model.route(number, inputs)
                routes.append(weights + sample + peak(profiled))
    return {"train": train, "inference": max(routes)}


def _held(fit: Fit) -> list[torch.Tensor]:
    return [*fit.model.parameters(), *fit.model.buffers(), *fit._tensors().values()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, shape, options, attention = sys.argv[1:]
    training = replace(TrainConfig(batch_size=NUM_SAMPLES), **json.loads(options))
    sys.stdout.write(json.dumps(measure(name, shape, training, attention)) + "\n")
