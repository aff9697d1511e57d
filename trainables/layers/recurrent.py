"""LSTM over tokens. Shapes: B batch, T tokens, F features, D width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftsearch.trainables.layers.tokens import Sequence


class LSTM(nn.Module):
    """One LSTM layer on a sequence, with PyTorch's weights and fused kernel.

    The kernel lacks float16 on CPUs, and `torch.export` mistakes its list of weights for a change
    of the module: there `step_by_step` computes the same, two to twelve times slower.

    Invalid tokens come last, so no valid token depends on them.

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
    """Compute the states of a one-layer LSTM step by step, (B, T, F) -> (B, T, D)."""
    in_weight, state_weight, in_bias, state_bias = cell.all_weights[0]
    from_input = F.linear(x, in_weight, in_bias)
    h = c = in_bias.new_zeros(x.shape[0], cell.hidden_size)
    states = []
    for from_token in from_input.unbind(dim=1):
        gates = from_token + F.linear(h, state_weight, state_bias)
        input_gate, forget_gate, update, output_gate = gates.chunk(4, dim=1)
        c = forget_gate.sigmoid() * c + input_gate.sigmoid() * update.tanh()
        h = output_gate.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states, dim=1)


def _is_half_on_cpu(x: Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    return torch.float16 in (x.dtype, autocast)


def last_valid(sequence: Sequence) -> Tensor:
    """Return the last valid token, (B, T, D) -> (B, D); zeros if there is none."""
    z, valid, _ = sequence
    if valid is None:
        return z[:, -1]
    count = valid.sum(dim=1)[:, None]
    index = (count - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, z.shape[-1])
    return z.gather(1, index).squeeze(1).where(count > 0, 0.0)


def lstm_parameters(num_features: int, dim: int) -> int:
    """Return the parameters of an LSTM with its two separate biases: 4 D (F + D) + 8 D."""
    return lstm_macs(num_features, dim) + 8 * dim


def lstm_macs(num_features: int, dim: int) -> int:
    """Return the multiply-adds per token: 4 D (F + D)."""
    return 4 * dim * (num_features + dim)
