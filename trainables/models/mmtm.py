"""MMTM: squeeze-and-excitation across two modalities between their layers.

Source: Joze et al. 2020, MMTM: Multimodal Transfer Module for CNN Fusion, arXiv:1911.08670; here
between the transformer layers of late fusion, so that it is comparable with the other models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError, TransformerConfig, check_integer
from sftsearch.trainables.layers.mmtm import MMTM, mmtm_macs, mmtm_parameters, squeezed_width
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry, block_layers
from sftsearch.trainables.models.msaf import ChannelFusion, check_placement, placement

if TYPE_CHECKING:
    from torch import nn

    from sftsearch.datasets.spec import DatasetSpec

MMTM_PAPER = "Joze et al. 2020, MMTM: Multimodal Transfer Module for CNN Fusion, arXiv:1911.08670"


@dataclass(frozen=True, kw_only=True, slots=True)
class MMTMConfig(TransformerConfig):
    """Late fusion of two modalities, with MMTM after some layers."""

    num_layers: int = 12
    """Layers of each modality."""
    fusion_layers: tuple[int, ...] | None = None
    """Layers that MMTM follows, from 1; empty: late fusion. None: the last two, as in `msaf`."""
    reduction: int = 4
    """Both modalities are squeezed to int(4 dim / reduction) numbers."""

    def __post_init__(self) -> None:
        TransformerConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)
        check_integer("reduction", self.reduction, at_least=1)
        if self.reduction > 4 * self.dim:
            got = f"reduction={self.reduction}, dim={self.dim}"
            raise ConfigError(
                f"`reduction` must be at most 4 `dim`, but got ({got}).", "reduction", "dim"
            )
        if self.fusion_layers is not None:
            checked = check_placement(self.fusion_layers, self.num_layers)
            object.__setattr__(self, "fusion_layers", checked)

    @property
    def placement(self) -> tuple[int, ...]:
        """The layers that MMTM follows."""
        return placement(self.fusion_layers, self.num_layers)

    @property
    def squeezed(self) -> int:
        """Width that both modalities are squeezed to."""
        return squeezed_width((self.dim, self.dim), self.reduction)

    def two_tokens(self, spec: DatasetSpec) -> dict[str, int]:
        """Return `num_tokens` of the two modalities.

        Raises:
            ConfigError: there are not exactly two.
        """
        tokens = self.num_tokens(spec)
        if len(tokens) != 2:
            raise ConfigError(
                f"`modalities` of MMTM must be exactly two, but got {len(tokens)}: "
                f"{', '.join(tokens)}. Choose two, or use the model `msaf`.",
                "modalities",
            )
        return tokens

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: late fusion does not read `reduction`."""
        self.two_tokens(spec)
        reduction = 4 * self.dim // self.squeezed if self.placement else 4
        return dataclasses.replace(
            TransformerConfig.canonical(self, spec),
            fusion_layers=self.placement,
            reduction=reduction,
        )


class MMTMTransformer(FusionModel):
    """Layers of both modalities, MMTM after some; one head for both, its logits summed.

    CLS tokens are pooled and scaled like the others.
    """

    def __init__(self, spec: DatasetSpec, config: MMTMConfig) -> None:
        names, channels = tuple(config.two_tokens(spec)), (config.dim, config.dim)
        layers: list[nn.Module] = []
        for layer in range(1, config.num_layers + 1):
            layers += block_layers(config, names, 1)
            if layer in config.placement:
                layers.append(ChannelFusion(MMTM(channels, reduction=config.reduction)))
        super().__init__(spec, config, layers, readout=names)


def mmtm_cost(spec: DatasetSpec, config: MMTMConfig) -> cost.Cost:
    """Return the cost of late fusion and the modules' products; ReLU is counted, sigmoids are not.

    The MSAF paper counts in the same way.
    """
    tokens, channels = config.two_tokens(spec).values(), (config.dim, config.dim)
    macs = mmtm_macs(channels, config.squeezed)
    module = cost.Part(macs + config.squeezed, macs, mmtm_parameters(channels, config.squeezed))
    return cost.total(
        [
            cost.tokenizer(spec, config),
            *(cost.block(n + 1, config.dim, priced=n) * config.num_layers for n in tokens),
            module * len(config.placement),
            cost.head(config.dim, spec.num_outputs, sequences=2),
        ]
    )


MODELS = {
    "mmtm": ModelEntry(config=MMTMConfig, build=MMTMTransformer, cost=mmtm_cost, paper=MMTM_PAPER),
}
