"""Check that a plug-in's module keeps the contract of the models that studies train.

Shapes: B batch, T samples in time, F features, C outputs.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sftsearch.datasets.spec import ModalitySpec
from sftsearch.trainables.cost import GIGA
from sftsearch.trainables.operations import operation_counter
from sftsearch.trainables.plugin_functions import describe_error
from sftsearch.trainables.plugin_model import (
    PluginConfig,
    PluginModel,
    count_cost,
    model_entry,
    signature_faults,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.datasets.spec import DatasetSpec

BATCH = 4
TOLERANCE = 1e-9
"""Of outputs in float64, where only the order of sums may differ."""
MODALITIES = {
    "audio": ModalitySpec(num_tokens=12, num_features=5, variable_length=True),
    "image": ModalitySpec(num_tokens=1, num_features=6),
    "text": ModalitySpec(num_tokens=9, num_features=3, variable_length=True),
}
"""Sequences of several lengths, and one vector."""
CLASSES = tuple(f"class_{index}" for index in range(7))


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    passed: bool
    message: str
    """What is wrong and what to do; of some checks that passed, a remark."""


class Subject:
    """A module with its default parameters, and random batches for it."""

    def __init__(self, model: type[nn.Module], spec: DatasetSpec) -> None:
        self.spec = spec
        entry = model_entry(model, source_hash="", paper="")
        config = entry.config()
        assert isinstance(config, PluginConfig)
        self.config = dataclasses.replace(config, modalities=config.chosen(spec))

    def build(self, seed: int = 0) -> PluginModel:
        """Build the model with weights from a seed, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = PluginModel(self.spec, self.config)
        model.eval()
        return model

    @functools.cached_property
    def exact(self) -> PluginModel:
        """The model in float64."""
        return self.build().double()

    def run(self, inputs: dict[str, Tensor], lengths: dict[str, Tensor] | None = None) -> Tensor:
        """Return the outputs in float64; random numbers are the same at each call."""
        torch.manual_seed(0)
        with torch.no_grad():
            outputs: Tensor = self.exact(inputs, lengths)
        return outputs

    def batch(self, seed: int = 1, size: int = BATCH) -> dict[str, Tensor]:
        """Return random inputs in float64."""
        random = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(
                size, one.num_tokens, one.num_features, generator=random, dtype=torch.float64
            )
            for name, one in self.spec.modalities.items()
        }

    def lengths(self) -> dict[str, Tensor]:
        """Return lengths from half to all of each modality of variable length."""
        return {
            name: torch.linspace(max(1, one.num_tokens // 2), one.num_tokens, BATCH).long()
            for name, one in self.spec.modalities.items()
            if one.variable_length
        }


def checked_spec(like: DatasetSpec) -> DatasetSpec:
    """Return a spec with `MODALITIES` and `CLASSES`."""
    return dataclasses.replace(like, modalities=MODALITIES, classes=CLASSES)


def check_model(model: type[nn.Module], spec: DatasetSpec) -> list[Check]:
    """Run all checks on a module with its default parameters.

    Args:
        model: the module's class.
        spec: of the dataset whose modalities it gets.

    Returns:
        every check that ran; without a fitting signature or price, no later one does.
    """
    if faults := signature_faults(model):
        return [Check("signature", False, fault) for fault in faults]
    results = [Check("signature", True, "")]
    subject = Subject(model, spec)
    results.append(_run("price", _price, subject))
    if results[-1].passed:
        results += [_run(name, check, subject) for name, check in _CHECKS.items()]
    return results


def _run(name: str, check: Callable[[Subject], str], subject: Subject) -> Check:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fault = check(subject)
    except ValueError as error:
        return Check(name, False, str(error))
    except Exception as error:
        return Check(name, False, describe_error(error))
    return Check(name, not fault or fault.startswith(_REMARK), fault.removeprefix(_REMARK))


_REMARK = "remark: "


# ------------------------------------------------------------------ the checks


def _price(subject: Subject) -> str:
    """Count the cost, which must not need values."""
    cost = count_cost(subject.spec, subject.config)
    if cost.gmacs == 0:
        return "It has no multiply-adds, so its price is zero: use layers with weights."
    macs = round(cost.gmacs * GIGA)
    return f"{_REMARK}{macs:,} multiply-adds and {cost.parameters:,} parameters."


def _count(subject: Subject) -> str:
    """Count again on a real sample, which must give the price."""
    model = subject.build()
    inputs = {name: x.float() for name, x in subject.batch(size=1).items()}
    was = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # its LSTM is one operation, which cannot be counted
    try:
        with operation_counter() as counter, torch.no_grad():
            model(inputs)
    finally:
        torch._C._set_mkldnn_enabled(was)
    real, price = counter.get_total_flops() // 2, count_cost(subject.spec, subject.config)
    if real != round(price.gmacs * GIGA):
        return (
            f"A real sample takes {real:,} multiply-adds, but the price is "
            f"{round(price.gmacs * GIGA):,}: the work must not depend on values or on the device."
        )
    built = sum(p.numel() for p in model.parameters())
    if built != price.parameters:
        return f"It was built with {built:,} parameters, but priced with {price.parameters:,}."
    return ""


def _outputs(subject: Subject) -> str:
    """Compute outputs in evaluation and training."""
    model, inputs = subject.build(), subject.batch()
    plain, expected = {k: x.float() for k, x in inputs.items()}, (BATCH, subject.spec.num_outputs)
    for mode in ("evaluation", "training"):
        outputs = model.train(mode == "training")(plain)
        if tuple(outputs.shape) != expected:
            return f"In {mode}, outputs must be of shape {expected}, but got {(*outputs.shape,)}."
        if not outputs.isfinite().all():
            return f"In {mode}, outputs are not finite."
    return ""


def _determinism(subject: Subject) -> str:
    """Compare two evaluations, and two models of one seed."""
    inputs, model = subject.batch(), subject.exact
    if not torch.equal(model(inputs), model(inputs)):
        return "Two evaluations differ: draw random numbers only while `self.training`."
    for key, weights in subject.build(3).state_dict().items():
        if not torch.equal(weights, subject.build(3).state_dict()[key]):
            return (
                f"`{key}` differs between two models of one seed: draw weights from torch's "
                "random numbers only."
            )
    return ""


def _independence(subject: Subject) -> str:
    """Compare a batch with its samples alone."""
    inputs = subject.batch()
    together = subject.run(inputs)
    singles = [{k: x[i : i + 1] for k, x in inputs.items()} for i in range(BATCH)]
    alone = torch.cat([subject.run(one) for one in singles])
    if not _is_close(alone, together):
        return (
            "In evaluation, the output of a sample depends on the other samples of its batch: "
            "compute nothing over the first dimension."
        )
    return ""


def _reading(subject: Subject) -> str:
    """Change one modality at a time."""
    inputs, others = subject.batch(), subject.batch(seed=2)
    outputs = subject.run(inputs)
    for name in subject.exact.modalities:
        if torch.equal(subject.run({**inputs, name: others[name]}), outputs):
            return f"The outputs do not depend on the modality '{name}': read all of `inputs`."
    return ""


def _padding(subject: Subject) -> str:
    """Change the values after a sample's length."""
    inputs, lengths = subject.batch(), subject.lengths()
    if not lengths:
        return f"{_REMARK}all samples have the same length."
    if not subject.exact.takes_lengths:
        return f"{_REMARK}lengths are ignored; it reads zeros after the end of a sample."
    outputs = subject.run(inputs, lengths)
    for name, length_B in lengths.items():
        x_BTF = inputs[name]
        is_padding_BT = torch.arange(x_BTF.shape[1]) >= length_B[:, None]
        changed = {**inputs, name: x_BTF.masked_fill(is_padding_BT[:, :, None], 1e3)}
        if not _is_close(subject.run(changed, lengths), outputs):
            return (
                f"Values of '{name}' after a sample's length change the outputs: mask them by "
                "`lengths`."
            )
    return ""


def _missing(subject: Subject) -> str:
    """Leave out one modality at a time, by the length 0."""
    inputs = subject.batch()
    for name in subject.exact.modalities:
        missing = {**subject.lengths(), name: torch.zeros(BATCH, dtype=torch.int64)}
        if not subject.run(inputs, missing).isfinite().all():
            return (
                f"Without the modality '{name}' (length 0) outputs are not finite: divide by "
                "`lengths.clamp(min=1)`, and do not let all tokens be masked in attention."
            )
    return ""


def _gradients(subject: Subject) -> str:
    """Compute the gradient of every parameter."""
    model = subject.build().train()
    outputs = model({name: x.float() for name, x in subject.batch().items()})
    outputs.square().sum().backward()
    without = [k for k, p in model.net.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        return (
            f"{len(without)} parameters get no gradient ({', '.join(without[:5])}): use them, or "
            "remove them."
        )
    if not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
        return "A gradient is not finite."
    return ""


def _one_sample(subject: Subject) -> str:
    """Train on a batch of one sample, as the last batch of an epoch may be."""
    inputs = {name: x.float() for name, x in subject.batch(size=1).items()}
    try:
        subject.build().train()(inputs)
    except ValueError as error:
        return (
            f"Training fails on a batch of one sample, which the last one of an epoch may be: "
            f"{error}."
        )
    return ""


def _weights(subject: Subject) -> str:
    """Write the weights as safetensors and read them into another model."""
    model, inputs = subject.exact, subject.batch()
    outputs, subject.exact = subject.run(inputs), subject.build(seed=5).double()
    try:
        content = save({name: t.contiguous() for name, t in model.state_dict().items()})
    except RuntimeError as error:
        if "share" not in str(error):
            raise
        return "Two of its weights share their memory, which safetensors cannot store: copy one."
    subject.exact.load_state_dict(load(content))
    if not torch.equal(subject.run(inputs), outputs):
        return (
            "A model with the saved weights gives other outputs: keep all state in parameters and "
            "buffers."
        )
    return ""


def _is_close(outputs: Tensor, expected: Tensor) -> bool:
    return torch.allclose(outputs, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


_CHECKS: dict[str, Callable[[Subject], str]] = {
    "count": _count,
    "outputs": _outputs,
    "determinism": _determinism,
    "independence": _independence,
    "reading": _reading,
    "padding": _padding,
    "missing modality": _missing,
    "gradients": _gradients,
    "one sample": _one_sample,
    "weights": _weights,
}
"""Checks that run if the model has a price. They return a fault, or a remark, or nothing."""
