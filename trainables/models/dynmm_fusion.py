"""DynMM, fusion level: a gate decides after how many layers a sample's auxiliary modalities stop.

After each layer a fusion cell has two operations: the main modality only, or the sum of all
modalities, their channels scaled by squeeze-and-excitation. One gate chooses among nested paths:
path k uses the auxiliary modalities in the first k cells. So in cell j the main modality alone has
the weight `w_j = sum_{k < j} g_k`, and in evaluation the auxiliary layers after a sample's last
fusion do not run. In stage I every sample takes a uniformly drawn path; in stage II the gate learns
with the loss `L + lambda sum_k g_k C(path k)`, where C is relative to the most expensive path.

The paper's network is convolutional, for depth images (ESANet); here the cells follow the
transformer layers of late fusion. Auxiliary tokens are aligned to the main modality's positions by
their share of the sequence: averaged if there are more of them, repeated if there are fewer. The
paper's network also fuses all samples once after its first layer; here a sample may use no
auxiliary modality, and the gate reads the samples, not the first layer's output.

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
    """The modality that every path runs completely; the others are auxiliary. None: the first."""
    num_layers: int = 4
    """Layers of each modality, with a fusion cell after each."""
    reduction: int = 4
    """Divisor of the width between squeeze and excitation; the paper's is 16, for its much wider
    layers."""

    def __post_init__(self) -> None:
        GatedConfig.__post_init__(self)  # super() does not work in a class with slots
        check_integer("num_layers", self.num_layers, at_least=1)
        check_integer("reduction", self.reduction, at_least=1)
        if self.reduction > self.dim:
            got = f"reduction={self.reduction}, dim={self.dim}"
            raise ConfigError(
                f"`reduction` must be at most `dim`, but got ({got}).", "reduction", "dim"
            )

    @property
    def squeezed(self) -> int:
        """Width between squeeze and excitation."""
        return self.dim // self.reduction

    def roles(self, spec: DatasetSpec) -> tuple[str, tuple[str, ...]]:
        """Return the main modality and the auxiliary ones.

        Raises:
            ConfigError: the main modality is not used, or it is the only one.
        """
        names = tuple(self.num_tokens(spec))
        main = names[0] if self.main is None else self.main
        if main not in names:
            raise ConfigError(
                f"`main` must be one of {', '.join(names)}, but got {main!r}.", "main"
            )
        if len(names) < 2:
            raise ConfigError(
                f"`modalities` must be at least two, a main and an auxiliary one, but got {main}.",
                "modalities",
            )
        return main, tuple(name for name in names if name != main)

    def canonical(self, spec: DatasetSpec) -> Self:
        """See `TransformerConfig.canonical`: the smallest reduction with the same width."""
        return dataclasses.replace(
            GatedConfig.canonical(self, spec),
            main=self.roles(spec)[0],
            reduction=self.dim // self.squeezed,
        )


class SqueezeExcite(nn.Module):
    """Scale channels: `x sigmoid(W2 relu(W1 mean(x)))`, the mean over valid tokens."""

    def __init__(self, dim: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(dim, squeezed), nn.Linear(squeezed, dim)

    def forward(self, sequence: Sequence) -> Tensor:
        """Scale the channels of (B, T, D)."""
        mean = mean_of_valid(sequence.z, sequence.valid)
        gains = torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))
        return sequence.z * gains.unsqueeze(1)


class FusionCell(nn.Module):
    """The fusing operation: the sum of the main and all auxiliary modalities, scaled by channel.

    Invalid tokens add nothing. Shape: {m: (B, T_m, D)} -> (B, T_main, D).
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
    """Align tokens to the positions of another modality; the CLS token stays first.

    Shape: (B, 1 + n, D) -> (B, 1 + k, D), 0 where no token is valid.
    """

    positions: Tensor

    def __init__(self, num_tokens: int, num_positions: int) -> None:
        super().__init__()
        windows = Windows(num_tokens, min(num_tokens, num_positions))
        self.pool = Pool(windows, "average")
        # Each position takes the token at the same share of the sequence.
        positions = torch.arange(num_positions) * windows.count // num_positions
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, sequence: Sequence) -> Tensor:
        """Average or repeat tokens."""
        z, valid = self.pool(sequence)
        if valid is not None:
            z = z.masked_fill(~valid.unsqueeze(-1), 0.0)
        return torch.cat([sequence.z[:, :1], z.index_select(1, self.positions)], dim=1)


