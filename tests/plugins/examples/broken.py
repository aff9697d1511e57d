"""Two models with everything wrong."""

import torch
from torch import nn


class WrongSignature(nn.Module):
    def __init__(self, shapes, outputs, width: int = 8, *, depth=2, epochs: int = 3, kind: str):
        super().__init__()

    def forward(self, inputs, mask):
        return inputs


class WrongBehavior(nn.Module):
    def __init__(self, shapes, num_outputs):
        super().__init__()
        self.layer, self.unused = nn.Linear(5, num_outputs), nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(num_outputs)

    def forward(self, inputs, lengths):
        mean_BF = inputs["audio"].sum(dim=1) / lengths["audio"][:, None]
        noise = torch.rand(len(mean_BF), 1, device=mean_BF.device)
        return self.norm(self.layer(mean_BF - mean_BF.mean(dim=0)) + noise)
