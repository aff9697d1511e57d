"""Make a fusion model of a plain `nn.Module` from a plug-in.

Its constructor is `(shapes, num_outputs, *, ...)`: {modality: (tokens, features)}, the number of
outputs, and keyword-only parameters with annotations and defaults, which a study can search. Its
`forward` takes `inputs`, {modality: (B, T, F)}, and, if it has that parameter, `lengths`,
{modality: (B,)}; it returns the outputs (B, C).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sftsearch.trainables.config import ConfigError, ModelConfig, TrainConfig
from sftsearch.trainables.cost import Cost, count_gmacs
from sftsearch.trainables.models.fusion import FusionModel, ModelEntry
from sftsearch.trainables.operations import Operations, explain_uncountable
from sftsearch.trainables.plugin_functions import PluginError, describe_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.layers.tokens import Tokens

INPUTS, LENGTHS = "inputs", "lengths"
FIRST = ("shapes", "num_outputs")
"""The first parameters of a constructor."""
_RESERVED = {"kind", "modalities", *(field.name for field in dataclasses.fields(TrainConfig))}
"""Keys of a branch in a study file that no parameter may have."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PluginConfig(ModelConfig):
    """The configuration of a plug-in's model; each model has a subclass with its own fields."""

    model: ClassVar[type[nn.Module]]

    def canonical(self, spec: DatasetSpec) -> Self:
        """Return the canonical form; see `ModelConfig.canonical`.

        Raises:
            ConfigError: the constructor refuses the values, by a ValueError.
            PluginError: the model cannot be built or counted.
        """
        chosen = dataclasses.replace(self, modalities=self.chosen(spec))
        count_cost(spec, chosen)
        return chosen

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of the constructor, by name."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "modalities"]
        return {name: getattr(self, name) for name in names}


