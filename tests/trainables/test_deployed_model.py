"""Test deployed models: raw samples in, scores out.

Shapes: B batch, T samples of a modality, F features, C outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sftsearch.trainables.deployed_model import to_scores

from deployed import RAGGED, deployed, samples, statistics

if TYPE_CHECKING:
    from sftsearch.trainables.deployed_model import DeployedModel


def given(model: DeployedModel, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return samples and lengths as tensors, by modality."""
    arrays = {name: torch.from_numpy(x) for name, x in samples(model, **options).items()}
    lengths = {name: arrays[f"{name}_length"] for name in model.variable_modalities}
    return {name: arrays[name] for name in model.modalities}, lengths


def test_scores_are_those_of_the_network_on_normalized_samples() -> None:
    model = deployed("concat")
    inputs, lengths = given(model)
    scaled = {
        name: torch.from_numpy((inputs[name].numpy().astype(np.float64) - mean) / std).float()
        for name, (mean, std) in statistics().items()
    }
    logits_BC = model.members[0].network(scaled, lengths).double()
    expected = logits_BC.exp() / logits_BC.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(model(inputs, lengths)["scores"].double(), expected)


def test_values_after_a_sample_do_not_matter() -> None:
    model = deployed("concat")
    inputs, lengths = given(model)
    expected = model(inputs, lengths)["scores"]
    steps = torch.arange(13)
    inputs["type"][steps >= lengths["type"][:, None]] = torch.nan
    assert torch.equal(model(inputs, lengths)["scores"], expected)


@pytest.mark.parametrize("num_samples", [1, 5, 13, 20])
def test_samples_may_be_shorter_or_longer_than_in_the_dataset(num_samples: int) -> None:
    """Samples after the 13th are not read, and missing ones are padding."""
    model = deployed("concat")
    inputs, lengths = given(model, size=2)
    whole = torch.randn(2, 20, 5)
    lengths["type"] = torch.tensor([num_samples, 1])
    padded = torch.cat([whole[:, :num_samples], torch.zeros(2, 13, 5)], dim=1)[:, :13]
    of_dataset = {"type": lengths["type"].clamp(max=13)}
    expected = model({**inputs, "type": padded}, lengths | of_dataset)["scores"]
    found = model({**inputs, "type": whole[:, :num_samples]}, lengths)["scores"]
    assert torch.equal(found, expected)


def test_a_modality_without_lengths_is_not_padded() -> None:
    model = deployed("concat")
    inputs, _ = given(model)
    whole = {"type": torch.full((7,), 13), "text": torch.full((7,), 9)}
    assert torch.equal(model(inputs)["scores"], model(inputs, whole)["scores"])


def test_several_replicates_give_the_mean_of_their_scores() -> None:
    model = deployed("concat", replicates=2)
    inputs, lengths = given(model)
    first, second = (one(inputs, lengths) for one in model.members)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(model(inputs, lengths)["scores"], (first + second) / 2)


def test_a_gated_model_returns_the_route_that_gave_the_scores() -> None:
    model = deployed("dynmm")
    inputs, lengths = given(model, size=20)
    found = model(inputs, lengths)
    assert set(found["route"].tolist()) == {0, 1}
    by_route = torch.stack([model.members[0].on_route(i, inputs, lengths) for i in (0, 1)])
    expected = by_route[found["route"], torch.arange(20)]
    torch.testing.assert_close(found["scores"], expected)


def test_scores_by_task() -> None:
    """The softmax of (0, ln 3) is (1/4, 3/4); the sigmoid of ln 3 is 3/4."""
    outputs = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.float64)
    quarter = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(to_scores("classification", outputs), quarter)
    half = torch.tensor([[0.5, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(to_scores("multilabel", outputs), half)
    assert torch.equal(to_scores("regression", outputs), outputs)


def test_fixed_lengths_have_no_length_inputs() -> None:
    shapes = {n: replace(s, variable_length=False) for n, s in RAGGED.modalities.items()}
    spec = replace(RAGGED, modalities=shapes)
    assert deployed("concat", spec=spec).variable_modalities == ()
    assert deployed("concat").variable_modalities == ("type", "text")


def test_float64_convolutions_of_minirocket_equal_those_of_torch() -> None:
    """The product over shifted samples is the same convolution."""
    convolutions = deployed("minirocket").members[0].network.tokenizer.modalities[0]
    x = torch.randn(3, 5, 13, dtype=torch.float64)
    for number, dilation in enumerate(convolutions.dilations):
        kernels = convolutions.kernels[number]
        expected = torch.nn.functional.conv1d(
            x, kernels, padding=4 * dilation.step, dilation=dilation.step
        )
        torch.testing.assert_close(convolutions.convolve(x, None, number)[0], expected)
