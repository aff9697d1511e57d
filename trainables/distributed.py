"""Train one trial on several workers: each has a whole model and its part of every batch.

torch's DistributedDataParallel averages the gradients, so all models stay equal, and up to rounding
equal to the model of a single worker on whole batches. Exceptions: batch normalization takes its
statistics from the worker's own part (the running ones from the first worker's), and each worker
draws its own dropout and mixup.

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
"""Longest wait for the other workers."""
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass(frozen=True, slots=True)
class Workers:
    """The rank of this worker and the number of workers of its trial."""

    rank: int = 0
    """Number of this worker; worker 0 writes checkpoints and records."""
    count: int = 1

    def part(self, rows_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return this worker's rows of a batch; if there are too few, the first row."""
        own = rows_B[self.rank :: self.count]
        return own if len(own) else rows_B[:1]

    def weight(self, size: int) -> float:
        """Return the weight of this worker's mean loss in a batch of `size` samples.

        The mean over workers of the weighted mean losses is the mean loss of the batch.
        """
        return len(range(self.rank, size, self.count)) * self.count / size

    def replicate(self, model: nn.Module) -> nn.Module | None:
        """Wrap the model for training on several workers; None if there is one worker.

        The parameters and buffers of all workers become those of the first.
        """
        if self.count == 1:
            return None
        # Gated models leave the parameters of the routes they do not take unused.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over workers of a tensor on any device, on the CPU."""
        values = values.cpu()
        if self.count > 1:
            distributed.all_reduce(values)
            values /= self.count
        return values

    def exchange(self, parts: list[Tensor | None]) -> list[Tensor]:
        """Gather all parts; worker i % count has computed part i."""
        gathered: list[list[Tensor | None]] = [parts]
        if self.count > 1:
            gathered = [[] for _ in range(self.count)]
            distributed.all_gather_object(gathered, parts)
        whole = [gathered[i % self.count][i] for i in range(len(parts))]
        return [part for part in whole if part is not None]

    def from_first(self, text: str) -> str:
        """Return the first worker's text."""
        if self.count == 1:
            return text
        received: list[str | None] = [text]
        distributed.broadcast_object_list(received, src=0)
        assert received[0] is not None
        return received[0]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, on any device, with those of the first worker."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


ALONE = Workers()


def normalizes_batches(model: nn.Module) -> bool:
    """Return whether a model has batch normalization."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


# ------------------------------------------------------------------ process group


def listen(host: str) -> socket.socket:
    """Return a listening socket at `host`, an address of this machine, for the other workers."""
    return socket.create_server((host, 0))


def join(workers: Workers, host: str, port: int, listener: socket.socket | None = None) -> None:
    """Join the process group of the other workers; the first worker brings the socket.

    At LOOPBACK nothing can be reached from other machines.

    Raises:
        RuntimeError: the other workers did not join in time.
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
    """Leave the process group, if there is one; the other workers notice."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
