"""Test MBT: which modalities influence each other, costs, and equivalent options.

Shapes: B batch, T tokens of a modality, K bottlenecks, D width.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.layers.blocks import Block
from sftsearch.trainables.layers.bottleneck import AddBottleneck, CrossLayer, SkippedBlock
from sftsearch.trainables.layers.tokens import BOTTLENECK, FUSED, Sequence

from shapes import MOSEI, VGGS, dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.cost import Cost
    from sftsearch.trainables.models.fusion import FusionModel


SMALL = dataset_spec(3, first=(6, 4), second=(5, 4), third=(4, 4))


def price(name: str, spec: DatasetSpec, **options: Any) -> Cost:
    return MODELS[name].cost(spec, MODELS[name].config(**options))


def small(name: str = "mbt", **options: Any) -> FusionModel:
    """Build a small model in float64, where reordered sums differ by 1e-15, not by 1e-6."""
    config = MODELS[name].config(**{"dim": 8, "num_heads": 2} | options)
    return build_model(name, SMALL, config, seed=0).eval().double()


def samples(size: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(size, shape.num_tokens, 4, generator=random, dtype=torch.float64)
        for name, shape in SMALL.modalities.items()
    }


def influences(model: FusionModel) -> set[tuple[str, str]]:
    """Return the pairs (source, target): the target's CLS token depends on the source's samples."""
    x = {name: x_BTF.requires_grad_() for name, x_BTF in samples().items()}
    tokens = model.tokenizer(x)
    for layer in model.layers:
        tokens = layer(tokens)
    found = set()
    for source, target in product(x, x):
        cls = tokens[target].z[:, 0].square().sum()
        (grad,) = torch.autograd.grad(cls, x[source], retain_graph=True, allow_unused=True)
        if source != target and grad is not None and bool(grad.any()):
            found.add((source, target))
    return found


NAMES = tuple(SMALL.modalities)
ALL = {(a, b) for a, b in product(NAMES, NAMES) if a != b}
FORWARD = {(a, b) for a, b in ALL if NAMES.index(a) < NAMES.index(b)}


@pytest.mark.parametrize(
    ("strategy", "update", "fused", "expected"),
    [
        ("bottleneck", "symmetric", 0, set()),
        ("bottleneck", "symmetric", 1, set()),
        ("bottleneck", "symmetric", 2, ALL),
        ("bottleneck", "asymmetric", 1, FORWARD),
        ("bottleneck", "asymmetric", 2, ALL),
        ("vanilla", "symmetric", 0, set()),
        ("vanilla", "symmetric", 1, ALL),
        ("cross", "symmetric", 1, ALL),
    ],
)
def test_modalities_influence_each_other_after_the_expected_layers(
    strategy: str, update: str, fused: int, expected: set[tuple[str, str]]
) -> None:
    """Symmetric bottlenecks need two fused layers; asymmetric ones pass forward in one layer."""
    model = small(num_layers=3, fusion_layer=3 - fused, strategy=strategy, update=update)
    assert influences(model) == expected


def test_mbt_without_fused_layers_is_late_fusion_averaged() -> None:
    mbt, late = small(num_layers=3, fusion_layer=3), small("late_fusion", num_layers=3)
    weights = list(late.state_dict().values())
    assert [p.shape for p in mbt.state_dict().values()] == [p.shape for p in weights]
    mbt.load_state_dict(dict(zip(mbt.state_dict(), weights, strict=True)))
    torch.testing.assert_close(mbt(samples()) * 3, late(samples()), rtol=1e-14, atol=1e-14)


def test_bottleneck_layer_matches_the_papers_equations() -> None:
    """Eq. 8-9: all modalities read the same bottlenecks, and their results are averaged."""
    model = small(num_layers=1, fusion_layer=0, num_bottlenecks=2)
    add, layer = model.layers
    tokens = add(model.tokenizer(samples()))
    f_BKD = tokens[BOTTLENECK].z
    given = layer(tokens)
    returned = []
    for name, block in zip(NAMES, layer.blocks, strict=True):
        joined = block(Sequence(torch.cat([tokens[name].z, f_BKD], dim=1))).z
        torch.testing.assert_close(given[name].z, joined[:, :-2])
        returned.append(joined[:, -2:])
    torch.testing.assert_close(given[BOTTLENECK].z, torch.stack(returned).mean(dim=0))
    layer.symmetric = False  # eq. 10-11: each modality reads what the previous one returned
    for name, block in zip(NAMES, layer.blocks, strict=True):
        f_BKD = block(Sequence(torch.cat([tokens[name].z, f_BKD], dim=1))).z[:, -2:]
    torch.testing.assert_close(layer(tokens)[BOTTLENECK].z, f_BKD)


def test_bottlenecks_are_learned_and_start_small() -> None:
    """N(0, 0.02^2): 40,000 draws have this standard deviation within 2 %."""
    weights = AddBottleneck(1000, 40).tokens
    assert weights.requires_grad
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 5e-4


@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention_with_tied_weights_is_vanilla(*, padded: bool) -> None:
    block = SkippedBlock(dim=8, num_heads=2, dropout=0.0, skip=0.0).double()
    lengths = {"first": torch.tensor([6, 2, 0])} if padded else {}
    tokens = small().tokenizer(samples(), lengths)
    crossed = CrossLayer(dict.fromkeys(NAMES, block))(tokens)
    z = torch.cat([tokens[name].z for name in NAMES], dim=1)
    valid = None
    if padded:
        valid = torch.ones(z.shape[:2], dtype=torch.bool)
        valid[:, :7] = tokens["first"].valid
    joined = block(Sequence(z, valid)).z
    torch.testing.assert_close(torch.cat([crossed[name].z for name in NAMES], dim=1), joined)


def test_vanilla_equals_tied_cross() -> None:
    options = {"num_layers": 3, "fusion_layer": 1}
    tied = small(strategy="cross", tied=True, **options)
    vanilla = small(strategy="vanilla", **options)
    assert torch.equal(tied(samples()), vanilla(samples()))
    assert price("mbt", SMALL, strategy="cross", tied=True) == price(
        "mbt", SMALL, strategy="vanilla"
    )
    seen = []

    def look(index: int, tokens: Any) -> Any:
        seen.append(tuple(tokens))
        return tokens

    vanilla(samples(), None, look)
    assert seen == [NAMES, (FUSED,), (FUSED,)]


@pytest.mark.parametrize(
    ("spec", "formula", "printed"), [(VGGS, 1.5449, 1.52), (MOSEI, 0.6141, 0.59)]
)
def test_gflops_match_the_sft_paper(spec: DatasetSpec, formula: float, printed: float) -> None:
    """Ding et al. 2021, Table 2: four bottlenecks in 10 or 11 of 12 layers."""
    gflops = price("mbt", spec, fusion_layer=1).gflops
    assert gflops == pytest.approx(formula, abs=0.5e-4)
    for unfused in (1, 2):
        assert price("mbt", spec, fusion_layer=unfused).gflops == pytest.approx(printed, rel=0.05)


def test_cost_counts_the_attended_pairs() -> None:
    """Pairs: (n + K)^2 per modality (bottleneck), (sum n)^2 (vanilla), n (sum n) each (cross)."""
    tokens, d, k = (500, 500, 50), 40, 4
    together = sum(tokens)
    linear = 6 * d**2 + 4 * d
    expected = {
        "bottleneck": sum((n + k) * linear + 2 * (n + k) ** 2 * d for n in tokens),
        "vanilla": together * linear + 2 * together**2 * d,
        "cross": sum(
            4 * n * d**2 + 2 * together * d**2 + 2 * n * together * d + 4 * n * d for n in tokens
        ),
    }
    for strategy, flops in expected.items():
        deep, flat = (
            price("mbt", MOSEI, strategy=strategy, num_layers=layers, fusion_layer=1).gflops
            for layers in (3, 2)
        )
        assert deep - flat == pytest.approx(flops / 1e9), strategy


@pytest.mark.parametrize(
    ("strategy", "more"), [("bottleneck", 4 * 40), ("cross", 0), ("vanilla", -4 * 2 * 9_920)]
)
def test_parameters_are_those_of_late_fusion_and_of_the_bottlenecks(
    strategy: str, more: int
) -> None:
    """Vanilla shares the last four of twelve layers, which saves two of three blocks in each."""
    parameters = price("mbt", MOSEI, strategy=strategy).parameters
    assert parameters == price("late_fusion", MOSEI).parameters + more


def test_equal_outcomes_share_a_canonical_configuration() -> None:
    config = MODELS["mbt"].config

    def same(*options: dict[str, Any], spec: DatasetSpec = SMALL) -> bool:
        return len({str(config(**one).canonical(spec)) for one in options}) == 1

    late: dict[str, Any] = {"num_layers": 4, "fusion_layer": 4}
    assert same(
        late,
        late | {"strategy": "cross", "tied": True},
        late | {"strategy": "vanilla"},
        late | {"num_bottlenecks": 9, "update": "asymmetric"},
    )
    assert same(
        {"strategy": "vanilla"},
        {"strategy": "vanilla", "num_bottlenecks": 9, "update": "asymmetric", "tied": True},
        {"strategy": "cross", "tied": True},
    )
    assert same({}, {"tied": True})
    assert same({"modalities": NAMES[:1]}, {"modalities": NAMES[:1], "update": "asymmetric"})
    one = {"num_layers": 1, "fusion_layer": 0}
    assert same(one, one | {"stochastic_depth": 0.3})
    for read in (
        {"num_bottlenecks": 9},
        {"update": "asymmetric"},
        {"strategy": "cross"},
        {"strategy": "vanilla"},
        {"stochastic_depth": 0.3},
        {"fusion_layer": 7},
    ):
        assert not same({}, read), read
    assert not same({"strategy": "cross"}, {"strategy": "vanilla"})


@pytest.mark.parametrize("update", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("strategy", ["bottleneck", "vanilla", "cross"])
def test_padding_changes_nothing_with_any_fusion(strategy: str, update: str) -> None:
    """Padded values have no effect, bit by bit; unpadded samples agree up to rounding."""
    model = small(num_layers=3, fusion_layer=1, strategy=strategy, update=update)
    x, lengths = samples(), {"first": torch.tensor([6, 2, 0]), "third": torch.tensor([4, 0, 4])}
    outputs = model(x, lengths)
    corrupted = {name: x_BTF.clone() for name, x_BTF in x.items()}
    corrupted["first"][1, 2:] = corrupted["first"][2] = corrupted["third"][1] = torch.nan
    assert outputs.isfinite().all()
    assert torch.equal(model(corrupted, lengths), outputs)
    torch.testing.assert_close(outputs[:1], model(x)[:1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(outputs[1:], model(x)[1:])


def test_invalid_options_are_refused() -> None:
    config = MODELS["mbt"].config
    with pytest.raises(ConfigError, match=r"fusion_layer=5, num_layers=4"):
        config(num_layers=4, fusion_layer=5)
    with pytest.raises(ConfigError, match="`strategy` must be one of bottleneck, vanilla, cross"):
        config(strategy="both")
    with pytest.raises(ConfigError, match="`update` must be one of"):
        config(update="mean")
    with pytest.raises(ConfigError, match="`num_bottlenecks` must be a whole number from 1"):
        config(num_bottlenecks=0)
    with pytest.raises(ConfigError, match="`tied` must be true or false"):
        config(tied=1)
    with pytest.raises(ConfigError, match="`stochastic_depth` must lie in"):
        config(stochastic_depth=1.0)


def test_skipped_block_equals_the_plain_block_in_evaluation() -> None:
    plain = Block(dim=8, num_heads=2, dropout=0.0)
    block = SkippedBlock(dim=8, num_heads=2, dropout=0.0, skip=0.3).eval()
    block.load_state_dict(plain.state_dict())
    z, valid = torch.randn(3, 5, 8), torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    assert torch.equal(block(Sequence(z, valid)).z, plain(Sequence(z, valid)).z)


def test_stochastic_depth_skips_updates_of_samples_in_training() -> None:
    """Both updates are skipped independently, in shares p^2, p(1 - p) twice and (1 - p)^2."""
    p, size = 0.3, 4000
    block = SkippedBlock(dim=8, num_heads=2, dropout=0.0, skip=p).double()
    z = torch.randn(1, 5, 8, dtype=torch.float64)
    attended = block.attend.attention(F.layer_norm(z, z.shape[-1:]))[0]

    def transformed(z: Tensor) -> Tensor:
        update: Tensor = block.contract(F.relu(block.expand(block.norm(z))))
        return update

    keep = 1 / (1 - p)
    outcomes = {}
    for first, second in product((0.0, keep), (0.0, keep)):
        inner = z + first * attended
        outcomes[first > 0, second > 0] = inner + second * transformed(inner)
    out = block.train()(Sequence(z.expand(size, -1, -1))).z
    counts = {
        kept: int(torch.isclose(out, one).all(dim=(1, 2)).sum()) for kept, one in outcomes.items()
    }
    assert sum(counts.values()) == size
    for (first, second), count in counts.items():
        share = (1 - p if first else p) * (1 - p if second else p)
        assert count / size == pytest.approx(share, abs=0.03)  # four standard deviations


def test_stochastic_depth_grows_linearly_with_depth() -> None:
    for strategy in ("bottleneck", "vanilla", "cross"):
        model = small(num_layers=4, fusion_layer=2, strategy=strategy, stochastic_depth=0.3)
        rates = [
            {block.skip for block in layer.blocks}
            for layer in model.layers
            if hasattr(layer, "blocks")
        ]
        assert [pytest.approx(rate) for (rate,) in rates] == [0.0, 0.1, 0.2, 0.3]
