"""Test that a wrong export is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sftsearch.orchestrator.deployment.export import describe_model
from sftsearch.orchestrator.deployment.folder import ExportError
from sftsearch.orchestrator.deployment.graphs import as_inputs, graphs_of, trace
from sftsearch.orchestrator.deployment.verify import Verification, verify

from deployed import deployed, samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from sftsearch.trainables.deployed_model import DeployedModel


def verified(
    model: DeployedModel, change: Callable[[str, np.ndarray[Any, Any]], Any]
) -> Verification:
    """Verify the model's own graphs, with changed outputs."""
    graphs = graphs_of(model)

    def run(name: str, inputs: dict[str, Any]) -> Any:
        given = as_inputs(model, {key: torch.from_numpy(x) for key, x in inputs.items()})
        return change(name, graphs[name](*given).numpy())

    return verify(model, run, describe_model(model), samples(model))


@pytest.mark.parametrize("name", ["concat", "dynmm"])
def test_equal_graphs_are_accepted(name: str) -> None:
    found = verified(deployed(name), lambda _, outputs: outputs)
    assert found.largest_error < 1e-6
    assert found.num_samples == 7


def test_errors_within_the_tolerance_are_accepted_and_reported() -> None:
    found = verified(deployed("concat"), lambda _, scores: scores + np.float32(8e-6))
    assert found.largest_error == pytest.approx(8e-6, rel=0.05)


def test_a_larger_error_is_refused() -> None:
    """The allowed error of a score of 1/7 is 1e-5 + 1e-4 / 7 = 2.4e-5."""
    with pytest.raises(ExportError, match=r"differs .*scores by 0.0002\d?\)"):
        verified(deployed("concat"), lambda _, scores: scores + np.float32(2e-4))


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ExportError, match="differs"):
        verified(deployed("concat"), lambda _, scores: scores * np.nan)


def test_a_gate_that_chooses_another_route_is_refused() -> None:
    def swap(name: str, outputs: Any) -> Any:
        return 1 - outputs if name == "gate" else outputs

    with pytest.raises(ExportError, match=r"decides differently .*gate"):
        verified(deployed("dynmm"), swap)


def test_a_wrong_route_is_refused_even_if_no_sample_takes_it() -> None:
    model = deployed("dynmm")
    with torch.no_grad():
        model.members[0].network.gate.contract.weight.zero_()
        model.members[0].network.gate.contract.bias.copy_(torch.tensor([5.0, 0.0]))

    def spoil(name: str, outputs: Any) -> Any:
        return outputs * 0.9 if name == "route_2" else outputs

    assert verified(model, lambda _, outputs: outputs).num_decisions > 0
    with pytest.raises(ExportError, match="route_2"):
        verified(model, spoil)


def test_a_close_choice_of_a_gate_is_not_compared() -> None:
    """Both routes have the score 0, so rounding decides."""
    model = deployed("dynmm")
    with torch.no_grad():
        model.members[0].network.gate.contract.weight.zero_()
        model.members[0].network.gate.contract.bias.zero_()

    def swap(name: str, outputs: Any) -> Any:
        return 1 - outputs if name == "gate" else outputs

    assert verified(model, swap).num_close >= 42  # 7 samples, 2 batch sizes, 3 sets of modalities


def test_a_model_that_torch_cannot_export_is_refused() -> None:
    """The number of steps of its loop depends on the values of the samples."""

    class Loop(torch.nn.Module):
        def forward(self, inputs: dict[str, Any], lengths: dict[str, Any]) -> Any:
            x = inputs["audio"].sum()
            while x.item() > 1:
                x = x / 2
            return x

    with pytest.raises(ExportError, match=r"cannot be exported to torch.export: .*safetensors"):
        trace(deployed("concat"), Loop())
