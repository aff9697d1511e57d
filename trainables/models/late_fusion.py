"""Late fusion (LF): modalities meet in the sum of their logits.

Source: baseline of Ding et al. 2021, arXiv:2111.11992, sec. 4. Their code copies the CLS token
after the first layer by mistake; here there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.trainables import cost
from sftsearch.trainables.config import TransformerConfig, check_integer
from sftsearch.trainables.models.fusion import FusionModel, block_layers

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LateFusionConfig(TransformerConfig):
    """Late fusion."""

    num_layers: int = 12
    """Layers of each modality."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)


class LateFusion(FusionModel):
    """Layers of each modality on its own; one head for all, its logits summed."""

    def __init__(self, spec: DatasetSpec, config: LateFusionConfig) -> None:
        super().__init__(spec, config, block_layers(config, config.chosen(spec), config.num_layers))


def late_fusion_cost(spec: DatasetSpec, config: LateFusionConfig) -> cost.Cost:
    """Price late fusion: each modality's layers on its n tokens."""
    tokens = config.num_tokens(spec).values()
    return cost.total(
        [
            cost.tokenizer(spec, config),
            *(cost.block(n + 1, config.dim, priced=n) * config.num_layers for n in tokens),
            cost.head(config.dim, spec.num_classes, sequences=len(tokens)),
        ]
    )
