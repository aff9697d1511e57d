"""Export a deployed model as graphs: one, or for each gated replicate a gate and its routes.

ONNX's `If` takes one condition for the whole batch, so a gated model in one graph would run every
route on every sample. As separate graphs it runs the gate, then each sample's route alone.

Shapes: B batch, T samples of a modality, F features, C outputs.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sftsearch.orchestrator.deployment.folder import ExportError
from sftsearch.trainables.deployed_model import ROUTE, SCORES, DeployedModel, TrainedNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch.export import ExportedProgram

LENGTH = "_length"
"""Suffix of the input with the lengths of a modality."""
LARGEST = 1 << 20
"""Largest batch, and length of a modality, of an exported program."""
_EXAMPLES = 3  # a batch of one would be exported as a constant
_NOISY = "torch.onnx._internal.exporter._registration"  # names packages that are not needed

Inputs = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Samples {modality: (B, T, F)} and lengths {modality: (B,)}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """The names of the graphs of one replicate, or of a whole model without a gate."""

    gate: str | None
    """None: there is a single route."""
    routes: tuple[str, ...]


class _Whole(nn.Module):
    output = SCORES

    def __init__(self, model: DeployedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.model(inputs, lengths)[SCORES]
        return scores


class _Gate(nn.Module):
    output = ROUTE

    def __init__(self, replicate: TrainedNetwork) -> None:
        super().__init__()
        self.replicate = replicate

    def forward(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        return self.replicate.choose(inputs, lengths).argmax(dim=1)


class _Route(nn.Module):
    output = SCORES

    def __init__(self, replicate: TrainedNetwork, number: int) -> None:
        super().__init__()
        self.replicate, self.number = replicate, number

    def forward(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor]) -> Tensor:
        return self.replicate.on_route(self.number, inputs, lengths)


def members_of(model: DeployedModel) -> list[Member]:
    """Return the names of a model's graphs."""
    if not model.is_gated:
        return [Member(gate=None, routes=("model",))]
    several = len(model.members) > 1
    prefixes = [f"replicate_{i + 1}_" if several else "" for i in range(len(model.members))]
    return [
        Member(
            gate=f"{prefix}gate",
            routes=tuple(f"{prefix}route_{i + 1}" for i in range(one.num_routes)),
        )
        for prefix, one in zip(prefixes, model.members, strict=True)
    ]


def graphs_of(model: DeployedModel) -> dict[str, nn.Module]:
    """Return the modules to export, by name of their graph."""
    if not model.is_gated:
        return {"model": _Whole(model)}
    found: dict[str, nn.Module] = {}
    for names, replicate in zip(members_of(model), model.members, strict=True):
        assert names.gate is not None, "the model is gated"
        found[names.gate] = _Gate(replicate)
        found |= {name: _Route(replicate, i) for i, name in enumerate(names.routes)}
    return found


def input_names(model: DeployedModel) -> list[str]:
    """Return the names of a graph's inputs, in order: modalities, then lengths."""
    return [*model.modalities, *(f"{name}{LENGTH}" for name in model.variable_modalities)]


def as_inputs(model: DeployedModel, arrays: Mapping[str, Tensor]) -> Inputs:
    """Split a graph's inputs by name into samples and lengths by modality."""
    lengths = {name: arrays[f"{name}{LENGTH}"] for name in model.variable_modalities}
    return {name: arrays[name] for name in model.modalities}, lengths


def trace(model: DeployedModel, graph: nn.Module) -> ExportedProgram:
    """Export a graph as a program whose batch size, and lengths that vary, are dynamic.

    Raises:
        ExportError: torch cannot export the model, such as one of a plug-in.
    """
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    inputs, shapes = {}, {}
    for name in model.modalities:
        one = model.spec.modalities[name]
        num_samples = one.num_tokens + one.variable_length  # not the one that is padded to
        inputs[name] = torch.zeros(_EXAMPLES, num_samples, one.num_features)
        shapes[name] = {0: batch}
        if one.variable_length:
            shapes[name][1] = torch.export.Dim(f"samples_of_{name}", min=1, max=LARGEST)
    lengths = {
        name: torch.full((_EXAMPLES,), model.spec.modalities[name].num_tokens)
        for name in model.variable_modalities
    }
    dynamic = {"inputs": shapes, "lengths": {name: {0: batch} for name in lengths}}
    try:
        with torch.no_grad():
            program = torch.export.export(graph.eval(), (inputs, lengths), dynamic_shapes=dynamic)
    except Exception as error:  # of dynamo, of its solver of shapes, or of the model
        raise _failed("torch.export", error) from error
    _anonymize(program)
    return program


def _anonymize(program: ExportedProgram) -> None:
    """Remove what only concerns this machine: paths of source files and the example."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    program.example_inputs = None  # would be the archive's only pickle


def save_pt2(program: ExportedProgram, file: Path) -> None:
    """Write a program as an archive of JSON and raw weights."""
    torch.export.save(program, file)


def save_onnx(
    program: ExportedProgram, file: Path, names: list[str], output: str, facts: Mapping[str, str]
) -> None:
    """Convert a program to ONNX and write it.

    Args:
        program: from `trace`.
        file: to write.
        names: of the inputs, in order.
        output: its name.
        facts: the metadata of the file.

    Raises:
        ExportError: an operation of the model has no form in ONNX.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        with _quiet():
            converted = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names, output_names=[output]
            )
    except Exception as error:  # of torch, onnx or onnxscript
        raise _failed("ONNX", error) from error
    assert converted is not None, "it is not written by torch"
    ClearMetadataAndDocStringPass()(converted.model)  # paths of source files
    converted.model.metadata_props.update(facts)
    converted.save(file)


def _failed(what: str, error: Exception) -> ExportError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ExportError(
        f"The model cannot be exported to {what}: {reason}. Nothing was written; "
        "`--to safetensors` writes its weights."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch's converter says about itself and packages that it does not need."""
    noisy = logging.getLogger(_NOISY)
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)
