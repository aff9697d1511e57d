"""Vectors through a linear layer, sequences through a convolution and attention."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend


class VectorsAndSequences(nn.Module):
    def __init__(self, shapes, num_outputs, *, width: int = 8, pool: str = "mean"):
        if pool not in ("mean", "amax"):
            raise ValueError(f"pool must be mean or amax, but got {pool}")
        super().__init__()
        self.pool, self.embed = pool, nn.ModuleDict()
        for name, (num_tokens, num_features) in shapes.items():
            conv = nn.Conv1d(num_features, width, kernel_size=3, padding=1)
            self.embed[name] = nn.Linear(num_features, width) if num_tokens == 1 else conv
        self.head = nn.Linear(width, num_outputs)

    def forward(self, inputs):
        parts = [self.embed[name](x[:, 0]) for name, x in inputs.items() if x.shape[1] == 1]
        for name, x_BTF in inputs.items():
            if x_BTF.shape[1] > 1:
                z_BTD = self.embed[name](x_BTF.transpose(1, 2)).transpose(1, 2)
                parts.append(getattr(attend(z_BTD, z_BTD, z_BTD), self.pool)(dim=1))
        return self.head(torch.stack(parts).sum(dim=0))
