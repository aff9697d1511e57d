"""Test MulT, as a baseline of the SFT paper and as published.

Shapes: B batch, T tokens of the target, S of the source, D width.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from sftsearch.datasets.spec import DatasetSpec, ModalitySpec
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.layers.attention import SelfAttention
from sftsearch.trainables.layers.crossmodal import Sinusoids, attend_to, future, sinusoids
from sftsearch.trainables.layers.tokens import Sequence

from shapes import MOSEI, VGGS, dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.trainables.cost import Cost
    from sftsearch.trainables.layers.tokens import Tokens
    from sftsearch.trainables.models.fusion import FusionModel


SMALL = dataset_spec(3, left=(12, 4), right=(12, 4), third=(7, 2))
DEPTH: dict[str, Any] = {"crossmodal_layers": 2, "memory_layers": 2, "dim": 8, "num_heads": 2}


def price(name: str, spec: DatasetSpec, **options: Any) -> Cost:
    return MODELS[name].cost(spec, MODELS[name].config(**options))


def small(name: str, spec: DatasetSpec = SMALL, **options: Any) -> FusionModel:
    """Build a small model in float64, where reordered sums differ by 1e-15, not by 1e-6."""
    config = MODELS[name].config(**DEPTH | options)
    return build_model(name, spec, config, seed=0).eval().double()


def samples(size: int = 3, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            size, shape.num_tokens, shape.num_features, generator=random, dtype=torch.float64
        )
        for name, shape in SMALL.modalities.items()
    }


def states(model: FusionModel, x: dict[str, Tensor], **lengths: list[int]) -> list[Tokens]:
    """Return the tokens, and the state after each layer."""
    known = {name: torch.tensor(length) for name, length in lengths.items()}
    seen = [model.tokenizer(x, known)]
    for layer in model.layers:
        seen.append(layer(seen[-1]))
    return seen


@pytest.mark.parametrize(("depths", "expected"), [((1, 11), 2_805_127), ((9, 3), 1_883_527)])
def test_parameters_match_the_sft_authors_code(depths: tuple[int, int], expected: int) -> None:
    """Without tokenizers, for three modalities and seven classes."""
    crossmodal, memory = depths
    config = MODELS["mult"].config(crossmodal_layers=crossmodal, memory_layers=memory)
    model = build_model("mult", MOSEI, config, seed=0)
    parts = (model.layers, model.head)
    assert sum(p.numel() for part in parts for p in part.parameters()) == expected


def test_the_published_model_has_the_parameters_of_its_code() -> None:
    """With 300, 74 and 35 features and one output, for sentiment regression."""
    assert price("mult_original", replace(MOSEI, classes=(), task="regression")).parameters == (
        1_073_731
    )


@pytest.mark.parametrize(
    ("spec", "formula", "printed"), [(VGGS, 2.6856, 2.64), (MOSEI, 1.0594, 1.03)]
)
def test_gflops_match_the_sft_paper(spec: DatasetSpec, formula: float, printed: float) -> None:
    """Ding et al. 2021, Table 2: nine crossmodal and three memory layers cost 21/12 of LF."""
    gflops = price("mult", spec).gflops
    assert gflops == pytest.approx(formula, abs=0.5e-4)
    assert gflops == pytest.approx(printed, rel=0.05)
    assert gflops == pytest.approx(price("late_fusion", spec).gflops * 21 / 12)


def test_crossmodal_layer_costs_its_products() -> None:
    """Queries and outputs of T, keys and values of S, two T x S products, an MLP of width 4D."""
    t, s, d = 12 + 1, 7 + 1, 40
    pair = replace(SMALL, modalities={k: SMALL.modalities[k] for k in ("left", "third")})
    more = (
        price("mult", pair, crossmodal_layers=2).gmacs
        - price("mult", pair, crossmodal_layers=1).gmacs
    )
    each_way = 2 * (t + s) * d**2 + 2 * t * s * d
    assert more == pytest.approx((2 * each_way + 8 * (t + s) * d**2) / 1e9)


@pytest.mark.parametrize("name", ["mult", "mult_original"])
def test_one_modality_is_refused_and_more_are_accepted(name: str) -> None:
    with pytest.raises(ConfigError, match="at least two, but got one: left"):
        small(name, modalities=("left",))
    with pytest.raises(ConfigError, match="at least two, but got one: left"):
        price(name, SMALL, modalities=("left",))
    many = {f"m{i}": ModalitySpec(num_tokens=3 + i, num_features=2) for i in range(4)}
    for count in (2, 3, 4):
        spec = replace(SMALL, modalities=dict(list(many.items())[:count]))
        model = small(name, spec)
        x = {
            key: torch.ones(2, shape.num_tokens, 2, dtype=torch.float64)
            for key, shape in spec.modalities.items()
        }
        assert model(x).shape == (2, 3)
        tokens = states(model, x)[-1]
        assert [z.shape[2] for z, _, _ in tokens.values()] == [(count - 1) * 8] * count


def test_stack_depends_only_on_its_target_and_source() -> None:
    x, other = samples(), samples(seed=1)
    model = small("mult")
    crossmodal = 2
    given = states(model, x)[crossmodal]
    for changed in SMALL.modalities:
        after = states(model, {**x, changed: other[changed]})[crossmodal]
        for name in given:
            same = torch.equal(after[name].z, given[name].z)
            assert same == (changed not in name.split("<")), (changed, name)


def test_source_tokens_do_not_change() -> None:
    seen = states(small("mult"), samples())
    for name in SMALL.modalities:
        assert all(torch.equal(tokens[name].z, seen[0][name].z) for tokens in seen[:3])


def test_mult_works_without_memory_layers() -> None:
    model = small("mult", memory_layers=0)
    assert model(samples()).shape == (3, 3)
    assert model.mixing_points == (0, 1)


def test_a_block_starts_xavier_uniform_without_bias() -> None:
    """Glorot's bound is sqrt(6 / (in + out)); the largest weight is close to it."""
    block = build_model("mult", SMALL, MODELS["mult"].config(), seed=0).layers[0].blocks[0]
    for linear in (m for m in block.modules() if isinstance(m, nn.Linear)):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("t", "s"), [(5, 5), (3, 5), (5, 3), (2, 9)])
