"""A trial on several workers: each trains on its part of every batch, with a whole model.

torch's DistributedDataParallel averages the gradients, so all models stay equal, and equal to the
one that a single worker would train on whole batches, up to rounding. Exceptions are what looks at
a batch as a whole: batch normalization takes its statistics from a worker's own part (those that
evaluation uses from the first worker's), dropout and mixup draw for each worker apart.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training".

Shapes: B samples of a batch, N of a split.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt

LOOPBACK = "127.0.0.1"
PATIENCE = dt.timedelta(minutes=30)
"""How long a worker waits for the others before it gives up."""
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a trial, as one of them sees them; a single one needs no others."""

    rank: int = 0
    """Which one this is; the first, 0, keeps the records."""
    count: int = 1

    def part(self, rows_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return this worker's rows of a batch; of a batch that is too small, any one of them."""
        own = rows_B[self.rank :: self.count]
        return own if len(own) else rows_B[:1]

    def weight(self, size: int) -> float:
        """Return what the mean loss of this worker's part of `size` samples counts.

        The mean over workers of weighted mean losses is the mean loss of the batch.
        """
        return len(range(self.rank, size, self.count)) * self.count / size

    def replicate(self, model: nn.Module) -> nn.Module | None:
        """Return what runs the forward pass in training, None for the model itself.

        Parameters and buffers of all workers become those of the first.
        """
        if self.count == 1:
            return None
        # Models that choose a route by batch leave the parameters of the others unused.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over workers of a tensor on any device, on the CPU."""
        values = values.cpu()
        if self.count > 1:
            distributed.all_reduce(values)
            values /= self.count
        return values

    def exchange(self, parts: list[Tensor | None]) -> list[Tensor]:
        """Return all parts, of which part i was computed by worker i % count alone."""
        of_workers: list[list[Tensor | None]] = [parts]
        if self.count > 1:
            of_workers = [[] for _ in range(self.count)]
            distributed.all_gather_object(of_workers, parts)
        whole = [of_workers[i % self.count][i] for i in range(len(parts))]
        return [part for part in whole if part is not None]

    def from_first(self, text: str) -> str:
        """Return the text that the first worker has."""
        if self.count == 1:
            return text
        told: list[str | None] = [text]
        distributed.broadcast_object_list(told, src=0)
        assert told[0] is not None
        return told[0]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors, on any device, those of the first worker."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


ALONE = Workers()


def normalizes_batches(model: nn.Module) -> bool:
    """Tell whether a model has batch normalization."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


# ------------------------------------------------------------------ meeting


def listen(host: str) -> socket.socket:
    """Return a socket of this machine's address `host` at which the other workers will meet."""
    return socket.create_server((host, 0))


def join(workers: Workers, host: str, port: int, listener: socket.socket | None = None) -> None:
    """Meet the other workers; the first one brings the socket at which they do.

    Where all are on one machine, nothing of it can be reached from another.

    Raises:
        RuntimeError: the others did not come.
    """
    leave()
    for name in _INTERFACES:
        if host == LOOPBACK:
            os.environ[name] = "lo"
        elif os.environ.get(name) == "lo":
            del os.environ[name]
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        workers.count,
        is_master=listener is not None,
        timeout=dt.timedelta(minutes=2),
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
        use_libuv=True,
    )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=workers.rank, world_size=workers.count, timeout=PATIENCE
    )


def leave() -> None:
    """Leave the other workers, if there are any; they notice."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