class DynMMFusion(GatedModel):
    """Layers of each modality with cells between them; the main CLS token is classified.

    Training outputs are (B, C) in stage I, with a path drawn for each sample.
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
        """Compute the outputs of a batch, (B, C) in evaluation; see `FusionModel.forward`.

        Compiled and exported models run every cell on all samples, with equal outputs.
        """
        if self.training and self.in_stage_one:
            size, device = len(inputs[self.main]), inputs[self.main].device
            drawn = torch.randint(self.num_weights, (size,), device=device)
            return self.by_weights(inputs, lengths, F.one_hot(drawn, self.num_weights))
        if not self.training and self.config.soft_inference:
            return self.softly(inputs, lengths)
        scores = self.scores(inputs, lengths)
        if self.training:
            weights = self.weights(scores)
            return torch.cat([self.by_weights(inputs, lengths, weights), weights], dim=1)
        routes = scores.argmax(dim=1)
        if torch.compiler.is_compiling() or routes.is_meta:
            return self.by_weights(inputs, lengths, F.one_hot(routes, self.num_weights))
        return self.by_routes(inputs, lengths, routes)

    def by_weights(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None,
        weights: Tensor,
    ) -> Tensor:
        """Run the whole network; path weights (B, K + 1) mix each cell's operations."""
        main = self._tokens((self.main,), inputs, lengths)
        others = self._tokens(self.others, inputs, lengths)
        alone_BK = weights.cumsum(dim=1)[:, :-1]  # column j - 1 is w_j of cell j
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
        """Run each sample by its path (B,); after its last fusion its auxiliary layers stop."""
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
            rows, others = rows[stays], other_layer(_select_rows(others, stays))
            z, valid, _ = main[self.main]
            fused = cell(_select_rows(main, rows) | others)
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

    def softly(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None) -> Tensor:
        """Run the whole network, its operations mixed; see `GatedModel.softly`."""
        return self.by_weights(inputs, lengths, self.soft_weights(inputs, lengths))

    def on_route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the outputs of one path; see `GatedModel.on_route`."""
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
        """Return the task's loss in stage I, and add the cost of the paths in stage II."""
        if self.in_stage_one:
            return losses(outputs, labels)
        return self.joint_losses(losses, outputs, labels)


def _select_rows(tokens: Tokens, rows: Tensor) -> Tokens:
    """Select rows of every sequence, by index or by mask."""
    return {
        name: Sequence(z[rows], None if valid is None else valid[rows])
        for name, (z, valid, _) in tokens.items()
    }


def fusion_parts(spec: DatasetSpec, config: DynMMFusionConfig) -> tuple[cost.Part, list[cost.Part]]:
    """Return the costs of the gate and of the K + 1 paths, the most expensive last.

    Every path runs the main modality completely; its first cell adds the auxiliary tokenizers, and
    every cell adds a layer per auxiliary modality and the products of squeeze-and-excitation.
    """
    main, others = config.roles(spec)
    tokens, d, s = config.num_tokens(spec), config.dim, config.squeezed
    tokenizers = {
        name: cost.tokenizer(spec, dataclasses.replace(config, modalities=(name,), main=None))
        for name in tokens
    }
    blocks = {name: cost.block(n + 1, d, priced=n) for name, n in tokens.items()}
    excitation = cost.Part(2 * d * s, 2 * d * s, 2 * d * s + d + s) * len(tokens)
    zero = cost.Part(0, 0, 0)
    alone = tokenizers[main] + blocks[main] * config.num_layers + cost.head(d, spec.num_outputs)
    first = sum((tokenizers[name] for name in others), zero)
    cell = sum((blocks[name] for name in others), excitation)
    paths = [alone, *(alone + first + cell * k for k in range(1, config.num_layers + 1))]
    return config.gate_part(spec, len(paths)), paths


def fusion_cost(spec: DatasetSpec, config: DynMMFusionConfig) -> cost.Cost:
    """Return the cost of the gate and the most expensive path; at least, the cheapest path.

    With `soft_inference` every sample takes the most expensive path.
    """
    gate, paths = fusion_parts(spec, config)
    if config.soft_inference:
        return cost.total([gate, paths[-1]])
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
