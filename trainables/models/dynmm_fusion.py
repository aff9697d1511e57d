"""DynMM, fusion level: a gate decides how far a sample makes use of its auxiliary modalities.

Behind each layer stands a fusion cell with two operations: the main modality alone, or the sum of
it and of the auxiliary ones, whose channels are weighed by squeeze and excitation. One gate chooses
among nested paths: path k uses the auxiliary modalities in the first k cells. So the main modality
goes on alone in cell j with the weight `w_j = sum_{k < j} g_k`, and in evaluation the auxiliary
layers behind a sample's last fusion do not run. In stage I every sample takes a path drawn
uniformly, in stage II the gate learns with the loss `L + lambda sum_k g_k C(path k)`, C relative to
the dearest path.

The paper's network is a convolutional one for depth images (ESANet); here its cells stand between
the transformer layers of late fusion. Auxiliary tokens are brought to the main modality's places by
their share of the sequence: averaged where there are more of them, repeated where there are fewer.
The paper's network also fuses once behind its first layer, for all samples; here a sample may do
without its auxiliary modalities, and the gate reads the samples, not the first layer's output.

Source: Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102, sec. 3.3, with the
progressive paths of the authors' code.

Shapes: B batch, T tokens with CLS, D width, K layers and cells, C outputs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables import cost
from sftsearch.trainables.config import ConfigError, check_integer
from sftsearch.trainables.layers.blocks import Head
from sftsearch.trainables.layers.gating import mean_of_valid
from sftsearch.trainables.layers.pooling import Pool
from sftsearch.trainables.layers.tokens import Sequence, Tokenizer
from sftsearch.trainables.models.fusion import ModelEntry, block_layers
from sftsearch.trainables.models.gated import DYNMM_PAPER, GatedConfig, GatedModel
from sftsearch.trainables.token_windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import Losses


@dataclass(frozen=True, kw_only=True, slots=True)
class DynMMFusionConfig(GatedConfig):
    """DynMM at the fusion level; the paper's network has four cells."""

    main: str | None = None
    """The modality that every path runs whole; the others are auxiliary. None: the first."""
    num_layers: int = 4
    """Layers of each modality, with a fusion cell behind each."""
    reduction: int = 4
    """What the width is divided by between squeeze and excitation; the paper's is 16, for its much
    wider layers."""

    def __post_init__(self) -> None:
        GatedConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)
        check_integer("reduction", self.reduction, at_least=1)
        if self.reduction > self.dim:
            got = f"reduction={self.reduction}, dim={self.dim}"
            raise ConfigError(f"`reduction` must be at most `dim`, but got ({got}).")

    @property
    def squeezed(self) -> int:
        """Width between squeeze and excitation."""
        return self.dim // self.reduction

    def roles(self, spec: DatasetSpec) -> tuple[str, tuple[str, ...]]:
        """Return the main modality and the auxiliary ones.

        Raises:
            ConfigError: the main one is not used, or there is no other.
        """
        names = tuple(self.num_tokens(spec))
        main = names[0] if self.main is None else self.main
        if main not in names:
            raise ConfigError(f"`main` must be one of {', '.join(names)}, but got {main!r}.")
        if len(names) < 2:
            raise ConfigError(
                f"`modalities` must be at least two, a main and an auxiliary one, but got {main}."
            )
        return main, tuple(name for name in names if name != main)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: the least reduction of all with the same width."""
        return dataclasses.replace(
            GatedConfig.canonical(self, spec),
            main=self.roles(spec)[0],
            reduction=self.dim // self.squeezed,
        )


class SqueezeExcite(nn.Module):
    """`x sigmoid(W2 relu(W1 mean(x)))`, the mean over valid tokens: weighs channels."""

    def __init__(self, dim: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(dim, squeezed), nn.Linear(squeezed, dim)

    def forward(self, sequence: Sequence) -> Tensor:
        """Weigh the channels of (B, T, D)."""
        mean = mean_of_valid(sequence.z, sequence.valid)
        gains = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        return sequence.z * gains.unsqueeze(1)


class FusionCell(nn.Module):
    """The fusing operation: the main modality and all auxiliary ones, weighed and added up.

    What is not valid adds nothing. Shape: {m: (B, T_m, D)} -> (B, T_main, D).
    """

    def __init__(self, spec: DatasetSpec, config: DynMMFusionConfig) -> None:
        super().__init__()
        main, others = config.roles(spec)
        self.names = (main, *others)
        self.weigh = nn.ModuleList(SqueezeExcite(config.dim, config.squeezed) for _ in self.names)
        tokens = config.num_tokens(spec)
        self.align = nn.ModuleList(Align(tokens[name], tokens[main]) for name in others)

    def forward(self, tokens: Tokens) -> Tensor:
        """Fuse the sequences."""
        main, *others = (tokens[name] for name in self.names)
        total: Tensor = self.weigh[0](main)
        for weigh, align, other in zip(self.weigh[1:], self.align, others, strict=True):
            total = total + align(Sequence(weigh(other), other.valid))
        return total


class Align(nn.Module):
    """Bring tokens to the places of another modality, the CLS token to its own.

    Shape: (B, 1 + n, D) -> (B, 1 + k, D), 0 where nothing is valid.
    """

    places: Tensor

    def __init__(self, num_tokens: int, num_places: int) -> None:
        super().__init__()
        windows = Windows(num_tokens, min(num_tokens, num_places))
        self.pool = Pool(windows, "average")
        # A place of the same share of the sequence; each of them, where there are as many.
        places = torch.arange(num_places) * windows.count // num_places
        self.register_buffer("places", places, persistent=False)

    def forward(self, sequence: Sequence) -> Tensor:
        """Average or repeat tokens."""
        z, valid = self.pool(sequence)
        if valid is not None:
            z = z.masked_fill(~valid.unsqueeze(-1), 0.0)
        return torch.cat([sequence.z[:, :1], z.index_select(1, self.places)], dim=1)


class DynMMFusion(GatedModel):
    """Layers of each modality with cells between them; the main CLS token is classified.

    Training outputs are (B, C) in stage I, of a path drawn for each sample.
    """

    config: DynMMFusionConfig

    def __init__(self, spec: DatasetSpec, config: DynMMFusionConfig) -> None:
        gate, paths = fusion_parts(spec, config)
        super().__init__(spec, config, gate, paths)
        self.main, self.others = config.roles(spec)
        self.tokenizer = Tokenizer(spec, config)
        self.main_layers = nn.ModuleList(block_layers(config, [self.main], config.num_layers))
        self.other_layers = nn.ModuleList(block_layers(config, self.others, config.num_layers))
        self.cells = nn.ModuleList(FusionCell(spec, config) for _ in range(config.num_layers))
        self.head = Head([self.main], dim=config.dim, num_outputs=spec.num_outputs)

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None = None,
        after_layer: Callable[[int, Tokens], Tokens] | None = None,
    ) -> Tensor:
        """Give the outputs of a batch, (B, C) in evaluation; see `FusionModel.forward`.

        What is compiled or exported runs every cell on all samples, with equal outputs.
        """
        if self.training and self.is_alone:
            size, device = len(inputs[self.main]), inputs[self.main].device
            drawn = torch.randint(self.num_routes, (size,), device=device)
            return self.by_weights(inputs, lengths, F.one_hot(drawn, self.num_routes))
        scores = self.scores(inputs, lengths)
        if self.training:
            weights = self.weights(scores)
            return torch.cat([self.by_weights(inputs, lengths, weights), weights], dim=1)
        routes = scores.argmax(dim=1)
        if torch.compiler.is_compiling() or routes.is_meta:
            return self.by_weights(inputs, lengths, F.one_hot(routes, self.num_routes))
        return self.by_routes(inputs, lengths, routes)

    def by_weights(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None,
        weights: Tensor,
    ) -> Tensor:
        """Run all of the network, each cell's operations weighed by the paths (B, K + 1)."""
        main = self._tokens((self.main,), inputs, lengths)
        others = self._tokens(self.others, inputs, lengths)
        alone_BK = weights.cumsum(dim=1)[:, :-1]  # w_j of cell j, which is the first of w_1
        stages = zip(self.main_layers, self.other_layers, self.cells, strict=True)
        for j, (layer, other_layer, cell) in enumerate(stages):
            main, others = layer(main), other_layer(others)
            z, valid, _ = main[self.main]
            w = alone_BK[:, j, None, None].to(z.dtype)
            main = {self.main: Sequence(w * z + (1 - w) * cell(main | others), valid)}
        outputs: Tensor = self.head(main)
        return outputs

    def by_routes(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None,
        routes: Tensor,
    ) -> Tensor:
        """Run each sample by its path (B,): the others leave the auxiliary layers behind it."""
        main, others = self._tokens((self.main,), inputs, lengths), None
        rows = (routes > 0).nonzero().squeeze(1)
        if len(rows):
            taken = {name: inputs[name][rows] for name in self.others}
            known = lengths and {name: length[rows] for name, length in lengths.items()}
            others = self._tokens(self.others, taken, known)
        stages = zip(self.main_layers, self.other_layers, self.cells, strict=True)
        for j, (layer, other_layer, cell) in enumerate(stages):
            main = layer(main)
            stays = routes[rows] > j
            if others is None or not bool(stays.any()):
                others = None
                continue
            rows, others = rows[stays], other_layer(_of_rows(others, stays))
            z, valid, _ = main[self.main]
            fused = cell(_of_rows(main, rows) | others)
            main = {self.main: Sequence(z.index_copy(0, rows, fused.to(z.dtype)), valid)}
        outputs: Tensor = self.head(main)
        return outputs

    def _tokens(
        self,
        names: tuple[str, ...],
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None,
    ) -> Tokens:
        known = lengths or {}
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, Tokenizer)
        tokenize = dict(zip(tokenizer.names, tokenizer.modalities, strict=True))
        return {name: tokenize[name](inputs[name], known.get(name)) for name in names}

    def route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Give the outputs of one path, and ask the gate; see `FusionModel.route`."""
        self.scores(inputs, lengths)
        main = self._tokens((self.main,), inputs, lengths)
        others = self._tokens(self.others, inputs, lengths) if number else {}
        stages = zip(self.main_layers, self.other_layers, self.cells, strict=True)
        for j, (layer, other_layer, cell) in enumerate(stages):
            main = layer(main)
            if j < number:
                others = other_layer(others)
                main = {self.main: Sequence(cell(main | others), main[self.main].valid)}
        outputs: Tensor = self.head(main)
        return outputs

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the task's loss in stage I, with the paths' price in stage II."""
        if self.is_alone:
            return losses(outputs, labels)
        return self.joint_losses(losses, outputs, labels)


