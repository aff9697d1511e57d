"""Random seeds that are the same in every process and Python version."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, number: int) -> int:
    """Derive the seed of proposal `number` from the sampler's seed."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
