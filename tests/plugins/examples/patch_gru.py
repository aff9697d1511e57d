"""An encoder: the last state of a recurrent network over the samples of a patch."""

from torch import nn


class PatchGRU(nn.Module):
    def __init__(self, num_samples, num_features, dim):
        if dim % 2:
            raise ValueError("dim must be even")
        super().__init__()
        self.gru = nn.GRU(num_features, dim, batch_first=True)

    def forward(self, patches):
        return self.gru(patches)[0][:, -1]


ENCODERS = {"patch_gru": PatchGRU}
