"""The networks of the DynMM paper have its printed sizes and multiply-adds.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sftsearch.trainables.layers import dynmm_paper as paper
from sftsearch.trainables.layers.attention import SelfAttention

if TYPE_CHECKING:
    from collections.abc import Callable

IMDB = {"text": (300,), "image": (4096,)}
Network = TypeVar("Network", bound=nn.Module)
MOSEI = {"vision": (50, 35), "audio": (50, 74), "text": (50, 300)}


def on_meta(
    make: Callable[[], Network], shapes: dict[str, tuple[int, ...]], size: int = 1
) -> tuple[Network, dict[str, Tensor]]:
    """Return a network in evaluation mode and a batch, both without data."""
    with torch.device("meta"):
        return make().eval(), {name: torch.empty(size, *one) for name, one in shapes.items()}


def thop_macs(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Count as the authors' tool does: only linear layers, convolutions and batch norms.

    A batch norm counts two per number. The tool does not see the projections of attention.
    """
    found = []

    def note(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.BatchNorm1d):
            found.append(2 * given[0].numel())
        else:
            found.append(output.numel() * int(module.weight[0].numel()))  # type: ignore[index, union-attr, operator]

    hidden = {id(m) for a in model.modules() if isinstance(a, SelfAttention) for m in a.modules()}
    for module in model.modules():
        counted = isinstance(module, nn.Linear | nn.Conv1d | nn.BatchNorm1d)
        if counted and id(module) not in hidden:
            module.register_forward_hook(note)
    model(inputs)
    return sum(found)


