"""Build and price the encoders of plug-ins, which make the features of a token of its samples.

An encoder is an `nn.Module` with the constructor `(num_samples, num_features, dim)`. Its `forward`
turns patches (N, P, F) into features (N, D), each patch by itself; samples that are not real are
zero.

Shapes: N patches, P samples of a patch, F features of a sample, D width of a token.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.operations import Operations, explain_uncountable, operation_counter
from sftsearch.trainables.plugin_functions import FUNCTIONS, PluginError, describe_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.trainables.plugin_functions import PluginFunction


def probe(encoder: Callable[..., nn.Module]) -> type[nn.Module]:
    """Return a model around an encoder, to check it as one: a sample is a single patch."""

    class Probe(nn.Module):
        def __init__(self, shapes: dict[str, tuple[int, int]], num_outputs: int) -> None:
            super().__init__()
            width = 8
            self.encoders = nn.ModuleList(encoder(*shape, width) for shape in shapes.values())
            self.head = nn.Linear(width * len(shapes), num_outputs)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            pairs = zip(self.encoders, inputs.values(), strict=True)
            outputs: Tensor = self.head(torch.cat([one(x_NPF) for one, x_NPF in pairs], dim=1))
            return outputs

    Probe.__name__ = getattr(encoder, "__name__", "encoder")
    return Probe


class Counted(NamedTuple):
    """The cost of an encoder on all tokens of a modality."""

    macs: int
    parameters: int


def build_encoder(name: str, num_samples: int, num_features: int, dim: int) -> nn.Module:
    """Build an encoder.

    Args:
        name: of a loaded encoder.
        num_samples: P.
        num_features: F.
        dim: D.

    Raises:
        ConfigError: its constructor raised a ValueError: it has no such sizes.
        PluginError: its constructor raised another error.
    """
    sizes = f"num_samples={num_samples}, num_features={num_features}, dim={dim}"
    try:
        encoder: nn.Module = FUNCTIONS["tokenizer"][name].call(num_samples, num_features, dim)
    except ValueError as error:
        raise ConfigError(f"The encoder `{name}` refuses {sizes}: {error}", "tokenizer") from error
    except Exception as error:
        raise PluginError(
            f"The constructor of the encoder `{name}` failed for {sizes}: {describe_error(error)}"
        ) from error
    return encoder


def count_encoder(
    name: str, num_tokens: int, num_samples: int, num_features: int, dim: int
) -> Counted:
    """Count an encoder's multiply-adds and parameters on the meta device.

    Args:
        name: of a loaded encoder.
        num_tokens: patches of a sample, N.
        num_samples: P.
        num_features: F.
        dim: D.

    Raises:
        ConfigError: it has no such sizes.
        PluginError: it cannot be built or run without values, an operation cannot be counted, or
            its features have another shape than (N, D).
    """
    loaded = FUNCTIONS["tokenizer"][name]  # a changed file is another one
    return _count(loaded, name, num_tokens, num_samples, num_features, dim)


@functools.cache
def _count(
    loaded: PluginFunction,
    name: str,
    num_tokens: int,
    num_samples: int,
    num_features: int,
    dim: int,
) -> Counted:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        encoder = build_encoder(name, num_samples, num_features, dim).eval()
        patches = torch.empty(num_tokens, num_samples, num_features)
        seen = Operations()
        try:
            with torch.no_grad(), seen:
                shape = tuple(encoder(patches).shape)
            with torch.no_grad(), operation_counter() as counter:
                encoder(patches)
        except Exception as error:
            raise PluginError(explain_uncountable(name, error)) from error
    if shape != (num_tokens, dim):
        raise PluginError(
            f"The encoder `{name}` must return features of shape (N, {dim}) for N patches, but "
            f"returned {shape} for {num_tokens}."
        )
    if unknown := seen.uncounted():
        raise PluginError(
            f"The price of the encoder `{name}` cannot be counted: it uses {', '.join(unknown)}. "
            "Register a count with torch.utils.flop_counter.register_flop_formula in the plug-in, "
            "or do without it."
        )
    parameters = sum(p.numel() for p in encoder.parameters())
    return Counted(counter.get_total_flops() // 2, parameters)
