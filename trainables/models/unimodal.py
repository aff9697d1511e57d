"""Unimodal transformer: a baseline on one modality.

Source: baseline of Ding et al. 2021, arXiv:2111.11992, sec. 4. It is SFT-PO with one modality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.models.fusion import SFT_PAPER, FusionModel, ModelEntry
from sftsearch.trainables.models.sft import check_attention, pooled_layers, pooled_parts
from sftsearch.trainables.pooling_config import MidFusionConfig

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class UnimodalConfig(MidFusionConfig):
    """One modality; `fused_layers` are the layers after pooling."""


class Unimodal(FusionModel):
    """Layers, pooling, layers; the CLS token is classified."""

    def __init__(self, spec: DatasetSpec, config: UnimodalConfig) -> None:
        check_one_modality(spec, config)
        super().__init__(spec, config, pooled_layers(spec, config), readout=[FUSED])


def unimodal_cost(spec: DatasetSpec, config: UnimodalConfig) -> cost.Cost:
    """Return the cost of the unimodal transformer: n tokens before pooling, 1 + k after it."""
    check_one_modality(spec, config)
    check_attention(spec, config)
    return cost.total(pooled_parts(spec, config))


def check_one_modality(spec: DatasetSpec, config: UnimodalConfig) -> None:
    """Raise ConfigError unless there is exactly one modality."""
    names = config.chosen(spec)
    if len(names) != 1:
        raise ConfigError(
            f"`modalities` of a unimodal model must be exactly one, but got {len(names)}: "
            f"{', '.join(names)}. Choose one of them.",
            "modalities",
        )


MODELS = {
    "unimodal": ModelEntry(
        config=UnimodalConfig, build=Unimodal, cost=unimodal_cost, paper=SFT_PAPER
    ),
}