def all_macs(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Count every matrix product, including those of attention."""
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize(
    ("make", "shapes", "parameters", "macs"),
    [
        (paper.imdb_text, IMDB, 691_223, 689_664),
        (paper.imdb_image, IMDB, None, 4_992_512),
        (paper.imdb_late, IMDB, 10_311_279, 10_306_136),
        (paper.imdb_early, IMDB, None, 5_048_408),
        (paper.imdb_gate, IMDB, 563_074, 562_944),
        (lambda: paper.mosei_unimodal("text"), MOSEI, 2_805_049, 124_687_744),
        (lambda: paper.mosei_unimodal("audio"), MOSEI, None, 123_331_744),
        (lambda: paper.mosei_unimodal("vision"), MOSEI, None, 123_097_744),
        (paper.mosei_late, MOSEI, 6_921_857, 309_587_528),
        (paper.mosei_early, MOSEI, None, 313_373_528),
        (paper.mosei_gate, MOSEI, 221_602, 10_444_520),
    ],
)
def test_parameters_and_multiply_adds_match_the_paper(
    make: Callable[[], nn.Module],
    shapes: dict[str, tuple[int, ...]],
    parameters: int | None,
    macs: int,
) -> None:
    """The multiply-adds round to the paper's 0.7, 5.0, 10.3, 5.1, 124.7, 123.3, 123.1, 309.6.

    The paper's early fusion on CMU-MOSEI, 313.5, is 0.04 % higher.
    """
    model, inputs = on_meta(make, shapes)
    assert thop_macs(model, inputs) == macs
    if parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.medium
def test_route_costs_match_the_authors_code() -> None:
    """1.252608 and 10.86908, 135.132264 and 320.032048 million, including the gate."""

    def route(make: Callable[[], paper.Routed], shapes: dict[str, tuple[int, ...]], i: int) -> int:
        model, inputs = on_meta(make, shapes)
        return thop_macs(model.experts[i], inputs) + thop_macs(model.gate, inputs)

    found = [route(paper.imdb_dynmm, IMDB, i) for i in (0, 1)]
    assert found == [1_252_608, 10_869_080]
    found = [route(paper.mosei_dynmm, MOSEI, i) for i in (0, 1)]
    assert found == [135_132_264, 320_032_048]


@pytest.mark.medium
def test_attention_adds_an_eighth_to_the_papers_counts() -> None:
    """By hand five layers of 4 n d^2 + 2 n^2 d add 17.4 million at d = 120, and 5.1 at d = 60."""
    cheap = all_macs(*on_meta(lambda: paper.mosei_unimodal("text"), MOSEI))
    expensive = all_macs(*on_meta(paper.mosei_late, MOSEI))
    assert cheap == 124_687_744 + 17_400_000
    assert expensive == 309_587_528 + 2 * 17_400_000 + 5_100_000
    assert (round(cheap / 1e6, 1), round(expensive / 1e6, 1)) == (142.1, 349.5)


def test_soft_dynmm_costs_both_experts_and_one_gate() -> None:
    """The paper's DynMM-d, 12.1 million, is the sum of both routes, each with the gate."""
    model, inputs = on_meta(lambda: paper.imdb_dynmm(soft=True), IMDB)
    assert thop_macs(model, inputs) == 689_664 + 10_306_136 + 562_944
    assert 1_252_608 + 10_869_080 - thop_macs(model, inputs) == 562_944
    assert round((1_252_608 + 10_869_080) / 1e6, 1) == 12.1


def test_soft_dynmm_weights_its_experts() -> None:
    torch.manual_seed(0)
    model = paper.imdb_dynmm(soft=True).eval()
    x = {name: torch.randn(8, *one) for name, one in IMDB.items()}
    g = torch.softmax(model.gate(x), dim=1)
    expected = g[:, :1] * model.experts[0](x) + g[:, 1:] * model.experts[1](x)
    torch.testing.assert_close(model(x), expected)


def test_selection_rates_follow_from_the_papers_costs() -> None:
    """P = (MAdds - c_1) / (c_2 - c_1), with the costs of both routes; 16.4 % on CMU-MOSEI."""
    cheap, expensive = 135.132264, 320.032048
    assert 0.164 * (expensive - cheap) + cheap == pytest.approx(165.5, abs=0.1)
    assert 1 - (0.164 * (expensive - cheap) + cheap) / 309.588 == pytest.approx(0.465, abs=0.001)


def test_post_norm_layer_matches_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(10, 5, 16, 0.1, batch_first=True, dtype=torch.float64)
    ours = paper.PostNormLayer(10, 5, 16).double().eval()
    with torch.no_grad():
        ours.attention.in_projection.weight.copy_(theirs.self_attn.in_proj_weight)
        ours.attention.in_projection.bias.copy_(theirs.self_attn.in_proj_bias.normal_())
        ours.attention.out_projection.load_state_dict(theirs.self_attn.out_proj.state_dict())
        ours.expand.load_state_dict(theirs.linear1.state_dict())
        ours.contract.load_state_dict(theirs.linear2.state_dict())
        ours.attention_norm.load_state_dict(theirs.norm1.state_dict())
        ours.mlp_norm.load_state_dict(theirs.norm2.state_dict())
    z = torch.randn(2, 7, 10, dtype=torch.float64)
    torch.testing.assert_close(ours(z), theirs.eval()(z))


def test_maxout_unit_is_the_maximum_of_two() -> None:
    torch.manual_seed(0)
    network = paper.MaxOut(4, 3, 2).eval()
    x = torch.randn(5, 4)
    z = x / (1 + 1e-4) ** 0.5  # an untrained norm has mean 0 and variance 1
    for layer in (network.first, network.second):  # only the first norm's eps is 1e-4
        pairs = (layer.weight @ z.T).T + layer.bias
        z = torch.stack([pairs[:, 2 * i : 2 * i + 2].max(dim=1)[0] for i in
                         range(pairs.shape[1] // 2)], dim=1) / (1 + 1e-5) ** 0.5  # fmt: skip
    torch.testing.assert_close(network(x), z)
    assert [norm.eps for norm in network.norms] == [1e-4, 1e-5, 1e-5]
    assert network.train()(x[:1]).isfinite().all()  # a batch of one has no variance


def test_routed_samples_get_the_output_of_their_expert() -> None:
    torch.manual_seed(0)
    model = paper.imdb_dynmm().eval()
    random = torch.Generator().manual_seed(1)
    x = {name: torch.randn(16, *one, generator=random) for name, one in IMDB.items()}
    with torch.no_grad():
        model.gate.network[2].bias -= model.gate(x).mean(dim=0)
        chosen, outputs = model.gate(x).argmax(dim=1), model(x)
        assert set(chosen.tolist()) == {0, 1}
        for i, expert in enumerate(model.experts):
            torch.testing.assert_close(outputs[chosen == i], expert(x)[chosen == i])
