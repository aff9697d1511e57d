"""Worker process for tests: train small models, alone or together with other processes.

    python tests/support/drive_parallel.py RANK COUNT PORT DTYPE CACHE NAME...

The process prints its histories by model as JSON. Rank 0 prints its port first; the others get it
as an argument.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftsearch.datasets.catalog import open_dataset
from sftsearch.trainables import distributed
from sftsearch.trainables import fit as fitting
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.distributed import ALONE, Workers
from sftsearch.trainables.evaluation import Batches
from sftsearch.trainables.fit import Fit

from shapes import OF_MSAF, SMALL

if TYPE_CHECKING:
    from sftsearch.datasets.store import Store
    from sftsearch.trainables.models.fusion import FusionModel

TINY: dict[str, Any] = SMALL | {"dim": 4, "num_heads": 2, "patch": 2}


class Cast(Batches):
    """Batches with torch's default dtype."""

    def on_device(self, rows: Any) -> torch.Tensor:
        tensor = super().on_device(rows)
        return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def build(name: str, store: Store, dtype: torch.dtype) -> FusionModel:
    """Build a small model."""
    config = MODELS[name].config
    some = {key: value for key, value in TINY.items() if hasattr(config, key)}
    if name.startswith("msaf"):
        some |= OF_MSAF
    modalities = tuple(store.spec.modalities)
    number = {"unimodal": 1, "mmtm": 2, "mi_matrix": 2}.get(name)
    if number:
        some["modalities"] = modalities[:number]
    return build_model(name, store.spec, config(**some), 0).to(dtype)


def histories(
    names: list[str], dtype: torch.dtype, cache: Path, workers: Workers = ALONE
) -> dict[str, list[dict[str, float]]]:
    """Train each model for two epochs."""
    torch.set_num_threads(1)
    store = open_dataset("synthetic", cache=cache)
    # An odd batch size gives one worker one sample more, also in the last batch.
    size = store.spec.num_samples["train"]
    config = TrainConfig(epochs=2, batch_size=next(n for n in range(99, 9, -1) if size % n % 2))
    found = {}
    torch.set_default_dtype(dtype)
    fitting.Batches = Cast  # type: ignore[misc]
    for name in names:
        fit = Fit(build(name, store, dtype), store, config, seed=0, workers=workers)
        fit.follow_first()
        while not fit.done:
            fit.run_epoch()
        found[name] = fit.history
    fitting.Batches = Batches  # type: ignore[misc]
    torch.set_default_dtype(torch.float32)
    return found


def main() -> None:
    """Train with the other processes, and print the histories."""
    rank, count, port = (int(word) for word in sys.argv[1:4])
    dtype, cache = getattr(torch, sys.argv[4]), Path(sys.argv[5])
    workers, listener = Workers(rank, count), None
    if rank == 0:
        listener = distributed.listen(distributed.LOOPBACK)
        port = listener.getsockname()[1]
        print(port, flush=True)
    distributed.join(workers, distributed.LOOPBACK, port, listener)
    found = histories(sys.argv[6:], dtype, cache, workers)
    distributed.leave()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
