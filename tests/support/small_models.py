"""Small models of every kind on one dataset spec, and batches for them.

Shapes: B batch, T tokens, F features, C classes.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.spec import DatasetSpec, ModalitySpec
from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.evaluation import losses_of

from shapes import OF_MSAF, SMALL

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.trainables.config import TransformerConfig
    from sftsearch.trainables.models.fusion import FusionModel

NUM_CLASSES = 7
SPEC: DatasetSpec = replace(
    describe("synthetic"),
    modalities={
        "type": ModalitySpec(num_tokens=13, num_features=5),  # also a method of nn.Module
        "audio": ModalitySpec(num_tokens=6, num_features=1),
        "text": ModalitySpec(num_tokens=9, num_features=3),
    },
    classes=tuple(f"class_{index}" for index in range(NUM_CLASSES)),
)
ALONE = ("unimodal",)
"""Models that take exactly one modality."""
PAIRS = ("mmtm", "mi_matrix")
"""Models that take exactly two."""


def small(name: str, **options: Any) -> TransformerConfig:
    known = {field.name for field in fields(MODELS[name].config)}
    depth = {key: value for key, value in SMALL.items() if key in known}
    if name.startswith("msaf"):
        depth |= OF_MSAF
    if "fused_layers" in depth:
        depth |= {"stride": 2}
    chosen = {"modalities": ("type",)} if name in ALONE else {}
    if name in PAIRS:
        chosen = {"modalities": ("type", "text")}
    shared = {"dim": 12, "num_heads": 3, "patch": 2}
    shared = {key: value for key, value in shared.items() if hasattr(MODELS[name].config, key)}
    return MODELS[name].config(**shared | depth | chosen | options)


def losses(model: FusionModel, outputs: Tensor) -> Tensor:
    """Return the training losses on `batch()`, (B,)."""
    labels = torch.arange(len(outputs)) % NUM_CLASSES
    return model.losses(partial(losses_of, "classification", TrainConfig()), outputs, labels)


def batch(size: int = 4, seed: int = 1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, shape.num_tokens, shape.num_features, generator=random)
        for name, shape in SPEC.modalities.items()
    }


def lengths(size: int = 4) -> dict[str, Tensor]:
    """Return lengths of full, cut and missing modalities; "audio" is always full."""
    cut = torch.arange(size) % 4
    return {
        "type": torch.tensor([13, 7, 1, 0])[cut],
        "text": torch.tensor([9, 0, 9, 2])[cut],
    }


def fill_padding(
    inputs: dict[str, Tensor], known: dict[str, Tensor], value: float
) -> dict[str, Tensor]:
    """Put `value` into all padding."""
    corrupted = dict(inputs)
    for key, length in known.items():
        padded = torch.arange(inputs[key].shape[1]) >= length[:, None]
        corrupted[key] = inputs[key].masked_fill(padded[:, :, None], value)
    return corrupted
