"""Compare random batches from a store with a DataLoader over a pickle; measure shared memory.

The dataset has one gigabyte: sound-like tokens of variable length and images of fixed size. Both
sides give equal random batches, z-scored and padded. The store reads them from its memory map; the
DataLoader (default collation, `--loader-workers` workers) from samples unpickled into memory. Then
one and eight processes read the whole store, and their proportional set sizes (PSS, which divides
shared pages among processes) are summed.

Run with `python -P tests/benchmarks/bench_store.py`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.store import Store

BATCH = 64
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "digits": {"sound": (128, 32), "image": (64, 1)},
    "mosei": {"sound": (500, 74), "image": (50, 35)},
}
"""Tokens and features of the shipped digits and of CMU-MOSEI; the sound varies in length."""


Shapes = dict[str, tuple[int, int]]


def values_of(number: int, shapes: Shapes) -> dict[str, np.ndarray]:
    """Return the values of one sample."""
    random = np.random.default_rng(number)
    length = int(random.integers(1, shapes["sound"][0] + 1))
    return {
        "sound": random.random((length, shapes["sound"][1]), dtype=np.float32),
        "image": random.random(shapes["image"], dtype=np.float32),
    }


def make_store(folder: Path, num_samples: int, shapes: Shapes) -> Store:
    """Prepare the dataset."""
    from sftsearch.datasets.prepare import prepare
    from sftsearch.datasets.source import Sample, Source
    from sftsearch.datasets.spec import SPLITS, ModalitySpec
    from sftsearch.datasets.store import open_store

    def split_of(number: int) -> str:
        return SPLITS[0] if number > 1 else SPLITS[1 + number]

    samples = [
        Sample(name=str(n), split=split_of(n), label=n % 2, read=lambda n=n: values_of(n, shapes))
        for n in range(num_samples)
    ]
    modalities = {
        name: ModalitySpec(num_tokens=t, num_features=f, variable_length=name == "sound")
        for name, (t, f) in shapes.items()
    }
    source = Source(
        task="classification", modalities=modalities, classes=("no", "yes"), samples=samples,
        licence="none", attribution="nobody", source="synthetic", description="Random numbers.",
    )  # fmt: skip
    return open_store(prepare("random", source, folder / "random").path)


def batches_of(store: Store) -> Callable[[np.ndarray], object]:
    """Map the training split, as a trial does once."""
    import torch

    from sftsearch.trainables.evaluation import Batches

    torch.set_num_threads(1)
    return Batches(store, store.split("train"), tuple(store.spec.modalities), "cpu")


def time_store(batches: Callable[[np.ndarray], object], order: np.ndarray) -> float:
    """Return the seconds of an epoch of random batches from the store."""
    start = time.perf_counter()
    for first in range(0, len(order), BATCH):
        batches(order[first : first + BATCH])
    return time.perf_counter() - start


def loader_of(store: Store, file: Path, shapes: Shapes, order: np.ndarray, workers: int) -> Any:
    """Return a DataLoader over an unpickled list that gives the same batches as the store."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    samples: list[dict[str, Any]] = pickle.loads(file.read_bytes())
    scales = {name: [*map(torch.tensor, found)] for name, found in store.statistics.items()}

    class Padded(Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = samples[index]
            (mean, std), length = scales["sound"], len(sample["sound"])
            sound = torch.zeros(shapes["sound"])
            sound[:length] = (torch.from_numpy(sample["sound"]) - mean) / std
            mean, std = scales["image"]
            image = (torch.from_numpy(sample["image"]) - mean) / std
            return {"sound": sound, "image": image, "length": length, "label": sample["label"]}

    return DataLoader(Padded(), batch_size=BATCH, sampler=order.tolist(), num_workers=workers)


def time_loader(loader: Any) -> float:
    """Return the seconds of an epoch of the loader."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def assert_equal(batches: Callable[[np.ndarray], Any], loader: Any, order: np.ndarray) -> None:
    """Check that both sides give the same batch."""
    import torch

    inputs, lengths, labels = batches(order[:BATCH])
    other = next(iter(loader))
    assert torch.equal(inputs["sound"], other["sound"])
    assert torch.equal(inputs["image"], other["image"])
    assert torch.equal(lengths["sound"], other["length"])
    assert torch.equal(labels, other["label"])


def read_all(path: Path) -> None:
    """Read every sample of the store as a worker does, print `read` and wait."""
    from sftsearch.datasets.store import open_store

    split = open_store(path).split("train")
    for first in range(0, len(split), BATCH):
        for source in split.modalities.values():
            source[slice(first, first + BATCH)]
    print("read", flush=True)
    sys.stdin.read()


def pss_mib(process: int) -> float:
    """Return a process's proportional set size in MiB."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line[:4] == "Pss:")


def memory(path: Path, number: int) -> float:
    """Return the summed PSS of `number` processes that have read the store, in MiB."""
    command = [sys.executable, "-P", __file__, "--read", str(path)]
    pipe = subprocess.PIPE
    readers = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(number)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"read\n"
    total = sum(pss_mib(reader.pid) for reader in readers)
    for reader in readers:
        reader.communicate()
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_all(options.read)
        return
    results = {}
    for name, shapes in SIZES.items():
        folder = Path(tempfile.mkdtemp(prefix="bench_store."))
        try:
            results[name] = measure(folder, shapes, options)
        finally:
            shutil.rmtree(folder)
        result = results[name]
        print(f"{name}: {result['samples']} samples, {result['bytes'] / 2**30:.2f} GiB, batches of "
              f"{BATCH}, one thread")  # fmt: skip
        for side, rate in result["samples_a_second"].items():
            print(f"  {side:7}{rate:9.0f} samples per second")
        print(f"  store / loader: {result['ratio']:.2f}")
        one, eight = result["pss_mib"]["one"], result["pss_mib"]["eight"]
        print(f"  PSS of one reader {one:.0f} MiB, of eight {eight:.0f} MiB: {eight / one:.2f}")
    print(json.dumps(results))


def measure(folder: Path, shapes: Shapes, options: argparse.Namespace) -> dict[str, Any]:
    """Return the rates, sizes and ratios for one set of shapes."""
    a_sample = 4 * (shapes["sound"][0] / 2 * shapes["sound"][1] + np.prod(shapes["image"]))
    count = int(options.gigabytes * 2**30 / a_sample)
    store = make_store(folder, count, shapes)
    file = folder / "samples.pickle"
    samples = [values_of(n, shapes) | {"label": n % 2} for n in range(2, count)]
    file.write_bytes(pickle.dumps(samples, protocol=5))
    del samples
    order = np.random.default_rng(0).permutation(count - 2)
    one, eight = memory(store.path, 1), memory(store.path, 8)  # before this process maps it too
    batches = batches_of(store)
    loader = loader_of(store, file, shapes, order, options.loader_workers)
    assert_equal(batches, loader, order)
    runs: dict[str, Callable[[], float]] = {
        "store": lambda: time_store(batches, order),
        "loader": lambda: time_loader(loader),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + options.rounds):
        for name, run in runs.items():
            times[name].append(run())
    rates = {name: len(order) / statistics.median(found[1:]) for name, found in times.items()}
    return {
        "samples": count,
        "bytes": sum(file.stat().st_size for file in store.path.iterdir()),
        "samples_a_second": rates,
        "ratio": rates["store"] / rates["loader"],
        "pss_mib": {"one": one, "eight": eight},
        "pss_ratio": eight / one,
    }


if __name__ == "__main__":
    main()
