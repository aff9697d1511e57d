"""Compute a model's cost without running it: closed forms in integers, and a count to check them.

Notation: n tokens, d width. One operation is always one multiply-add.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sftsearch.trainables.config import CONV_KERNELS, TOKENIZERS
from sftsearch.trainables.encoders import count_encoder
from sftsearch.trainables.operations import operation_counter

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import ModelConfig, TransformerConfig
    from sftsearch.trainables.token_windows import Pattern

GIGA = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a configuration, for one sample and one forward pass.

    For a gated model these are upper bounds, the cost of the most expensive route; `*_low` are the
    lower bounds.
    """

    gflops: float
    """1e9 operations by the formulas of the SFT paper (appendix A.2): no tokenizer, no head. Sparse
    attention counts the pairs of tokens that attend to each other."""
    gmacs: float
    """1e9 multiply-adds of every matrix product that runs."""
    parameters: int
    gflops_low: float = math.nan
    """`gflops` of the cheapest route; equal to `gflops` if there is one route."""
    gmacs_low: float = math.nan
    """`gmacs` of the cheapest route."""
    gflops_dense: float = math.nan
    """`gflops` with sparse attention counted as dense, as in the SFT paper's Table 2."""

    def __post_init__(self) -> None:
        if math.isnan(self.gflops_dense):
            object.__setattr__(self, "gflops_dense", self.gflops)
        for name in ("gflops", "gmacs"):
            if math.isnan(getattr(self, f"{name}_low")):
                object.__setattr__(self, f"{name}_low", getattr(self, name))

    def low(self, name: str) -> float:
        """Return the lower bound of the cost with this name."""
        return float(getattr(self, f"{name}_low", getattr(self, name)))

    def as_dict(self) -> dict[str, float]:
        """Return the costs by name, and the lower bounds that differ from them."""
        prices = {
            "gflops": self.gflops,
            "gmacs": self.gmacs,
            "parameters": self.parameters,
            "gflops_dense": self.gflops_dense,
        }
        lower = {f"{name}_low": self.low(name) for name in prices if self.low(name) < prices[name]}
        return prices | lower


@dataclass(frozen=True, slots=True)
class Part:
    """The integer costs of a part of a model; parts can be added and multiplied."""

    flops: int
    macs: int
    parameters: int
    spared: int = 0
    """Operations that `flops` would have more if sparse attention were dense."""

    def __add__(self, other: Part) -> Part:
        return Part(
            self.flops + other.flops,
            self.macs + other.macs,
            self.parameters + other.parameters,
            self.spared + other.spared,
        )

    def __mul__(self, times: int) -> Part:
        return Part(
            self.flops * times, self.macs * times, self.parameters * times, self.spared * times
        )


def total(parts: list[Part]) -> Cost:
    """Add up parts; the only division comes last, so that equal counts give equal costs."""
    whole = functools.reduce(operator.add, parts)
    return Cost(
        whole.flops / GIGA,
        whole.macs / GIGA,
        whole.parameters,
        gflops_dense=(whole.flops + whole.spared) / GIGA,
    )


def to_part(priced: Cost) -> Part:
    """Convert a cost back to integers, to use it as a part of another model."""
    flops = round(priced.gflops * GIGA)
    spared = round(priced.gflops_dense * GIGA) - flops
    return Part(flops, round(priced.gmacs * GIGA), priced.parameters, spared)


def bounded(routes: list[Part], parameters: int) -> Cost:
    """Return the cost of a model that runs one of its routes for each sample.

    Args:
        routes: everything that runs on each route, with the gate; their parameters are not read.
        parameters: of the model.
    """
    flops, macs = [part.flops for part in routes], [part.macs for part in routes]
    dense = max(part.flops + part.spared for part in routes) / GIGA
    return Cost(
        max(flops) / GIGA, max(macs) / GIGA, parameters, min(flops) / GIGA, min(macs) / GIGA, dense
    )


def tokenizer(spec: DatasetSpec, config: TransformerConfig, *, plain: bool = False) -> Part:
    """Return the cost of all tokenizers: projection of the features, CLS token, positions.

    The SFT paper does not count them. A plug-in's encoder has no closed form and is counted.
    `plain`: only the projection of samples, without bias.
    """
    d, macs, parameters = config.dim, 0, 0
    for name, cut in config.cuts(spec).items():
        n, num_features = cut.num_tokens, spec.modalities[name].num_features
        width = {
            "linear": cut.patch * num_features,
            "statistics": 3 * num_features,
            "linear_statistics": (cut.patch + 3) * num_features,
        }.get(config.tokenizer, d)
        macs += n * width * d
        parameters += width * d + (0 if plain else d + (n + 1) * d + d)
        if config.tokenizer == "conv":  # at every sample, the padding of the last patch included
            first, second = CONV_KERNELS
            weights = first * num_features * d + second * d
            macs += n * cut.patch * weights
            parameters += weights + 2 * d
        if config.tokenizer not in TOKENIZERS:  # a plug-in's encoder
            counted = count_encoder(config.tokenizer, n, cut.patch, num_features, d)
            macs += counted.macs
            parameters += counted.parameters
    return Part(0, macs, parameters)


