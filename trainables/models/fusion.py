"""What every fusion system is: a tokenizer, layers from tokens to tokens, a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from sftsearch.trainables.layers.blocks import Block, Each, Head
from sftsearch.trainables.layers.tokens import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig


class FusionModel(nn.Module):
    """A token transformer; its systems differ in their layers alone.

    Shape: {modality: (B, T, F)} -> logits (B, C). Modalities that are not chosen are not read.
    """

    def __init__(
        self, spec: DatasetSpec, config: TransformerConfig, layers: Iterable[nn.Module]
    ) -> None:
        super().__init__()
        self.config = config
        self.modalities = config.chosen(spec)
        self.tokenizer = Tokenizer(spec, config)
        self.layers = nn.ModuleList(layers)
        self.head = Head(dim=config.dim, num_classes=spec.num_classes)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Score the classes of a batch."""
        tokens = self.tokenizer(inputs)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(tokens)
        return logits


def block_layers(config: TransformerConfig, names: Iterable[str], count: int) -> list[nn.Module]:
    """Return `count` layers with one block for each sequence of `names`."""
    return [Each({name: build_block(config) for name in names}) for _ in range(count)]


def build_block(config: TransformerConfig) -> Block:
    """Return one block of the configuration's width."""
    return Block(dim=config.dim, num_heads=config.num_heads, dropout=config.dropout)