class PluginModel(FusionModel):
    """A fusion model that a plug-in's module computes.

    A module without the parameter `lengths` reads zeros after the end of a sample, and for a
    missing modality. One with it gets the lengths of all modalities, and must not read beyond them.
    """

    def __init__(self, spec: DatasetSpec, config: PluginConfig) -> None:
        """Build the module.

        Raises:
            ConfigError: its constructor raised a ValueError.
            PluginError: its constructor raised another error.
        """
        nn.Module.__init__(self)  # it has neither tokenizer nor head
        self.config, self.modalities, self.mixing_points = config, config.chosen(spec), ()
        shapes = {
            name: (spec.modalities[name].num_tokens, spec.modalities[name].num_features)
            for name in self.modalities
        }
        self.takes_lengths = LENGTHS in inspect.signature(config.model.forward).parameters
        try:
            self.net = config.model(shapes, spec.num_outputs, **config.parameters())
        except ValueError as error:
            raise ConfigError(f"`{config.model.__name__}`: {error}") from error
        except Exception as error:
            raise PluginError(
                f"The constructor of `{config.model.__name__}` failed for {config.parameters()}: "
                f"{describe_error(error)}"
            ) from error

    def forward(
        self,
        inputs: dict[str, Tensor],
        lengths: dict[str, Tensor] | None = None,
        after_layer: Callable[[int, Tokens], Tokens] | None = None,
    ) -> Tensor:
        """Compute the outputs of a batch; see `FusionModel.forward`."""
        own, known = {name: inputs[name] for name in self.modalities}, lengths or {}
        if self.takes_lengths:
            outputs: Tensor = self.net(
                own, lengths={name: _length(x, known.get(name)) for name, x in own.items()}
            )
        else:
            outputs = self.net({name: _padded(x, known.get(name)) for name, x in own.items()})
        return outputs

    def route(
        self, number: int, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Compute the outputs (B, C) as in evaluation, where one sample may be a batch."""
        assert number == 0, number
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            return self(inputs, lengths)  # type: ignore[no-any-return]
        finally:
            for module, mode in modes.items():
                module.training = mode


def _length(x_BTF: Tensor, known: Tensor | None) -> Tensor:
    if known is not None:
        return known
    return torch.full((len(x_BTF),), x_BTF.shape[1], dtype=torch.int64, device=x_BTF.device)


def _padded(x_BTF: Tensor, known: Tensor | None) -> Tensor:
    """Return the samples with zeros after their lengths, whatever was there."""
    if known is None:
        return x_BTF
    is_padding_BT = torch.arange(x_BTF.shape[1], device=x_BTF.device) >= known[:, None]
    return x_BTF.masked_fill(is_padding_BT[:, :, None], 0.0)


# ------------------------------------------------------------------ the entry of a model


def model_entry(model: type[nn.Module], *, source_hash: str, paper: str) -> ModelEntry:
    """Return the catalog entry of a plug-in's module.

    Args:
        model: the module's class.
        source_hash: SHA-256 of its source.
        paper: where it comes from, shown by `sftsearch models`.

    Raises:
        PluginError: its constructor or `forward` has another signature; all faults are named.
    """
    if faults := signature_faults(model):
        raise PluginError(f"`{model.__name__}` is not a model: {' '.join(faults)}")
    return ModelEntry(
        config=_config_class(model),
        build=PluginModel,
        cost=count_cost,
        paper=paper,
        mixes_latents=False,
        source_hash=source_hash,
    )


def signature_faults(model: type[nn.Module]) -> list[str]:
    """Return what is wrong with the signatures of a module, a sentence each; none if it fits."""
    faults = _forward_faults(model)
    parameters = list(inspect.signature(model.__init__).parameters.values())[1:]
    names = tuple(one.name for one in parameters[:2])
    if names != FIRST or any(one.kind is not one.POSITIONAL_OR_KEYWORD for one in parameters[:2]):
        faults.append(
            "Its constructor must begin with (self, shapes, num_outputs), but begins with "
            f"({', '.join(('self', *names))})."
        )
    own = parameters[2:]
    try:
        hints = typing.get_type_hints(model.__init__)
    except (NameError, TypeError) as error:
        return [*faults, f"The annotations of its constructor cannot be read: {error}."]
    for one in own:
        faults += _parameter_faults(one, hints)
    return faults


def _forward_faults(model: type[nn.Module]) -> list[str]:
    names = list(inspect.signature(model.forward).parameters.values())[1:]
    if not names or names[0].name != INPUTS:
        got = names[0].name if names else "nothing"
        return [f"The first parameter of its forward must be called `inputs`, but is `{got}`."]
    unknown = [
        one.name for one in names[1:] if one.name != LENGTHS and one.default is inspect._empty
    ]
    if unknown:
        return [
            f"Its forward gets `inputs` and `lengths` only, but has `{', '.join(unknown)}`: give "
            "it a default, or remove it."
        ]
    return []


def _parameter_faults(one: inspect.Parameter, hints: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a searchable parameter of a constructor."""
    if one.kind is not one.KEYWORD_ONLY:
        return [f"`{one.name}` must come after a `*`: parameters to search are keyword-only."]
    faults = []
    if one.name in _RESERVED:
        why = "a key of study files" if one.name in ("kind", "modalities") else "one of training"
        faults.append(f"`{one.name}` is already {why}: rename the parameter.")
    if one.name not in hints:
        faults.append(f"`{one.name}` needs a type annotation, such as `int`.")
    if one.default is inspect._empty:
        faults.append(f"`{one.name}` needs a default.")
    elif not _is_plain(one.default):
        faults.append(
            f"The default of `{one.name}` must be a number, text, None or a tuple of them."
        )
    return faults


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _config_class(model: type[nn.Module]) -> type[PluginConfig]:
    """Return a configuration class with the keyword-only parameters of a constructor."""
    hints = typing.get_type_hints(model.__init__)
    own = [
        one
        for one in inspect.signature(model.__init__).parameters.values()
        if one.kind is one.KEYWORD_ONLY
    ]
    made: Any = dataclasses.make_dataclass(
        f"{model.__name__}Config",
        [(one.name, hints[one.name], dataclasses.field(default=one.default)) for one in own],
        bases=(PluginConfig,),
        frozen=True,
        kw_only=True,
    )
    made.model = model
    return made  # type: ignore[no-any-return]


# ------------------------------------------------------------------ the price


def count_cost(spec: DatasetSpec, config: PluginConfig) -> Cost:
    """Count the cost of a plug-in's model on the meta device, where tensors have no values.

    No formula of a paper exists for it, so `gflops` are its multiply-adds, as `gmacs` are.

    Raises:
        ConfigError: its constructor refuses the configuration.
        PluginError: it cannot be built or run without values, an operation cannot be counted, or
            its outputs have another shape than (B, C).
    """
    names = config.chosen(spec)
    shapes = {name: dataclasses.astuple(spec.modalities[name]) for name in names}
    key = json.dumps(
        [config.parameters(), list(shapes.items()), spec.num_outputs], default=dict, sort_keys=True
    )
    if (config.model, key) not in _counted:
        _counted[config.model, key] = _count_cost(spec, config)
    return _counted[config.model, key]


_counted: dict[tuple[type[nn.Module], str], Cost] = {}
"""Costs by model and everything that determines its layers."""


def _count_cost(spec: DatasetSpec, config: PluginConfig) -> Cost:
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            model = PluginModel(spec, config)
        seen = Operations()
        try:
            with torch.no_grad(), seen:
                shape = tuple(model.route(0, *_meta_batch(spec, model.modalities)).shape)
            gmacs = count_gmacs(model, spec, config)
        except Exception as error:
            raise PluginError(explain_uncountable(config.model.__name__, error)) from error
    if shape != (1, spec.num_outputs):
        raise PluginError(
            f"`{config.model.__name__}` must return outputs of shape (B, {spec.num_outputs}), but "
            f"returned {shape} for a batch of one sample."
        )
    if unknown := seen.uncounted():
        raise PluginError(
            f"The price of `{config.model.__name__}` cannot be counted: it uses "
            f"{', '.join(unknown)}. Register a count with "
            "torch.utils.flop_counter.register_flop_formula in the plug-in, or do without it."
        )
    return Cost(gmacs, gmacs, sum(p.numel() for p in model.parameters()))


def _meta_batch(
    spec: DatasetSpec, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the inputs and lengths of one sample, as `count_gmacs` makes them."""
    with torch.device("meta"):
        shapes = {name: spec.modalities[name] for name in names}
        inputs = {m: torch.empty(1, one.num_tokens, one.num_features) for m, one in shapes.items()}
        lengths = {
            m: torch.empty(1, dtype=torch.int64) for m, one in shapes.items() if one.variable_length
        }
    return inputs, lengths
