"""The audio branch of the MSAF paper's RAVDESS network. Shapes: B batch, C classes.

The video branch, a ResNeXt-50 of 25,882,056 parameters, is not included: it needs pretrained
weights.

Source: Su et al. 2020, arXiv:2012.07175, table 1, with the sizes of the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_COEFFICIENTS, NUM_FRAMES = 13, 212
"""MFCCs of 2.45 seconds."""


class AudioBranch(nn.Module):
    """Convolutions over time; an MSAF can be inserted after each of the two stages.

    Shape: (B, 13, 212) -> (B, C). The stages return (B, 32, 208) and (B, 64, 26).

    Batch norm also averages over time, so a single sample has a variance.
    """

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(NUM_COEFFICIENTS, 32, 7, padding=2),
            nn.ReLU(),
            nn.BatchNorm1d(32),
            nn.Conv1d(32, 32, 7, padding=2),
            nn.ReLU(),
        )
        self.second = nn.Sequential(
            nn.MaxPool1d(8),
            nn.BatchNorm1d(32),
            nn.Dropout(0.2),
            nn.Conv1d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.BatchNorm1d(64),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.4), nn.Linear(64 * (NUM_FRAMES - 4) // 8, num_classes)
        )

    def forward(
        self, x: Tensor, after_stage: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Compute the logits.

        Args:
            x: (B, 13, 212).
            after_stage: called after each stage with its number, 0 or 1, and its features; its
                result replaces the features.
        """
        for i, stage in enumerate((self.first, self.second)):
            x = stage(x)
            if after_stage is not None:
                x = after_stage(i, x)
        scores: Tensor = self.head(x)
        return scores
