"""The base class of all fusion models: a tokenizer, layers from tokens to tokens, a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sftsearch.trainables.config import TrainConfig, TransformerConfig
from sftsearch.trainables.layers.blocks import Block, Each, Head
from sftsearch.trainables.layers.tokens import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sftsearch.datasets.spec import DatasetSpec, Task
    from sftsearch.trainables.config import ModelConfig
    from sftsearch.trainables.cost import Cost
    from sftsearch.trainables.layers.tokens import Tokens

    Batch = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]
    """Inputs {modality: (B, T, F)}, lengths {modality: (B,)}, labels (B,) or (B, C)."""
    Losses = Callable[[Tensor, Tensor], Tensor]


class Stage(NamedTuple):
    """A part of training that begins with zero moments and a new learning-rate schedule."""

    first: int
    """Its first epoch, from 0."""
    length: int
    """Its number of epochs."""
    learning_rate: float | None = None
    """Its initial learning rate; None: that of the training configuration."""
    is_judged: bool = True
    """Whether the validation loss of its epochs shows how good the trained model is; if not, the
    schedule `plateau` and `patience` ignore them."""


class FusionModel(nn.Module):
    """A token transformer; models differ in their layers.

    Shape: {modality: (B, T, F)} -> outputs (B, C). Only `modalities` are read.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        config: ModelConfig,
        layers: Iterable[nn.Module],
        *,
        readout: Iterable[str] = (),
        average: bool = False,
        tokenizer: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        """Assemble a model.

        Args:
            spec: the dataset.
            config: the configuration.
            layers: from tokens to tokens. Manifold mixup may mix after layers whose attribute
                `mixing_point` is true.
            readout: sequences whose CLS tokens are classified.
            average: average their outputs instead of summing them.
            tokenizer: replaces `Tokenizer`, which is the SFT paper's.
            head: replaces `Head`; `readout` and `average` are then not read.
        """
        super().__init__()
        self.config = config
        self.modalities = config.chosen(spec)
        if tokenizer is None or head is None:
            assert isinstance(config, TransformerConfig), "other models bring both"
            tokenizer = tokenizer or Tokenizer(spec, config)
            head = head or Head(
                readout, dim=config.dim, num_outputs=spec.num_outputs, average=average
            )
        self.tokenizer, self.layers, self.head = tokenizer, nn.ModuleList(layers), head
        self.mixing_points = tuple(
            i for i, layer in enumerate(self.layers) if getattr(layer, "mixing_point", False)
        )

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None = None,
        after_layer: Callable[[int, Tokens], Tokens] | None = None,
    ) -> Tensor:
        """Compute the outputs of a batch.

        Args:
            inputs: {modality: (B, T, F)}.
            lengths: {modality: (B,)}, number of real samples; the others are never read. 0: the
                modality is missing. A modality without an entry has no padding.
            after_layer: called after each of `mixing_points` with its index and the tokens; its
                result replaces the tokens.
        """
        tokens = self.tokenizer(inputs, lengths)
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if after_layer is not None and i in self.mixing_points:
                tokens = after_layer(i, tokens)
        outputs: Tensor = self.head(tokens)
        return outputs

    num_routes: int = 1
    """Routes through the model; if several, a gate chooses one per sample in evaluation."""

    def route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the outputs (B, C) of all samples by one route; also run the gate (its cost)."""
        assert number == 0, number
        return self(inputs, lengths)  # type: ignore[no-any-return]

    deployed_dtype: torch.dtype = torch.float32
    """Precision in which a trained model is deployed."""

    is_solved: bool = False
    """Whether `begin_training` is the whole training, which then has one epoch without steps."""

    def begin_training(self, task: Task, train: Iterable[Batch]) -> Tensor | None:
        """Prepare for the first epoch.

        This must be deterministic, and change only weights and buffers.

        Args:
            task: of the dataset.
            train: batches of the training split; can be iterated repeatedly.

        Returns:
            of a solved model, its outputs (N, C) for the training split, on the CPU.
        """
        return None

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of each sample, (B,); by default the task's.

        Args:
            losses: the task's loss: outputs (B, C) and labels -> (B,).
            outputs: of `forward` in training, (B, ...): a model whose loss needs more than (B, C)
                returns more in training; in evaluation all return (B, C).
            labels: of the batch.
        """
        return losses(outputs, labels)

    def stage(self, epoch: int, num_epochs: int) -> Stage:
        """Return the training stage of an epoch, from 0; by default training has one stage."""
        return Stage(0, num_epochs)

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Prepare for training epoch `epoch`, from 0; for schedules, not used in evaluation."""

    def end_epoch(
        self, epoch: int, losses: Losses, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> None:
        """Update the model after a training epoch; store state only in buffers.

        Args:
            epoch: its number, from 0.
            losses: the task's loss, see `losses`.
            train: batches of the training split; can be iterated repeatedly.
            validation: the same for the validation split.
        """

    measured: tuple[str, ...] = ()
    """Names that `measure` always returns; it may return more, depending on the split."""

    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return additional metrics of the model, measured on the batches of a split."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A listed model: its configuration class, constructor, cost and paper."""

    config: type[ModelConfig]
    build: Callable[[DatasetSpec, Any], FusionModel]
    cost: Callable[[DatasetSpec, Any], Cost]
    """A closed form that builds nothing; must equal the counts of the built model."""
    paper: str
    mixes_latents: bool = True
    """Whether it supports manifold mixup."""
    own_loss: bool = False
    """Whether it trains on a loss of its own instead of the task's."""
    is_solved: bool = False
    """See `FusionModel.is_solved`."""
    source_hash: str = ""
    """SHA-256 of the source of a plug-in's model; it is part of a configuration's id."""


def solved_training(config: TrainConfig) -> TrainConfig:
    """Return the training configuration of a solved model: one epoch.

    The only other field that matters defines the reported loss of a regression.
    """
    return TrainConfig(epochs=1, regression_loss=config.regression_loss)


SFT_PAPER = "Ding et al. 2021, Sparse Fusion for Multimodal Transformers, arXiv:2111.11992"


def block_layers(
    config: TransformerConfig, names: Collection[str], count: int, *, report_received: bool = False
) -> list[nn.Module]:
    """Return `count` layers with one block for each sequence of `names`.

    `report_received`: the last layer also returns the attention that each token received.
    """
    return [
        Each(
            {
                name: Block(
                    dim=config.dim,
                    num_heads=config.num_heads,
                    dropout=config.dropout,
                    report_received=report_received and i == count - 1,
                )
                for name in names
            }
        )
        for i in range(count)
    ]