def test_attention_matches_pytorch(t: int, s: int, *, padded: bool, hide: bool) -> None:
    own = SelfAttention(dim=12, num_heads=3).double()
    reference = nn.MultiheadAttention(12, 3, batch_first=True).double()
    weights = {
        "in_proj_weight": own.in_projection.weight,
        "in_proj_bias": own.in_projection.bias.data.normal_(),
        "out_proj.weight": own.out_projection.weight,
        "out_proj.bias": own.out_projection.bias.data.normal_(),
    }
    reference.load_state_dict(weights)
    x, source = (torch.randn(4, n, 12, dtype=torch.float64) for n in (t, s))
    valid = torch.arange(s) < torch.tensor([s, 2, 1, s])[:, None] if padded else None
    expected, _ = reference(
        x,
        source,
        source,
        key_padding_mask=None if valid is None else ~valid,
        attn_mask=future(t, s) if hide else None,
        need_weights=False,
    )
    y = attend_to(own, x, source, valid, hide_future=hide)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if t == s:
        same = attend_to(own, x, x, valid, hide_future=hide)
        torch.testing.assert_close(same, attend_to(own, x, x.clone(), valid, hide_future=hide))


def test_future_begins_after_the_difference_of_lengths() -> None:
    """The authors' code uses triu(1 + |S - T|): triu(3) for three queries and five keys."""
    assert torch.equal(future(3, 5), torch.ones(3, 5).triu(3).bool())
    assert future(3, 5).sum() == 3
    assert not future(5, 3).any()
    assert torch.equal(future(4, 4), torch.ones(4, 4).triu(1).bool())