def _of_rows(tokens: Tokens, rows: Tensor) -> Tokens:
    """Return some rows of every sequence, by number or by mask."""
    return {
        name: Sequence(z[rows], None if valid is None else valid[rows])
        for name, (z, valid, _) in tokens.items()
    }


def fusion_parts(spec: DatasetSpec, config: DynMMFusionConfig) -> tuple[cost.Part, list[cost.Part]]:
    """Return the price of the gate, and that of each path: K + 1, the dearest last.

    A path runs the main modality whole; with the first cell it uses come the auxiliary tokenizers,
    and with each cell an auxiliary layer and the products of squeeze and excitation.
    """
    main, others = config.roles(spec)
    tokens, d, s = config.num_tokens(spec), config.dim, config.squeezed
    tokenizers = {
        name: cost.tokenizer(spec, dataclasses.replace(config, modalities=(name,), main=None))
        for name in tokens
    }
    blocks = {name: cost.block(n + 1, d, priced=n) for name, n in tokens.items()}
    weigh = cost.Part(2 * d * s, 2 * d * s, 2 * d * s + d + s) * len(tokens)
    nothing = cost.Part(0, 0, 0)
    alone = tokenizers[main] + blocks[main] * config.num_layers + cost.head(d, spec.num_outputs)
    first = sum((tokenizers[name] for name in others), nothing)
    cell = sum((blocks[name] for name in others), weigh)
    paths = [alone, *(alone + first + cell * k for k in range(1, config.num_layers + 1))]
    return config.gate_part(spec, len(paths)), paths


def fusion_cost(spec: DatasetSpec, config: DynMMFusionConfig) -> cost.Cost:
    """Price the gate and the dearest path, which has all parameters; at least the cheapest."""
    gate, paths = fusion_parts(spec, config)
    return cost.bounded([gate + path for path in paths], gate.parameters + paths[-1].parameters)


MODELS = {
    "dynmm_fusion": ModelEntry(
        config=DynMMFusionConfig,
        build=DynMMFusion,
        cost=fusion_cost,
        paper=DYNMM_PAPER,
        mixes_latents=False,
    ),
}
