"""Build the networks of the DynMM paper's tables at their sizes: MM-IMDB and CMU-MOSEI.

Sizes, and details the paper does not state, are those of the authors' code. Inputs by modality:
`text` (B, 300) and `image` (B, 4096) on MM-IMDB; `vision` (B, 50, 35), `audio` (B, 50, 74) and
`text` (B, 50, 300), aligned word by word, on CMU-MOSEI.

Source: Xue and Marculescu 2023, Dynamic Multimodal Fusion, arXiv:2204.00102, sec. 4.1 and 4.2;
E1 and E2 are its cheap and its expensive expert.

Shapes: B batch, T tokens, F features, D width, N routes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.attention import SelfAttention
from sftsearch.trainables.layers.gating import choose, weighted_sum

Inputs = dict[str, Tensor]

IMDB_OUTPUTS = 23
"""Genres in the code; the paper states 27."""
MOSEI_FEATURES = {"vision": 35, "audio": 74, "text": 300}


class Routed(nn.Module):
    """Experts and a gate, in evaluation: a sample runs through its highest-scoring expert.

    With `soft` (DynMM-d) all experts run, and their outputs are weighted by the gate's softmax.
    """

    def __init__(self, experts: list[nn.Module], gate: nn.Module, *, soft: bool = False) -> None:
        super().__init__()
        self.experts, self.gate, self.soft = nn.ModuleList(experts), gate, soft

    def forward(self, inputs: Inputs) -> Tensor:
        """Compute the outputs (B, C); a routed expert receives only its samples."""
        if self.soft:
            return weighted_sum(
                self.gate(inputs).softmax(dim=1), [expert(inputs) for expert in self.experts]
            )
        routes = self.gate(inputs).argmax(dim=1)

        def run(number: int, rows: Tensor | None) -> Tensor:
            taken = inputs if rows is None else {name: x[rows] for name, x in inputs.items()}
            outputs: Tensor = self.experts[number](taken)
            return outputs

        return choose(routes, len(self.experts), run)


def mlp(width: int, hidden: int, num_outputs: int) -> nn.Sequential:
    """Return Linear - ReLU - Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm (B, D) that uses its running statistics for a single sample, in training too."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        if self.training and len(x) == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class MaxOut(nn.Module):
    """Two maxout layers with two pieces per unit, each after a batch norm: (B, F) -> (B, D).

    `BN - Linear(F, 2 H) - max - BN - dropout - Linear(H, 2 D) - max - BN - dropout`.
    """

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * hidden), nn.Linear(hidden, 2 * dim)
        # In the authors' code only the norm of the input has an eps of its own.
        sizes = ((width, 1e-4), (hidden, 1e-5), (dim, 1e-5))
        self.norms = nn.ModuleList(BatchNorm(one, eps=eps) for one, eps in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each sample."""
        x = self.norms[0](x)
        for layer, norm in ((self.first, self.norms[1]), (self.second, self.norms[2])):
            maxima = layer(x).view(len(x), -1, 2).amax(dim=2)
            x = F.dropout(norm(maxima), 0.3, self.training)
        return x


class Plain(nn.Module):
    """A network on one modality."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name, self.network = name, network

    def forward(self, inputs: Inputs) -> Tensor:
        """Compute the outputs (B, C)."""
        outputs: Tensor = self.network(inputs[self.name])
        return outputs


class Late(nn.Module):
    """One network per modality; a head classifies their concatenated features."""

    def __init__(self, networks: dict[str, nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.names, self.networks = tuple(networks), nn.ModuleList(networks.values())
        self.head = head

    def forward(self, inputs: Inputs) -> Tensor:
        """Compute the outputs (B, C)."""
        pairs = zip(self.names, self.networks, strict=True)
        outputs: Tensor = self.head(torch.cat([run(inputs[name]) for name, run in pairs], dim=1))
        return outputs


class Early(nn.Module):
    """One network on the features of all modalities, concatenated at each time step."""

    def __init__(self, names: tuple[str, ...], network: nn.Module) -> None:
        super().__init__()
        self.names, self.network = names, network

    def forward(self, inputs: Inputs) -> Tensor:
        """Compute the outputs (B, C)."""
        outputs: Tensor = self.network(torch.cat([inputs[name] for name in self.names], dim=-1))
        return outputs


# ------------------------------------------------------------- MM-IMDB


def imdb_text() -> nn.Module:
    """Return E1: two MLPs in sequence, without an activation between them (as in the code)."""
    return Plain("text", nn.Sequential(mlp(300, 512, 512), mlp(512, 512, IMDB_OUTPUTS)))


def imdb_image() -> nn.Module:
    """Return the network on the image only."""
    return Plain("image", nn.Sequential(mlp(4096, 1024, 512), mlp(512, 512, IMDB_OUTPUTS)))


def imdb_late() -> nn.Module:
    """Return E2: late fusion of one maxout network per modality."""
    networks = {"text": MaxOut(300, 512, 512), "image": MaxOut(4096, 1024, 512)}
    return Late(dict(networks), nn.Linear(1024, IMDB_OUTPUTS))


def imdb_early() -> nn.Module:
    """Return early fusion: one maxout network on both modalities."""
    network = nn.Sequential(MaxOut(4396, 512, 512), nn.Linear(512, IMDB_OUTPUTS))
    return Early(("text", "image"), network)


def imdb_gate() -> nn.Module:
    """Return the gate with two routes."""
    return Early(("text", "image"), mlp(4396, 128, 2))


def imdb_dynmm(*, soft: bool = False) -> Routed:
    """Return DynMM on MM-IMDB: text only, or both modalities.

    `soft` is DynMM-d of Table 1. The paper's 12.1 million multiply-adds for it are the sum of both
    routes, which counts the gate twice; once, they are 11.6 million.
    """
    return Routed([imdb_text(), imdb_late()], imdb_gate(), soft=soft)


# ------------------------------------------------------------- CMU-MOSEI


class PostNormLayer(nn.Module):
    """Post-norm transformer layer, equal to PyTorch's `TransformerEncoderLayer`.

    It is built from parts whose operations can be counted.
    """

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim=dim, num_heads=num_heads)
        self.expand, self.contract = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, z: Tensor) -> Tensor:
        """Transform (B, T, D)."""
        z = self.attention_norm(z + self.dropout(self.attention(z)[0]))
        hidden = self.dropout(F.relu(self.expand(z)))
        out: Tensor = self.mlp_norm(z + self.dropout(self.contract(hidden)))
        return out


class Transformer(nn.Module):
    """Five layers on projected steps; returns the last step, (B, T, F) -> (B, D).

    It has no positions and no padding mask.
    """

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv1d(num_features, dim, 1, bias=False)
        self.layers = nn.Sequential(*(PostNormLayer(dim, 5, 2048) for _ in range(5)))

    def forward(self, x: Tensor) -> Tensor:
        """Encode sequences."""
        z: Tensor = self.layers(self.project(x.transpose(1, 2)).transpose(1, 2))
        return z[:, -1]


def mosei_unimodal(name: str) -> nn.Module:
    """Return the network on one modality; for text it is E1."""
    network = nn.Sequential(Transformer(MOSEI_FEATURES[name], 120), mlp(120, 64, 1))
    return Plain(name, network)


def mosei_late() -> nn.Module:
    """Return E2: late fusion of one transformer per modality."""
    widths = {"vision": 60, "audio": 120, "text": 120}
    networks = {name: Transformer(MOSEI_FEATURES[name], width) for name, width in widths.items()}
    return Late(dict(networks), mlp(300, 128, 1))


def mosei_early() -> nn.Module:
    """Return early fusion: one transformer on the concatenated features."""
    network = nn.Sequential(Transformer(sum(MOSEI_FEATURES.values()), 300), mlp(300, 128, 1))
    return Early(tuple(MOSEI_FEATURES), network)


def mosei_gate() -> nn.Module:
    """Return the gate with two routes, at the sizes in the paper's costs, not those in its text."""
    network = nn.Sequential(Transformer(sum(MOSEI_FEATURES.values()), 10), nn.Linear(10, 2))
    return Early(tuple(MOSEI_FEATURES), network)


def mosei_dynmm() -> Routed:
    """Return DynMM on CMU-MOSEI: text only, or all modalities."""
    return Routed([mosei_unimodal("text"), mosei_late()], mosei_gate())
