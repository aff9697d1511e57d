"""Test MMTM: its gains, its sizes, and its restriction to two modalities.

Shapes: B batch, C_m channels of a modality.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.layers.mmtm import MMTM, mmtm_macs, squeezed_width

from shapes import MOSEI, dataset_spec

SMALL = dataset_spec(3, first=(6, 4), second=(5, 4), third=(4, 4))
TWO: dict[str, Any] = {"modalities": ("audio", "text")}


def features(*, size: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((6, 3, 2), (4, 5))
    return [torch.randn(size, *shape, generator=random, dtype=torch.float64) for shape in shapes]


def module() -> MMTM:
    torch.manual_seed(0)
    return MMTM((6, 4), reduction=4).double()


@pytest.mark.parametrize(
    ("channels", "parameters", "flops"), [(64, 16_576, 131_584), (1024, 4_197_376, 33_562_624)]
)
def test_parameters_and_flops_match_the_msaf_paper(
    channels: int, parameters: int, flops: int
) -> None:
    """Two modalities with `channels` channels each, r = 4: 131.6K and 33.6M FLOPs."""
    both = (channels, channels)
    assert squeezed_width(both, 4) == channels
    assert sum(p.numel() for p in MMTM(both, reduction=4).parameters()) == parameters
    assert 2 * 4 * (mmtm_macs(both, channels) + channels) == flops  # for a batch of four, as MSAF
    assert flops == pytest.approx({64: 131.6e3, 1024: 33.6e6}[channels], rel=0.002)


def test_mmtm_matches_the_equations_of_its_code() -> None:
    made, (x, y) = module(), features()
    means = torch.cat([x.mean(dim=(2, 3)), y.mean(dim=2)], dim=1)
    e = (means @ made.squeeze.weight.T + made.squeeze.bias).clamp(min=0)
    assert e.shape[1] == 5  # int(2 * 10 / 4)
    for one, got, excite in zip((x, y), made([x, y]), made.excite, strict=True):
        gains = 1 / (1 + (-(e @ excite.weight.T + excite.bias)).exp())
        assert gains.min() > 0
        assert gains.max() < 1
        expected = one * gains.reshape(*gains.shape, *[1] * (one.dim() - 2))
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_zero_weights_halve_everything() -> None:
    made = module()
    for p in made.parameters():
        nn.init.zeros_(p)
    for got, x in zip(made(features()), features(), strict=True):
        assert torch.equal(got, x / 2)


@pytest.mark.medium
def test_gradients_match_finite_differences() -> None:
    made, xs = module(), [x.requires_grad_() for x in features()]
    assert torch.autograd.gradcheck(lambda *_: tuple(made(xs)), [*xs, *made.parameters()])


def test_invalid_positions_are_not_read() -> None:
    made, xs = module(), features()
    valid = [None, torch.arange(5) < torch.tensor([5, 2, 0])[:, None]]
    outputs = made(xs, valid)
    corrupted = [xs[0], xs[1].masked_fill(~valid[1].unsqueeze(1), torch.nan)]
    for got, expected in zip(made(corrupted, valid), outputs, strict=True):
        assert torch.equal(got, expected)
    cut = made([xs[0][1:2], xs[1][1:2, :, :2]])
    torch.testing.assert_close(outputs[0][1:2], cut[0])
    torch.testing.assert_close(outputs[1][1:2, :, :2], cut[1])
    missing = made([xs[0][2:], torch.zeros_like(xs[1][2:])])
    torch.testing.assert_close(outputs[0][2:], missing[0])


def test_mmtm_without_fusion_layers_is_late_fusion() -> None:
    options = {"dim": 8, "num_heads": 2, "num_layers": 2, "modalities": ("first", "third")}
    mmtm, late = (
        build_model(name, SMALL, MODELS[name].config(**options, **more), seed=0).eval().double()
        for name, more in (("mmtm", {"fusion_layers": []}), ("late_fusion", {}))
    )
    weights = late.state_dict().values()
    mmtm.load_state_dict(dict(zip(mmtm.state_dict(), weights, strict=True)))
    x = {m: torch.randn(2, n, 4, dtype=torch.float64) for m, n in (("first", 6), ("third", 4))}
    torch.testing.assert_close(mmtm(x), late(x), rtol=1e-14, atol=1e-14)


def test_added_cost_does_not_depend_on_the_layer() -> None:
    """At width 40 and r = 4, 80 numbers are squeezed to 40: 81 * 40 + 41 * 80 parameters."""
    late = MODELS["late_fusion"].cost(MOSEI, MODELS["late_fusion"].config(**TWO))
    for layers in ((1,), (12,), (3, 7)):
        cost = MODELS["mmtm"].cost(MOSEI, MODELS["mmtm"].config(fusion_layers=layers, **TWO))
        assert cost.parameters - late.parameters == len(layers) * (81 * 40 + 41 * 80)
        assert cost.gmacs - late.gmacs == pytest.approx(len(layers) * 2 * 80 * 40 / 1e9, rel=1e-6)


@pytest.mark.parametrize("names", [None, ("second",)])
def test_other_numbers_of_modalities_are_refused(names: tuple[str, ...] | None) -> None:
    """In building, in computing the cost, and in the canonical form."""
    config = MODELS["mmtm"].config(dim=8, num_heads=2, modalities=names)
    listed = ", ".join(names or SMALL.modalities)
    message = f"must be exactly two, but got {len(names or SMALL.modalities)}: {listed}"
    for refuse in (MODELS["mmtm"].build, MODELS["mmtm"].cost):
        with pytest.raises(ConfigError, match=message):
            refuse(SMALL, config)
    with pytest.raises(ConfigError, match=message):
        config.canonical(SMALL)


def test_equal_outcomes_share_a_canonical_configuration() -> None:
    config = MODELS["mmtm"].config

    def same(*options: dict[str, Any]) -> bool:
        return len({str(config(**TWO, **one).canonical(MOSEI)) for one in options}) == 1

    assert same({}, {"fusion_layers": [12, 11]}, {"fusion_layers": (11, 12)})
    assert same({"fusion_layers": []}, {"fusion_layers": [], "reduction": 7})
    assert same({"reduction": 100}, {"reduction": 160})  # both squeeze to one number
    assert not same({}, {"reduction": 5})
    assert not same({}, {"fusion_layers": [12]})


def test_invalid_options_are_refused() -> None:
    config = MODELS["mmtm"].config
    with pytest.raises(ConfigError, match=r"fusion_layers=\[5\], num_layers=4"):
        config(num_layers=4, fusion_layers=[5])
    with pytest.raises(ConfigError, match="`reduction` must be a whole number from 1"):
        config(reduction=0)
    with pytest.raises(ConfigError, match=r"reduction=161, dim=40"):
        config(reduction=161)
