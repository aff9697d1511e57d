"""MLP: fully connected layers on statistics of segments, the same inputs as `linear`.

Shapes: B batch, P statistics, H hidden width, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import check_integer, check_number
from sftsearch.trainables.layers.blocks import dropout
from sftsearch.trainables.layers.tokens import FUSED, Sequence
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry
from sftsearch.trainables.models.linear import FeatureHead, StatisticsConfig, head_part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec, Task
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import Batch
    from sftsearch.trainables.statistics import FeatureTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig(StatisticsConfig):
    """Hidden layers with ReLU and dropout, then a linear layer."""

    hidden_dim: int = 128
    """Width of the hidden layers."""
    num_layers: int = 1
    """Hidden layers."""
    dropout: float = 0.0
    """Dropout rate after each hidden layer."""

    def __post_init__(self) -> None:
        StatisticsConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("hidden_dim", self.hidden_dim, at_least=1)
        check_integer("num_layers", self.num_layers, at_least=1)
        check_number("dropout", self.dropout, least=0, below=1)


class HiddenLayer(nn.Module):
    """`dropout(relu(x W + b))`; manifold mixup may mix after it."""

    mixing_point = True

    def __init__(self, width: int, hidden_dim: int, rate: float) -> None:
        super().__init__()
        self.linear, self.rate = nn.Linear(width, hidden_dim), rate

    def forward(self, tokens: Tokens) -> Tokens:
        """Apply the layer to the features."""
        hidden = F.relu(self.linear(tokens[FUSED].z))
        return {FUSED: Sequence(dropout(hidden, self.rate, self.training))}


class MLP(FusionModel):
    """Hidden layers on the normalized statistics, trained by gradients."""

    tokenizer: FeatureTokenizer

    def __init__(self, spec: DatasetSpec, config: MLPConfig) -> None:
        tokenizer, hidden = config.tokenizer(spec), config.hidden_dim
        widths = [tokenizer.num_features, *[hidden] * config.num_layers]
        layers = [HiddenLayer(width, hidden, config.dropout) for width in widths[:-1]]
        head = FeatureHead(hidden, spec.num_outputs)
        super().__init__(spec, config, layers, tokenizer=tokenizer, head=head)

    def begin_training(self, task: Task, train: Iterable[Batch]) -> None:
        """Normalize the statistics over the training split; see `FusionModel.begin_training`."""
        self.tokenizer.fit(train)


def mlp_cost(spec: DatasetSpec, config: MLPConfig) -> cost.Cost:
    """Return the cost: the statistics, P H, (L - 1) H H and H C multiply-adds."""
    hidden = config.hidden_dim
    return cost.total(
        [
            config.part(spec),
            head_part(config.num_statistics(spec), hidden),
            head_part(hidden, hidden) * (config.num_layers - 1),
            head_part(hidden, spec.num_outputs),
        ]
    )


MODELS = {
    "mlp": ModelEntry(
        config=MLPConfig,
        build=MLP,
        cost=mlp_cost,
        paper="fully connected layers on segment statistics",
    ),
}
