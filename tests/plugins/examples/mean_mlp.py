"""A plain module: the mean of each modality, and two layers."""

from itertools import pairwise

import torch
from torch import nn


class MeanMLP(nn.Module):
    def __init__(self, shapes, num_outputs, *, width: int = 32, depth: int = 1):
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be from 1, but got {width}, {depth}")
        super().__init__()
        features = sum(num_features for _, num_features in shapes.values())
        widths = [features] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(width, num_outputs)

    def forward(self, inputs):
        x = torch.cat([x_BTF.mean(dim=1) for x_BTF in inputs.values()], dim=1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)
