"""What every fusion model is: a tokenizer, layers from tokens to tokens, a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sftsearch.trainables.layers.blocks import Block, Each, Head
from sftsearch.trainables.layers.tokens import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.config import TransformerConfig
    from sftsearch.trainables.cost import Cost
    from sftsearch.trainables.layers.tokens import Tokens

    Batch = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]
    """Inputs {modality: (B, T, F)}, lengths {modality: (B,)}, labels (B,) or (B, C)."""
    Losses = Callable[[Tensor, Tensor], Tensor]


class FusionModel(nn.Module):
    """A token transformer; models differ in their layers alone.

    Shape: {modality: (B, T, F)} -> outputs (B, C). Modalities that are not chosen are not read.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        config: TransformerConfig,
        layers: Iterable[nn.Module],
        *,
        readout: Iterable[str] = (),
        average: bool = False,
        tokenizer: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        """Put a model together.

        Args:
            spec: the data set.
            config: the configuration.
            layers: from tokens to tokens. Manifold mixup may mix behind those with an attribute
                `mixing_point` that is true.
            readout: sequences whose CLS tokens are classified.
            average: average their outputs instead of adding them up.
            tokenizer: another one than the SFT paper's, as `Tokenizer`.
            head: another one than `Head`, which `readout` and `average` are for.
        """
        super().__init__()
        self.config = config
        self.modalities = config.chosen(spec)
        self.tokenizer = tokenizer or Tokenizer(spec, config)
        self.layers = nn.ModuleList(layers)
        self.head = head or Head(
            readout, dim=config.dim, num_outputs=spec.num_outputs, average=average
        )
        self.mixing_points = tuple(
            i for i, layer in enumerate(self.layers) if getattr(layer, "mixing_point", False)
        )

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None = None,
        after_layer: Callable[[int, Tokens], Tokens] | None = None,
    ) -> Tensor:
        """Give the outputs of a batch.

        Args:
            inputs: {modality: (B, T, F)}.
            lengths: {modality: (B,)}, its real samples; the others are never read. 0: the modality
                is missing. A modality that is not named is whole.
            after_layer: called behind each of `mixing_points` with its number and the tokens;
                what it returns goes on.
        """
        tokens = self.tokenizer(inputs, lengths)
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if after_layer is not None and i in self.mixing_points:
                tokens = after_layer(i, tokens)
        outputs: Tensor = self.head(tokens)
        return outputs

    num_routes: int = 1
    """Ways through the model; with several, a gate chooses one for each sample in evaluation."""

    def route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Give the outputs (B, C) of all samples by one route, and ask the gate, as they cost."""
        assert number == 0, number
        return self(inputs, lengths)  # type: ignore[no-any-return]

    def losses(self, losses: Losses, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of each sample, (B,): the task's, where a model has no own.

        Args:
            losses: the task's: outputs (B, C) and labels -> (B,).
            outputs: of `forward` in training, (B, ...): a model whose loss needs more than (B, C)
                gives more there; in evaluation all give (B, C).
            labels: of the batch.
        """
        return losses(outputs, labels)

    def begin_epoch(self, epoch: int, num_epochs: int) -> None:
        """Prepare to train an epoch, the first is 0: for schedules, which evaluation ignores."""

    def end_epoch(
        self, epoch: int, losses: Losses, train: Iterable[Batch], validation: Iterable[Batch]
    ) -> None:
        """Learn from an epoch that was trained; only buffers keep what is learnt.

        Args:
            epoch: its number, the first is 0.
            losses: the task's, see `losses`.
            train: batches of the training split, read anew by every loop over them.
            validation: the same of the validation split.
        """

    measured: tuple[str, ...] = ()
    """Names of what `measure` always gives; of other splits it may tell more or less beside."""

    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return what only data tell of the model beside its accuracy, of batches of a split."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A listed model: how it is configured, built and priced."""

    config: type[TransformerConfig]
    build: Callable[[DatasetSpec, Any], FusionModel]
    cost: Callable[[DatasetSpec, Any], Cost]
    """A closed form, without building anything; equal to what the built model counts."""
    paper: str
    mixes_latents: bool = True
    """Whether manifold mixup can train it."""


SFT_PAPER = "Ding et al. 2021, Sparse Fusion for Multimodal Transformers, arXiv:2111.11992"


def block_layers(
    config: TransformerConfig, names: Collection[str], count: int, *, report_received: bool = False
) -> list[nn.Module]:
    """Return `count` layers with one block for each sequence of `names`.

    `report_received`: the last of them says how much attention each token received.
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
