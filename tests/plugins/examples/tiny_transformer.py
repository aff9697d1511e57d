"""An encoder of the library `transformers`, with random weights, over all tokens."""

import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer


class TinyTransformer(nn.Module):
    def __init__(self, shapes, num_outputs, *, width: int = 16, num_layers: int = 1):
        super().__init__()
        config = BertConfig(hidden_size=width, num_attention_heads=2, intermediate_size=2 * width)
        config._attn_implementation = "sdpa"
        self.embed = nn.ModuleDict({name: nn.Linear(f, width) for name, (_, f) in shapes.items()})
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(num_layers))
        self.head = nn.Linear(width, num_outputs)

    def forward(self, inputs):
        x_BSD = torch.cat([self.embed[name](x_BTF) for name, x_BTF in inputs.items()], dim=1)
        for layer in self.layers:
            output = layer(x_BSD)
            x_BSD = output[0] if isinstance(output, tuple) else output
        return self.head(x_BSD.mean(dim=1))
