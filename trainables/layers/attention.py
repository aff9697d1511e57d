"""Self-attention. Shapes: B batch, T tokens with CLS, D width, H heads, d = D / H."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention over the fused kernel, which never holds the (T, T) weights.

    Same function and same initial distribution as `nn.MultiheadAttention`: queries, keys and
    values in one projection, biases everywhere.

    Shape: (B, T, D) -> (B, T, D).
    """

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_projection = nn.Linear(dim, 3 * dim)
        self.out_projection = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_projection.weight)
        nn.init.zeros_(self.in_projection.bias)
        nn.init.zeros_(self.out_projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token of x attend to every token of x."""
        batch, tokens, dim = x.shape
        # Chunks of whole rows, so that their gradients are joined by one copy, not two.
        heads = (batch, tokens, self.num_heads, -1)
        q_BHTd, k_BHTd, v_BHTd = (
            part.view(heads).transpose(1, 2) for part in self.in_projection(x).chunk(3, dim=-1)
        )
        y_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd)
        out: Tensor = self.out_projection(y_BHTd.transpose(1, 2).reshape(batch, tokens, dim))
        return out
