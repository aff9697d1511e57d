"""A trained model for use outside a study: raw samples in, probabilities or numbers out.

Normalization, padding, masks and missing modalities are inside, so it needs nothing but samples as
the dataset stores them.

Shapes: B batch, T samples of a modality (of the spec), F features, C outputs, N routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.models.gated import GatedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from sftsearch.datasets.spec import DatasetSpec, Task
    from sftsearch.trainables.models.fusion import FusionModel

    Statistics = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    """Mean and standard deviation, (F,) each, by modality."""

SCORES = "scores"
"""Output: probabilities (B, C), or numbers in the units of the labels (B, 1)."""
ROUTE = "route"
"""Output of a gated model: the route of each sample, from 0, (B,)."""


class TrainedNetwork(nn.Module):
    """One replicate: the normalization of its training split, and the network."""

    def __init__(self, spec: DatasetSpec, network: FusionModel, statistics: Statistics) -> None:
        """Take a network with its weights.

        Args:
            spec: of the dataset.
            network: on the CPU.
            statistics: those the network was trained with.
        """
        super().__init__()
        self.spec, self.network = spec, network.to(network.deployed_dtype).eval()
        self.network.requires_grad_(requires_grad=False)
        for name in network.modalities:
            for part, values in zip(("mean", "std"), statistics[name], strict=True):
                self.register_buffer(f"{part}_of_{name}", torch.tensor(values))

    @property
    def num_routes(self) -> int:
        """Number of routes through the network; more than one only if it is gated."""
        return self.network.num_routes

    def forward(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        """Compute the scores of raw samples, (B, C); see `DeployedModel.forward`."""
        return self.to_scores(self.network(*self.prepare(inputs, lengths)))

    def on_route(
        self, number: int, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]
    ) -> Tensor:
        """Compute the scores of all samples by one route, (B, C), without the gate."""
        assert isinstance(self.network, GatedModel), "only a gated network has routes"
        return self.to_scores(self.network.on_route(number, *self.prepare(inputs, lengths)))

    def choose(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> Tensor:
        """Return the gate's scores of the routes, (B, N); a sample takes the highest."""
        assert isinstance(self.network, GatedModel), "only a gated network has routes"
        return self.network.scores(*self.prepare(inputs, lengths))

    def prepare(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Normalize raw samples, and cut or pad modalities of variable length to T."""
        prepared, known = {}, {}
        for name in self.network.modalities:
            x_BTF, shape = inputs[name], self.spec.modalities[name]
            if shape.variable_length:
                given = lengths.get(name)
                length_B = x_BTF.new_full((len(x_BTF),), x_BTF.shape[1]) if given is None else given
                known[name] = length_B.long().clamp(0, shape.num_tokens)
                x_BTF = F.pad(x_BTF, (0, 0, 0, shape.num_tokens))[:, : shape.num_tokens]
            mean_F, std_F = (self.get_buffer(f"{part}_of_{name}") for part in ("mean", "std"))
            prepared[name] = ((x_BTF - mean_F) / std_F).to(self.network.deployed_dtype)
        return prepared, known

    def to_scores(self, outputs: Tensor) -> Tensor:
        """Convert the network's outputs (B, C) to scores."""
        return to_scores(self.spec.task, outputs).float()


class DeployedModel(nn.Module):
    """A trained model, or the mean of several replicates of it.

    Shape: {modality: (B, T, F)} and {modality: (B,)} -> {`scores`: (B, C), `route`: (B,)}.
    """

    def __init__(self, spec: DatasetSpec, networks: Sequence[TrainedNetwork]) -> None:
        """Combine the replicates of one configuration.

        Args:
            spec: of the dataset.
            networks: one, or several whose scores are averaged.
        """
        super().__init__()
        self.spec, self.classes = spec, spec.classes
        self.modalities: tuple[str, ...] = networks[0].network.modalities
        self.networks = nn.ModuleList(networks)
        self.eval()

    @property
    def members(self) -> list[TrainedNetwork]:
        """The replicates."""
        return list(self.networks)  # type: ignore[arg-type]

    @property
    def variable_modalities(self) -> tuple[str, ...]:
        """The modalities that have lengths, and may be missing."""
        return tuple(m for m in self.modalities if self.spec.modalities[m].variable_length)

    @property
    def is_gated(self) -> bool:
        """Whether a gate sends each sample along one of several routes."""
        return self.members[0].num_routes > 1

    def forward(
        self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compute the scores of raw samples.

        Args:
            inputs: {modality: (B, T', F)} as in the dataset's store, before normalization. T' is T;
                for a modality of variable length it may differ, and samples after the T-th are not
                read.
            lengths: {modality: (B,)}, number of real samples of modalities of variable length; the
                others are not read. 0: the modality is missing. A modality without an entry has T'.

        Returns:
            `scores`: probabilities, or for regression the number in the units of the labels; of
            several replicates the mean. `route`: of a single gated network.
        """
        known = lengths or {}
        found = [network(inputs, known) for network in self.members]
        results = {SCORES: found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)}
        if self.is_gated and len(found) == 1:
            results[ROUTE] = self.members[0].choose(inputs, known).argmax(dim=1)
        return results


def to_scores(task: Task, outputs: Tensor) -> Tensor:
    """Convert outputs (B, C) to probabilities; those of regression are unchanged."""
    if task == "classification":
        return outputs.softmax(dim=1)
    return outputs.sigmoid() if task == "multilabel" else outputs
