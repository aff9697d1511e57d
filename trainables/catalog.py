"""The fusion systems there are. To add one: its file in `models/`, and its line in `MODELS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftsearch.datasets.errors import look_up
from sftsearch.trainables.models.concat import Concat, ConcatConfig, concat_cost
from sftsearch.trainables.models.late_fusion import LateFusion, LateFusionConfig, late_fusion_cost
from sftsearch.trainables.models.sft import (
    SFT,
    SFTConfig,
    SFTPoolingOnly,
    SFTPoolingOnlyConfig,
    sft_cost,
    sft_pooling_only_cost,
)
from sftsearch.trainables.models.unimodal import Unimodal, UnimodalConfig, unimodal_cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig
    from sftsearch.trainables.cost import Cost
    from sftsearch.trainables.models.fusion import FusionModel


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """A fusion system: how it is configured, built and priced."""

    config: type[TransformerConfig]
    build: Callable[[DatasetSpec, Any], FusionModel]
    cost: Callable[[DatasetSpec, Any], Cost]
    """A closed form, without building anything; equal to what the built model counts."""
    paper: str


SFT_PAPER = "Ding et al. 2021, Sparse Fusion for Multimodal Transformers, arXiv:2111.11992"

MODELS: dict[str, System] = {
    "sft": System(config=SFTConfig, build=SFT, cost=sft_cost, paper=SFT_PAPER),
    "sft_po": System(
        config=SFTPoolingOnlyConfig,
        build=SFTPoolingOnly,
        cost=sft_pooling_only_cost,
        paper=SFT_PAPER,
    ),
    "concat": System(config=ConcatConfig, build=Concat, cost=concat_cost, paper=SFT_PAPER),
    "late_fusion": System(
        config=LateFusionConfig, build=LateFusion, cost=late_fusion_cost, paper=SFT_PAPER
    ),
    "unimodal": System(config=UnimodalConfig, build=Unimodal, cost=unimodal_cost, paper=SFT_PAPER),
}


def build_model(name: str, spec: DatasetSpec, config: TransformerConfig, seed: int) -> FusionModel:
    """Build a system with the weights of `seed`; the caller's random state is left as it was.

    Raises:
        UserError: no system has this name.
        ConfigError: the configuration does not fit the data set.
    """
    system = look_up(MODELS, name, kind="model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return system.build(spec, config)
