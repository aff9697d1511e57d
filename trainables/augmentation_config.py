"""Training options that change the samples of a batch at random; see `augmentation`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftsearch.trainables.config_checks import (
    ConfigError,
    check_modality,
    check_names,
    check_number,
)

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """Strengths of the augmentations, in the order in which they are applied; 0: none."""

    time_crop: float = 0.0
    """Largest share of a sample's time that is cut off, at both ends together; what is left is
    stretched to the length of the sample. All modalities keep the same part."""
    rotation: float = 0.0
    """Standard deviation, in degrees, of the angle by which three-axis sensors are rotated, about a
    random axis. Each modality has its own rotation, the same for all its triples of features."""
    rotate: tuple[str, ...] | None = None
    """The modalities that `rotation` rotates; None: those with `axes: 3` in the dataset."""
    scaling: float = 0.0
    """Standard deviation of the logarithm of a factor, one for each modality of a sample."""
    jitter: float = 0.0
    """Standard deviation of noise on every number, in units of its standard deviation over the
    training split."""
    token_dropout: float = 0.0
    """Probability that a token's samples are replaced by their mean over the training split."""
    time_mask: float = 0.0
    """Largest share of a sample's time in which all its features are masked by their mean over the
    training split (SpecAugment)."""
    frequency_mask: float = 0.0
    """Largest share of adjacent features that are masked likewise over a whole sample."""
    spectrograms: tuple[str, ...] | None = None
    """The modalities that `time_mask` and `frequency_mask` apply to; None: all."""
    modality_dropout: float = 0.0
    """Probability that a modality of a sample is missing; at least one stays."""

    def __post_init__(self) -> None:
        for name in ("time_crop", "token_dropout", "modality_dropout"):
            check_number(name, getattr(self, name), least=0, below=1)
        for name in ("rotation", "scaling", "jitter"):
            check_number(name, getattr(self, name), least=0, below=math.inf)
        for name in ("time_mask", "frequency_mask"):
            check_number(name, getattr(self, name), least=0, below=1)
        for name in ("rotate", "spectrograms"):
            if getattr(self, name) is not None:  # JSON has lists
                object.__setattr__(self, name, check_names(name, getattr(self, name)))

    @property
    def augments(self) -> bool:
        """Whether any augmentation is on."""
        return any(getattr(self, name) for name in STRENGTHS)

    def rotated(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Return the modalities that `rotation` rotates, in the dataset's order.

        Raises:
            ConfigError: a modality is unknown or has no triples of features, or none has `axes`.
        """
        declared = tuple(name for name, shape in spec.modalities.items() if shape.axes == 3)
        if self.rotate is None and not declared:
            raise ConfigError(
                f"`rotation` needs a modality with three axes, but '{spec.name}' declares none. "
                "Name them in `rotate`, or prepare the dataset with `--option axes=NAME=3`.",
                "rotation",
            )
        for name in self.rotate or ():
            check_modality(spec, name, "rotate")
            if spec.modalities[name].num_features % 3:
                raise ConfigError(
                    f"`rotate` needs modalities of three axes, but {name} has "
                    f"{spec.modalities[name].num_features} features.",
                    "rotate",
                )
        chosen = declared if self.rotate is None else self.rotate
        return tuple(name for name in spec.modalities if name in chosen)

    def masked(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Return the modalities that the masks of SpecAugment apply to, in the dataset's order.

        Raises:
            ConfigError: a modality is unknown.
        """
        for name in self.spectrograms or ():
            check_modality(spec, name, "spectrograms")
        return tuple(name for name in spec.modalities if name in (self.spectrograms or (name,)))


STRENGTHS = tuple(
    field.name for field in dataclasses.fields(AugmentationConfig) if field.default == 0.0
)
"""Fields of the augmentations, of which 0 is none."""
