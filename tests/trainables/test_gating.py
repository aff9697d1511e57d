"""Test gates: the relaxed choice and its limits, the hard choice, and routes of samples.

Shapes: B batch, N routes, F features.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sftsearch.trainables.config import TransformerConfig
from sftsearch.trainables.layers.gating import (
    MLPGate,
    TransformerGate,
    choose,
    gumbel,
    harden,
    mean_of_valid,
    mlp_gate_part,
    relax,
    temperature,
    transformer_gate_part,
    weighted_sum,
)

from shapes import dataset_spec

SPEC = dataset_spec(2, first=(6, 4), second=(5, 3))
CONFIG = TransformerConfig(patch=2, dim=8, num_heads=2)


def scores(size: int = 50, num_routes: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(size, num_routes, generator=random, dtype=torch.float64)


def test_the_gumbel_choice_has_the_frequencies_of_the_softmax() -> None:
    torch.manual_seed(0)
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    chosen = relax(p.log().expand(200_000, 3), 0.5, noise=True).argmax(dim=1)
    shares = chosen.bincount(minlength=3) / 200_000
    # The standard error of the largest share is sqrt(0.21 / 2e5) = 0.001.
    torch.testing.assert_close(shares.double(), p, rtol=0, atol=2e-3)


def test_gumbel_noise_is_gumbel() -> None:
    """Mean 0.5772 (Euler) and variance pi^2 / 6, within four standard errors."""
    torch.manual_seed(0)
    noise = gumbel(torch.empty(200_000, dtype=torch.float64))
    assert noise.mean().item() == pytest.approx(0.577216, abs=4 * 1.2825 / 200_000**0.5)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    assert gumbel(torch.empty(200_000)).isfinite().all()


def test_scores_act_as_log_probabilities() -> None:
    """A constant added to all scores of a sample does not change the weights."""
    of_probabilities = F.softmax((F.softmax(scores(), dim=1)).log() / 0.3, dim=1)
    torch.testing.assert_close(relax(scores(), 0.3, noise=False), of_probabilities)


def test_low_temperature_chooses_and_high_temperature_averages() -> None:
    cold, hot = (relax(scores(), tau, noise=False) for tau in (1e-4, 1e6))
    torch.testing.assert_close(cold, harden(cold), rtol=0, atol=1e-9)
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 3), rtol=0, atol=1e-5)


def test_hard_row_is_exactly_one_hot_with_the_gradient_of_the_soft_one() -> None:
    target = torch.randn(50, 3, dtype=torch.float64)
    gradients = []
    for turn in (harden, lambda weights: weights):
        leaf = scores().requires_grad_()
        soft = relax(leaf, 0.7, noise=False)
        weights = turn(soft)
        if turn is harden:
            assert torch.equal(weights, F.one_hot(soft.argmax(dim=1), 3).double())
        (target * weights).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_outputs_are_summed_by_their_weights() -> None:
    outputs = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])]
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert weighted_sum(weights, outputs).tolist() == [[7.75, 15.5], [3.0, 4.0]]


def test_the_temperature_falls_geometrically() -> None:
    tau = [temperature(epoch, 500, start=1.0, end=1e-3) for epoch in (0, 250, 500)]
    assert tau == pytest.approx([1.0, 0.0316228, 1e-3], rel=1e-6)
    ratios = {
        round(
            temperature(e + 1, 500, start=1.0, end=1e-3) / temperature(e, 500, start=1.0, end=1e-3),
            12,
        )
        for e in range(499)
    }
    assert len(ratios) == 1
    assert temperature(3, 9, start=0.5, end=0.5) == 0.5


@pytest.mark.parametrize("routes", [[0, 2, 1, 0, 2, 2], [1] * 6, [2, 2, 2, 0, 0, 0]])
def test_sample_runs_through_its_route_only(routes: list[int]) -> None:
    x = torch.arange(12.0).view(6, 2)
    seen: list[tuple[int, list[int]]] = []

    def run(number: int, rows: Tensor | None) -> Tensor:
        taken = list(range(6)) if rows is None else rows.tolist()
        seen.append((number, taken))
        return x[taken] * 10**number

    outputs = choose(torch.tensor(routes), 3, run)
    assert torch.equal(outputs, x * 10.0 ** torch.tensor(routes)[:, None])
    assert seen == [
        (i, [row for row, route in enumerate(routes) if route == i]) for i in sorted(set(routes))
    ]


def test_traced_choice_selects_the_same_outputs() -> None:
    def run_all(routes: Tensor, x: Tensor) -> Tensor:
        return choose(routes, 3, lambda i, rows: (x if rows is None else x[rows]) * 10.0**i)

    class Chooser(torch.nn.Module):
        def forward(self, routes: Tensor, x: Tensor) -> Tensor:
            return run_all(routes, x)

    arguments = (torch.tensor([0, 2, 1, 0]), torch.randn(4, 2))
    program = torch.export.export(Chooser(), arguments)
    assert torch.equal(program.module()(*arguments), run_all(*arguments))
    on_meta = run_all(*(one.to("meta") for one in arguments))
    assert on_meta.shape == (4, 2)


def samples(size: int = 4) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(size, one.num_tokens, one.num_features, generator=random)
        for name, one in SPEC.modalities.items()
    }


def test_mlp_gate_reads_the_mean_of_real_patches() -> None:
    torch.manual_seed(0)
    gate = MLPGate(SPEC, CONFIG, hidden=5, num_routes=3)
    x, lengths = samples(), {"first": torch.tensor([6, 3, 0, 1])}
    expected = []
    for row in range(4):
        parts = []
        for name, real in (("first", int(lengths["first"][row])), ("second", 5)):
            num_features = SPEC.modalities[name].num_features
            padded = torch.cat([x[name][row, :real], torch.zeros(2, num_features)])
            patches = [padded[start : start + 2].flatten() for start in range(0, real, 2)]
            mean = sum(patches, torch.zeros(2 * num_features)) / max(len(patches), 1)
            parts.append(mean)
        hidden = torch.relu(gate.expand.weight @ torch.cat(parts) + gate.expand.bias)
        expected.append(gate.contract.weight @ hidden + gate.contract.bias)
    torch.testing.assert_close(gate(x, lengths), torch.stack(expected))


def test_mean_without_valid_positions_is_zero() -> None:
    x = torch.ones(2, 3, 4)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.equal(mean_of_valid(x, valid), torch.tensor([[1.0] * 4, [0.0] * 4]))


def test_gate_costs_match_their_parameters() -> None:
    """By hand the MLP has W1 of 5 x 14 with 5 biases, and W2 of 3 x 5 with 3."""
    mlp = MLPGate(SPEC, CONFIG, hidden=5, num_routes=3)
    part = mlp_gate_part(SPEC, CONFIG, hidden=5, num_routes=3)
    assert sum(p.numel() for p in mlp.parameters()) == part.parameters == 5 * 14 + 5 + 15 + 3
    assert part.macs == part.flops == 5 * 14 + 15
    light = TransformerGate(SPEC, CONFIG, num_layers=2, num_routes=3)
    part = transformer_gate_part(SPEC, CONFIG, num_layers=2, num_routes=3)
    assert sum(p.numel() for p in light.parameters()) == part.parameters


def test_the_transformer_gate_sees_each_modality() -> None:
    torch.manual_seed(0)
    gate = TransformerGate(SPEC, CONFIG, num_layers=1, num_routes=2)
    x = samples()
    scored = gate(x)
    assert scored.shape == (4, 2)
    for name in x:
        assert not torch.allclose(gate({**x, name: x[name] + 1}), scored)