def attention(
    n: int,
    d: int,
    *,
    priced: int | None = None,
    pattern: Pattern | None = None,
    reports: bool = False,
) -> Part:
    """Return the cost of self-attention: four projections, two products over the attended pairs.

    Args:
        n: tokens, with CLS.
        d: width.
        priced: tokens in `flops`, where the paper does not count the CLS token.
        pattern: which pairs attend; None: all n x n.
        reports: whether the attention received is returned, which computes all pairs.
    """
    p = n if priced is None else priced
    parameters = 4 * d * d + 4 * d
    pairs, scores = p * p, n * n
    if pattern is not None:
        pairs = pattern.num_pairs(p)
        scores = n * n if reports else pattern.num_scores(n)
    flops, macs = 4 * p * d * d + 2 * pairs * d, 4 * n * d * d + 2 * scores * d
    return Part(flops, macs, parameters, 2 * (p * p - pairs) * d)


def cross_attention(n: int, s: int, d: int, *, priced: tuple[int, int] | None = None) -> Part:
    """Return the cost of n queries on s keys, 2nd^2 + 2sd^2 + 2nsd; `attention` where n is s.

    `priced`: both numbers in `flops`, where the paper does not count the CLS tokens.
    """
    p, q = priced or (n, s)
    flops, macs = (2 * (a + b) * d * d + 2 * a * b * d for a, b in ((p, q), (n, s)))
    return Part(flops, macs, 4 * d * d + 4 * d)


def mlp(n: int, d: int, *, hidden: int | None = None, priced: int | None = None) -> Part:
    """Return the cost of a norm and two layers, 2ndh + 4nd; the last term is element-wise."""
    p, h = n if priced is None else priced, d if hidden is None else hidden
    return Part(2 * p * d * h + 4 * p * d, 2 * n * d * h, 2 * d * h + h + d + 2 * d)


def block(n: int, d: int, *, priced: int | None = None) -> Part:
    """Return the cost of a transformer block, 4nd^2 + 2n^2 d + 2nd^2 + 4nd."""
    return attention(n, d, priced=priced) + mlp(n, d, priced=priced)


def head(d: int, num_outputs: int, *, sequences: int = 1) -> Part:
    """Return the cost of one head on the CLS token of each sequence; not in the paper's count."""
    return Part(0, sequences * d * num_outputs, 2 * d + d * num_outputs + num_outputs)


def norm(d: int) -> Part:
    """Return the cost of a layer norm with weights: only parameters."""
    return Part(0, 0, 2 * d)


def linear(d: int, num_outputs: int) -> Part:
    """Return the cost of a linear layer on one token, as in heads; not in the paper's count."""
    return Part(0, d * num_outputs, (d + 1) * num_outputs)


def count_gmacs(model: nn.Module, spec: DatasetSpec, config: ModelConfig) -> float:
    """Count the multiply-adds of one sample, in 1e9, by running the model on the meta device.

    For a model with routes: those of the most expensive one (`count_routes`).
    """
    return max(count_routes(model, spec, config))


def count_routes(model: nn.Module, spec: DatasetSpec, config: ModelConfig) -> tuple[float, ...]:
    """Count the multiply-adds of one sample, in 1e9, for each route; most models have one.

    On a CPU torch's counter misses the operations of fused attention; on the meta device it sees
    them all and needs neither memory nor data. It counts two per multiply-add.
    """
    with torch.device("meta"):
        shapes = {name: spec.modalities[name] for name in config.chosen(spec)}
        inputs = {m: torch.empty(1, one.num_tokens, one.num_features) for m, one in shapes.items()}
        lengths = {
            m: torch.empty(1, dtype=torch.int64) for m, one in shapes.items() if one.variable_length
        }
    num_routes = getattr(model, "num_routes", 1)
    # A gated model has one route if it runs all its experts: `route` then also runs the gate.
    has_routes = hasattr(model, "route")
    routes = [Route(model, i) for i in range(num_routes)] if has_routes else [model]
    return tuple(_count(route, inputs, lengths) for route in routes)


class Route(nn.Module):
    """One route of a model as a module."""

    def __init__(self, model: nn.Module, number: int) -> None:
        """Wrap route `number` of a model that has `route`."""
        super().__init__()
        self.model, self.number = model, number

    def forward(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        """Compute the outputs (B, C) of the route."""
        outputs: Tensor = self.model.route(self.number, inputs, lengths)  # type: ignore[operator]
        return outputs


def _count(model: nn.Module, inputs: dict[str, Tensor], lengths: dict[str, Tensor]) -> float:
    weights = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    with operation_counter() as counter, torch.no_grad():
        torch.func.functional_call(model, weights, (inputs, lengths))
    operations: int = counter.get_total_flops()
    return operations // 2 / GIGA
