"""Linear model: logistic or ridge regression on statistics of segments, solved exactly.

Each sample is described by a few statistics of each feature of each modality, in equal segments of
time. This is the baseline that any other model should beat: it takes seconds, and has no randomness
and no training options.

Shapes: B batch, P statistics, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import ModelConfig, check_choice, check_integer, check_number
from sftsearch.trainables.layers.tokens import FUSED
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry
from sftsearch.trainables.solvers import rotate, solve_logistic, solve_ridge
from sftsearch.trainables.statistics import (
    OPERATIONS,
    STATISTICS,
    FeatureTokenizer,
    SegmentStatistics,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sftsearch.datasets.spec import DatasetSpec, Task
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import Batch
    from sftsearch.trainables.solvers import LinearMap


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsConfig(ModelConfig):
    """Fields of models on statistics of segments."""

    segments: int = 4
    """Equal segments of time that are described separately."""
    statistics: Literal["plain", "rich"] = "plain"
    """plain: mean and standard deviation of each feature; rich: also minimum, maximum and mean
    absolute difference of consecutive samples."""

    def __post_init__(self) -> None:
        ModelConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("segments", self.segments, at_least=1)
        check_choice("statistics", self.statistics, tuple(STATISTICS))

    def num_statistics(self, spec: DatasetSpec) -> int:
        """Return the number of statistics of a sample, P."""
        features = sum(spec.modalities[name].num_features for name in self.chosen(spec))
        return self.segments * len(STATISTICS[self.statistics]) * features

    def part(self, spec: DatasetSpec) -> cost.Part:
        """Return the cost of the statistics: operations on single numbers, no multiply-adds."""
        shapes = [spec.modalities[name] for name in self.chosen(spec)]
        read = sum(one.num_tokens * one.num_features for one in shapes)
        return cost.Part(OPERATIONS[self.statistics] * read, 0, 0)

    def tokenizer(self, spec: DatasetSpec) -> FeatureTokenizer:
        """Return the module that computes the statistics."""
        return FeatureTokenizer(
            {
                name: SegmentStatistics(
                    num_features=spec.modalities[name].num_features,
                    segments=self.segments,
                    kind=self.statistics,
                )
                for name in self.chosen(spec)
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig(StatisticsConfig):
    """Logistic regression (classification, multi-label) or ridge regression."""

    l2: float = 0.01
    """Penalty: mean loss + l2 / 2 |W|^2 is minimized, on normalized statistics."""

    def __post_init__(self) -> None:
        StatisticsConfig.__post_init__(self)
        check_number("l2", self.l2, least=0, below=1e6, open_=True)


class FeatureHead(nn.Module):
    """A linear layer on the features: {FUSED: (B, 1, P)} -> (B, C)."""

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_outputs)

    def forward(self, tokens: Tokens) -> Tensor:
        """Compute the outputs."""
        outputs: Tensor = self.linear(tokens[FUSED].z[:, 0])
        return outputs

    @torch.no_grad()
    def set(self, found: LinearMap) -> None:
        """Take the weights of a solution."""
        self.linear.weight.copy_(found.weight.T)
        self.linear.bias.copy_(found.bias)


class SolvedModel(FusionModel):
    """A linear layer on features; both are fitted to the training split at once."""

    is_solved = True
    tokenizer: FeatureTokenizer
    head: FeatureHead

    def __init__(self, spec: DatasetSpec, config: ModelConfig, tokenizer: FeatureTokenizer) -> None:
        head = FeatureHead(tokenizer.num_features, spec.num_outputs)
        super().__init__(spec, config, [], tokenizer=tokenizer, head=head)

    @torch.no_grad()
    def begin_training(self, task: Task, train: Iterable[Batch]) -> Tensor:
        """Fit the features, then solve for the weights; see `FusionModel.begin_training`."""
        features = self.tokenizer.fit(train)
        labels = torch.cat([labels.cpu() for _, _, labels in train])
        found = self.solve(features, labels, task)
        self.head.set(found)
        return found.outputs(features)

    def solve(self, features: Tensor, labels: Tensor, task: Task) -> LinearMap:
        """Return the weights for features (N, P) and labels (N,) or (N, C), on the CPU."""
        raise NotImplementedError


class Linear(SolvedModel):
    """Logistic or ridge regression on statistics of segments."""

    config: LinearConfig

    def __init__(self, spec: DatasetSpec, config: LinearConfig) -> None:
        super().__init__(spec, config, config.tokenizer(spec))

    def solve(self, features: Tensor, labels: Tensor, task: Task) -> LinearMap:
        """Minimize the penalized loss; see `SolvedModel.solve`."""
        x, l2 = rotate(features), self.config.l2
        if task == "regression":
            return solve_ridge(x, labels[:, None], l2=l2)
        num_outputs = self.head.linear.out_features
        return solve_logistic(x, labels, num_outputs, task=task, l2=l2)[0]


def head_part(num_features: int, num_outputs: int) -> cost.Part:
    """Return the cost of a linear layer that is the model itself: `flops` count it, too."""
    part = cost.linear(num_features, num_outputs)
    return cost.Part(part.macs, part.macs, part.parameters)


def linear_cost(spec: DatasetSpec, config: LinearConfig) -> cost.Cost:
    """Return the cost: the statistics and one linear layer, P C."""
    return cost.total([config.part(spec), head_part(config.num_statistics(spec), spec.num_outputs)])


MODELS = {
    "linear": ModelEntry(
        config=LinearConfig,
        build=Linear,
        cost=linear_cost,
        paper="logistic or ridge regression on segment statistics",
        mixes_latents=False,
        is_solved=True,
    ),
}
