"""A recurrent layer for each modality; the last real state of each is classified."""

import torch
from torch import nn


class GatedRecurrent(nn.Module):
    def __init__(self, shapes, num_outputs, *, width: int = 16, two_way: bool = False):
        super().__init__()
        cells = {
            name: nn.GRU(num_features, width, batch_first=True, bidirectional=two_way)
            for name, (_, num_features) in shapes.items()
        }
        self.cells = nn.ModuleDict(cells)
        self.head = nn.Linear(len(shapes) * width * (1 + two_way), num_outputs)

    def forward(self, inputs, lengths):
        states = []
        for name, x_BTF in inputs.items():
            state_BTD, length_B11 = self.cells[name](x_BTF)[0], lengths[name][:, None, None]
            last_B1D = (length_B11 - 1).clamp(min=0).expand(-1, 1, state_BTD.shape[2])
            states.append((state_BTD.gather(1, last_B1D) * (length_B11 > 0))[:, 0])
        return self.head(torch.cat(states, dim=1))