def test_sinusoids_match_the_authors_code() -> None:
    """Positions start at 1; wavelengths are from 2 pi (rate 1) to 20,000 pi (rate 1e-4)."""
    p = sinusoids(50, 30)
    t = torch.arange(1, 51)
    assert p.shape == (50, 30)
    torch.testing.assert_close(p[:, 0], t.sin())
    torch.testing.assert_close(p[:, 14], (t / 10_000).sin())
    torch.testing.assert_close(p[:, 15], t.cos())
    torch.testing.assert_close(p[:, 29], (t / 10_000).cos())
    torch.testing.assert_close(p[:, 7], (t * 10_000 ** (-7 / 14)).sin())
    assert not sinusoids(3, 5)[:, 4].any()
    assert sinusoids(3, 1).shape == (3, 1)


def papers_position(step: int, dim: int) -> Tensor:
    """Return the position of a step, from 0: step + 1 times falling rates, sines, then cosines."""
    rates = torch.tensor([10_000 ** (-i / (dim // 2 - 1)) for i in range(dim // 2)])
    return torch.cat([((step + 1) * rates).sin(), ((step + 1) * rates).cos()])


def test_padding_has_no_position_and_steps_keep_theirs() -> None:
    """Only the first channel tells: at exactly 0 the position is 0, whatever the others are."""
    layer = Sinusoids(5, 8)
    z = torch.randn(2, 5, 8)
    z[0, :2] = 0.0  # padded in front
    z[1, 3, 0] = 0.0  # the authors' rule also takes this step for padding
    z[1, 4, 1:] = 0.0
    given = layer({"left": Sequence(z)})["left"].z
    padded = {(0, 0), (0, 1), (1, 3)}
    for row, step in product(range(2), range(5)):
        expected = 8**0.5 * z[row, step]
        if (row, step) not in padded:
            expected = expected + papers_position(step, 8)
        torch.testing.assert_close(given[row, step], expected, rtol=1e-5, atol=1e-5)
    assert not given[0, :2].any()


@pytest.mark.parametrize("declared", [False, True])
def test_front_padded_sequence_has_positions_where_it_has_steps(declared: bool) -> None:
    """Zeros are projected to zeros; so are steps after a length, whatever they are."""
    model, x = small("mult_original"), samples()
    x["left"][0, :4] = 0.0
    lengths = {"right": [12, 5, 12]} if declared else {}
    embedded = states(model, x, **lengths)[1]
    projected = x["left"] @ model.tokenizer.modalities[0].projection.weight.T
    for step in range(12):
        expected = 8**0.5 * projected[:, step]
        expected = expected + papers_position(step, 8) * (projected[:, step, :1] != 0)
        torch.testing.assert_close(embedded["left"].z[:, step], expected, rtol=1e-5, atol=1e-5)
    assert not embedded["left"].z[0, :4].any()
    assert bool(embedded["right"].z[1, 5:].any()) != declared


def test_the_published_model_matches_pytorch_on_front_padded_sequences() -> None:
    """Compare the whole forward pass with `torch.nn` layers, one stack after another."""
    model, x = small("mult_original", crossmodal_layers=1, memory_layers=1), samples()
    x["left"][0, :4], x["third"][1, :2] = 0.0, 0.0
    names = list(SMALL.modalities)
    projected = {
        name: x[name] @ tokenizer.projection.weight.T
        for name, tokenizer in zip(names, model.tokenizer.modalities, strict=True)
    }
    _, crossmodal, join, _, memory = model.layers
    joined: dict[str, list[Tensor]] = {name: [] for name in names}
    for (a, b), block, norm in zip(crossmodal.pairs, crossmodal.blocks, join.norms, strict=True):
        joined[a].append(norm(encode(block, embed(projected[a]), embed(projected[b]))))
    last = []
    for name, block, norm in zip(names, memory.blocks, model.head.norms, strict=True):
        z = embed(torch.cat(joined[name], dim=2))
        last.append(norm(encode(block, z, z))[:, -1])
    h = torch.cat(last, dim=1)
    h = h + model.head.residual.second(torch.relu(model.head.residual.first(h)))
    torch.testing.assert_close(model(x), model.head.linear(h), rtol=1e-5, atol=1e-5)


def embed(z: Tensor) -> Tensor:
    """Scale by sqrt(D) and add positions, except to steps whose first channel is 0."""
    positions = torch.stack([papers_position(step, z.shape[2]) for step in range(z.shape[1])])
    return z * z.shape[2] ** 0.5 + positions * (z[:, :, :1] != 0)


def encode(block: nn.Module, z: Tensor, source: Tensor) -> Tensor:
    """Apply a pre-norm layer; PyTorch computes the attention."""
    own, dim = block.attention, z.shape[2]
    attention = nn.MultiheadAttention(dim, 2, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(
        {
            "in_proj_weight": own.in_projection.weight,
            "in_proj_bias": own.in_projection.bias,
            "out_proj.weight": own.out_projection.weight,
            "out_proj.bias": own.out_projection.bias,
        }
    )
    x, keys = block.attention_norm(z), block.attention_norm(source)
    hidden = torch.ones(z.shape[1], source.shape[1]).triu(1 + abs(source.shape[1] - z.shape[1]))
    z = z + attention(x, keys, keys, attn_mask=hidden.bool(), need_weights=False)[0]
    out: Tensor = z + block.contract(torch.relu(block.expand(block.norm(z))))
    return out


def test_published_model_does_not_attend_to_future_tokens() -> None:
    """Left and right are equally long, so no token attends to a later position."""
    model = small("mult_original", modalities=("left", "right"))
    x, other = samples(), samples(seed=1)
    mixed = {k: torch.cat([x[k][:, :5], other[k][:, 5:]], dim=1) for k in ("left", "right")}
    given, changed = states(model, x)[-1], states(model, mixed)[-1]
    for name in mixed:
        torch.testing.assert_close(changed[name].z[:, :5], given[name].z[:, :5])
        assert not torch.allclose(changed[name].z[:, 5:], given[name].z[:, 5:])


def test_the_published_model_reads_the_last_valid_token() -> None:
    """Padding can be cut off or declared by length; with equal lengths the future is the same."""
    chosen = ("left", "right")
    cut = replace(SMALL, modalities={k: replace(SMALL.modalities[k], num_tokens=5) for k in chosen})
    whole, short = small("mult_original", modalities=chosen), small("mult_original", cut)
    short.load_state_dict(whole.state_dict())
    x, five = samples(), torch.full((3,), 5)
    expected = short({k: x[k][:, :5] for k in chosen})
    outputs = whole(x, dict.fromkeys(chosen, five))
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)


def test_missing_source_adds_nothing_in_the_published_model() -> None:
    """Not even the bias of the attention to the source is added."""
    model = small("mult_original")
    after_stacks = 3  # tokens, positions, two layers

    def stack(**lengths: list[int]) -> Tensor:
        z: Tensor = states(model, samples(), **lengths)[after_stacks]["left<right"].z
        return z

    whole, missing = stack(), stack(right=[0, 0, 0])
    with torch.no_grad():
        for layer in model.layers[1:after_stacks]:
            for (_, source), block in zip(layer.pairs, layer.blocks, strict=True):
                if source == "right":
                    for weights in block.attention.parameters():
                        weights.add_(1.0)
    assert torch.equal(stack(right=[0, 0, 0]), missing)
    assert not torch.allclose(stack(), whole)


def test_missing_target_contributes_zeros_to_the_published_head() -> None:
    model = small("mult_original")
    tokens = states(model, samples(), right=[0, 3, 12])[-1]
    z, valid, _ = tokens["right"]
    given = model.head(tokens)
    scrambled = z.clone()
    scrambled[0] = torch.randn_like(z[0])
    assert torch.equal(model.head({**tokens, "right": Sequence(scrambled, valid)})[0], given[0])
    with torch.no_grad():
        model.head.norms[1].weight += 1.0
        model.head.norms[1].bias += 1.0
    changed = model.head(tokens)
    assert torch.equal(changed[0], given[0])
    assert not torch.allclose(changed[1:], given[1:])
