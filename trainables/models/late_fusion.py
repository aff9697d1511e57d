"""Late fusion (LF): sum the logits of separate modalities.

Source: baseline of Ding et al. 2021, arXiv:2111.11992, sec. 4; pooled as in their Table 3. Their
code duplicates the CLS token after the first layer by mistake; here there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.trainables import cost
from sftsearch.trainables.config import check_integer
from sftsearch.trainables.models.concat import check_layers_after, pooled_after_first
from sftsearch.trainables.models.fusion import SFT_PAPER, FusionModel, ModelEntry
from sftsearch.trainables.pooling_config import PoolingConfig

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.token_windows import Windows


@dataclass(frozen=True, kw_only=True, slots=True)
class LateFusionConfig(PoolingConfig):
    """Late fusion; `stride` or `tokens` pools each modality after its first layer."""

    num_layers: int = 12
    """Layers of each modality."""

    def __post_init__(self) -> None:
        PoolingConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)

    def windows(self, spec: DatasetSpec) -> dict[str, Windows]:
        """Return the windows of each modality."""
        return check_layers_after(PoolingConfig.windows(self, spec), self.num_layers)


class LateFusion(FusionModel):
    """Separate layers for each modality; one head for all, its logits summed."""

    def __init__(self, spec: DatasetSpec, config: LateFusionConfig) -> None:
        layers = pooled_after_first(config, config.windows(spec), config.num_layers)
        super().__init__(spec, config, layers, readout=config.chosen(spec))


def late_fusion_cost(spec: DatasetSpec, config: LateFusionConfig) -> cost.Cost:
    """Return the cost of late fusion: layers on n tokens a modality, k after the first layer."""
    windows = config.windows(spec).values()
    first = [cost.block(w.num_tokens + 1, config.dim, priced=w.num_tokens) for w in windows]
    others = [cost.block(w.count + 1, config.dim, priced=w.count) for w in windows]
    return cost.total(
        [
            cost.tokenizer(spec, config),
            *first,
            *(block * (config.num_layers - 1) for block in others),
            cost.head(config.dim, spec.num_outputs, sequences=len(windows)),
        ]
    )


MODELS = {
    "late_fusion": ModelEntry(
        config=LateFusionConfig, build=LateFusion, cost=late_fusion_cost, paper=SFT_PAPER
    ),
}
