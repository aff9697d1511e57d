"""Say what this machine offers to trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sftsearch.search_spaces.schema import Resources


def usable_cpus() -> int:
    """Count the CPUs of this process, within its affinity and the limit of its container."""
    from joblib import cpu_count

    count: int = cpu_count()
    return count


def describe_lack(resources: Resources) -> str:
    """Say which CPUs or GPUs of a trial this machine does not have; empty if it has all."""
    import torch

    cpus, gpus = usable_cpus(), torch.cuda.device_count()
    for one in resources.variants():
        needs_cpus, needs_gpus = one.cpus * one.workers, one.gpus * one.workers
        if needs_cpus > cpus or needs_gpus > gpus:
            return (
                f"This machine has {cpus} CPUs and {gpus} GPUs, but a trial requests "
                f"{needs_cpus:g} CPUs and {needs_gpus:g} GPUs. Lower `resources`, or run the "
                "study in a cluster with --address."
            )
    return ""
