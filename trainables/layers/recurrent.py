"""Recurrence over tokens. Shapes: B batch, T tokens, F features, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.tokens import Sequence


class LSTM(nn.Module):
    """One layer of LSTM on a sequence, with PyTorch's weights and by its fused kernel.

    That kernel has no float16 on CPUs, and `torch.export` takes its list of weights for a change
    of the module: `step_by_step` gives the same there, two to twelve times slower.

    Tokens that are not valid are behind all others, so none of the others depends on them.

    Shape: (B, T, F) -> (B, T, D); the mask is kept.
    """

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(num_features, dim, batch_first=True)

    def forward(self, sequence: Sequence) -> Sequence:
        """Return the state after each token."""
        x, valid, _ = sequence
        if torch.compiler.is_exporting() or _is_half_on_cpu(x):
            return Sequence(step_by_step(self.cell, x), valid)
        return Sequence(self.cell(x)[0], valid)


def step_by_step(cell: nn.LSTM, x: Tensor) -> Tensor:
    """Return the states of a one-layer LSTM by plain products, (B, T, F) -> (B, T, D)."""
    in_weight, state_weight, in_bias, state_bias = cell.all_weights[0]
    from_input = F.linear(x, in_weight, in_bias)
    h = c = in_bias.new_zeros(x.shape[0], cell.hidden_size)
    states = []
    for from_token in from_input.unbind(dim=1):
        gates = from_token + F.linear(h, state_weight, state_bias)
        take, keep, new, show = gates.chunk(4, dim=1)
        c = keep.sigmoid() * c + take.sigmoid() * new.tanh()
        h = show.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states, dim=1)


def _is_half_on_cpu(x: Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    return torch.float16 in (x.dtype, autocast)


def last_valid(sequence: Sequence) -> Tensor:
    """Return the last valid token, (B, T, D) -> (B, D); where there is none, zeros."""
    z, valid, _ = sequence
    if valid is None:
        return z[:, -1]
    count = valid.sum(dim=1)[:, None]
    place = (count - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, z.shape[-1])
    return z.gather(1, place).squeeze(1).where(count > 0, 0.0)


def lstm_parameters(num_features: int, dim: int) -> int:
    """Return the parameters of an LSTM, whose two biases are apart: 4 D (F + D) + 8 D."""
    return lstm_macs(num_features, dim) + 8 * dim


def lstm_macs(num_features: int, dim: int) -> int:
    """Return the multiply-adds of a token: 4 D (F + D)."""
    return 4 * dim * (num_features + dim)
