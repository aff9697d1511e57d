"""Test Concat+FC, TFN, LMF and MI-Matrix against slow loops in float64.

Shapes: B batch, d_m width of modality m's vector, H width of what is fused, R rank.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.layers.tensor_fusion import (
    ClsVectors,
    ConcatFusion,
    LowRankFusion,
    MatrixFusion,
    TensorFusion,
    outer_product,
)
from sftsearch.trainables.layers.tokens import Sequence

from shapes import dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.datasets.spec import DatasetSpec

WIDTHS = (2, 4, 3)
SMALL = dataset_spec(3, first=(6, 4), second=(5, 4))
WIDE = dataset_spec(5, a=(16, 3), b=(16, 3), c=(16, 3), d=(16, 3))


def vectors(widths: tuple[int, ...] = WIDTHS, size: int = 3, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, d, generator=random, dtype=torch.float64) for d in widths]


def extended(z: Tensor) -> list[float]:
    return [1.0, *z.tolist()]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------------------------ the outer product


def test_outer_product_of_zeros_is_one_hot_at_the_first_entry() -> None:
    widths = (4, 19, 79)
    products = outer_product([torch.zeros(2, d) for d in widths])
    assert products.shape == (2, 5 * 20 * 80) == (2, 8000)
    assert torch.equal(products, F.one_hot(torch.zeros(2, dtype=torch.int64), 8000).float())


@pytest.mark.parametrize("widths", [(3,), (2, 5), WIDTHS, (1, 2, 1, 3)])
def test_outer_product_has_all_products_of_one_entry_per_vector(widths: tuple[int, ...]) -> None:
    z = vectors(widths)
    given = outer_product(z)
    for row in range(3):
        expected = []
        for entries in product(*(extended(one[row]) for one in z)):
            value = 1.0
            for entry in entries:
                value *= entry
            expected.append(value)
        torch.testing.assert_close(given[row], torch.tensor(expected, dtype=torch.float64))


def test_tensor_fusion_is_linear_in_the_outer_product() -> None:
    fusion, z = TensorFusion(WIDTHS, 5).double(), vectors()
    assert fusion.linear.weight.shape == (5, 3 * 5 * 4)
    tensor = fusion.linear.weight.view(5, 3, 5, 4)
    for row, h in product(range(3), range(5)):
        value = fusion.linear.bias[h].item()
        for (i, a), (j, b), (k, c) in product(*(enumerate(extended(one[row])) for one in z)):
            value += tensor[h, i, j, k].item() * a * b * c
        assert fusion(z)[row, h].item() == pytest.approx(value, rel=1e-12)


# ------------------------------------------------------------------------------ low rank


def test_low_rank_fusion_is_the_contraction_with_the_tensor_of_its_factors() -> None:
    """The CP tensor of rank R is built entry by entry and contracted by loops."""
    fusion, z = LowRankFusion(WIDTHS, 2, rank=3).double(), vectors()
    with torch.no_grad():
        fusion.bias.normal_()
    first, second, third = (factor.tolist() for factor in fusion.factors)
    weights = fusion.rank_weights[0].tolist()
    for h in range(2):
        tensor = {
            (i, j, k): sum(
                weights[r] * first[r][i][h] * second[r][j][h] * third[r][k][h] for r in range(3)
            )
            for i, j, k in product(range(3), range(5), range(4))
        }
        for row in range(3):
            a, b, c = (extended(one[row]) for one in z)
            value = sum(w * a[i] * b[j] * c[k] for (i, j, k), w in tensor.items())
            value += fusion.bias[h].item()
            assert fusion(z)[row, h].item() == pytest.approx(value, rel=1e-12)


def test_low_rank_factors_are_parameters_and_are_trained() -> None:
    """In MultiBench's code they are in a plain list, so the optimizer never updates them."""
    fusion = LowRankFusion(WIDTHS, 2, rank=3)
    names = ["factors.0", "factors.1", "factors.2", "rank_weights", "bias"]
    assert sorted(names) == sorted(name for name, _ in fusion.named_parameters())
    assert sorted(names) == sorted(fusion.state_dict())
    before = [p.clone() for p in fusion.parameters()]
    optimizer = torch.optim.SGD(fusion.parameters(), lr=1.0)
    fusion([z.float() for z in vectors()]).square().sum().backward()
    optimizer.step()
    for old, new in zip(before, fusion.parameters(), strict=True):
        assert (old != new).all()


def test_low_rank_fusion_starts_xavier_normal_without_bias() -> None:
    """Each factor (R, 1 + d, H) has variance 2 / ((1 + d) H + R H), as torch counts fans."""
    fusion = LowRankFusion((199, 99), 20, rank=30)
    for factor, d in zip(fusion.factors, (199, 99), strict=True):
        assert factor.shape == (30, 1 + d, 20)
        expected = (2 / (20 * (1 + d + 30))) ** 0.5
        assert factor.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(factor.mean().item()) < 5 * expected / factor.numel() ** 0.5
    assert not fusion.bias.any()


# ------------------------------------------------------------------------------ interactions


def test_matrix_fusion_matches_the_papers_equation() -> None:
    fusion, (first, second) = MatrixFusion((3, 4), 2).double(), vectors((3, 4))
    w, u, v = fusion.interaction.tolist(), fusion.of_first.tolist(), fusion.of_second.tolist()
    for row, h in product(range(3), range(2)):
        x, y = first[row].tolist(), second[row].tolist()
        value = fusion.bias[h].item()
        value += sum(y[j] * x[i] * w[i][j][h] for i, j in product(range(3), range(4)))
        value += sum(y[j] * v[j][h] for j in range(4)) + sum(x[i] * u[i][h] for i in range(3))
        given = fusion([first, second])[row, h].item()
        assert given == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("argument", [0, 1])
def test_matrix_fusion_is_affine_in_each_argument_but_not_in_both(argument: int) -> None:
    fusion = MatrixFusion((3, 4), 2).double()
    start, end = vectors((3, 4)), vectors((3, 4), seed=1)

    def interpolate(share: float, arguments: tuple[int, ...]) -> Tensor:
        mixed = [
            torch.lerp(a, b, share) if i in arguments else a
            for i, (a, b) in enumerate(zip(start, end, strict=True))
        ]
        outputs: Tensor = fusion(mixed)
        return outputs

    def is_affine(arguments: tuple[int, ...]) -> bool:
        ends = [interpolate(share, arguments) for share in (0.0, 1.0)]
        return all(
            torch.allclose(interpolate(s, arguments), torch.lerp(*ends, s), rtol=1e-12, atol=1e-12)
            for s in (-1.5, 0.3, 2.0)
        )

    assert is_affine((argument,))
    assert not is_affine((0, 1))


def test_matrix_fusion_starts_with_a_bias_of_standard_normal_numbers() -> None:
    fusion = MatrixFusion((3, 4), 10_000)
    assert fusion.bias.std().item() == pytest.approx(1, rel=0.03)
    assert fusion.of_first.std().item() == pytest.approx((2 / 10_003) ** 0.5, rel=0.03)


# ------------------------------------------------------------------------------ sizes and gradients


@pytest.mark.parametrize(
    ("fusion", "widths", "outputs", "options", "expected"),
    [
        # MultiBench's matrix for two modalities of width 512 and 1,024 outputs.
        (MatrixFusion, (512, 512), 1024, {}, 269_485_056),
        # MultiBench's LMF of rank 128; its code registers only 640: rank weights and bias.
        (LowRankFusion, (512, 512), 512, {"rank": 128}, 2 * 128 * 513 * 512 + 640),
        # DynMM's LMF for CMU-MOSEI: rank 32, 128 outputs.
        (LowRankFusion, (32, 32, 128), 128, {"rank": 32}, 32 * 195 * 128 + 32 + 128),
        # MultiBench's TFN for three modalities: 5 * 20 * 80 products.
        (TensorFusion, (4, 19, 79), 512, {}, 8000 * 512 + 512),
        # Concat+FC's hidden layer in the MSAF paper's RAVDESS table.
        (ConcatFusion, (2048, 1664), 256, {}, 3712 * 256 + 256),
    ],
)
def test_parameters_match_the_papers_sizes(
    fusion: Any, widths: tuple[int, ...], outputs: int, options: dict[str, int], expected: int
) -> None:
    with torch.device("meta"):
        assert count(fusion(widths, outputs, **options)) == expected


@pytest.mark.parametrize(
    ("fusion", "widths"),
    [
        (ConcatFusion(WIDTHS, 2), WIDTHS),
        (TensorFusion(WIDTHS, 2), WIDTHS),
        (LowRankFusion(WIDTHS, 2, rank=2), WIDTHS),
        (MatrixFusion((3, 2), 2), (3, 2)),
    ],
    ids=["concat_fc", "tfn", "lmf", "mi_matrix"],
)
def test_gradients_match_finite_differences(fusion: nn.Module, widths: tuple[int, ...]) -> None:
    """In float64, for the vectors and every parameter."""
    fusion, names = fusion.double(), [name for name, _ in fusion.named_parameters()]

    def fused(*arguments: Tensor) -> Tensor:
        z, weights = arguments[: len(widths)], arguments[len(widths) :]
        outputs: Tensor = torch.func.functional_call(
            fusion, dict(zip(names, weights, strict=True)), (list(z),)
        )
        return outputs

    arguments = [*vectors(widths, size=2), *fusion.parameters()]
    assert torch.autograd.gradcheck(fused, [a.detach().requires_grad_() for a in arguments])


# ------------------------------------------------------------------------------ the models

NAMES = ("concat_fc", "tfn", "lmf", "mi_matrix")


def config(name: str, **options: Any) -> Any:
    return MODELS[name].config(**{"dim": 8, "num_heads": 2, "num_layers": 2} | options)


def samples(spec: DatasetSpec) -> dict[str, Tensor]:
    return {
        name: torch.randn(3, shape.num_tokens, shape.num_features, dtype=torch.float64)
        for name, shape in spec.modalities.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_model_is_late_fusion_layers_and_one_hidden_layer_on_the_cls_tokens(name: str) -> None:
    model = build_model(name, SMALL, config(name, hidden_dim=5), seed=0).eval().double()
    inputs = samples(SMALL)
    tokens = model.tokenizer(inputs)
    for layer in model.layers:
        tokens = layer(tokens)
    head: Any = model.head
    z = []
    for m, norm, project in zip(SMALL.modalities, head.vectors.norms, head.vectors.projections,
                                strict=True):  # fmt: skip
        cls = tokens[m].z[:, 0]
        normed = (cls - cls.mean(1, keepdim=True)) / (
            cls.var(1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        z.append(project(normed * norm.weight + norm.bias))
    assert [one.shape[1] for one in z] == [8, 8]
    hidden = head.fusion(z).clamp(min=0)
    assert hidden.shape == (3, 5)
    torch.testing.assert_close(model(inputs), hidden @ head.linear.weight.T + head.linear.bias)


def test_vectors_are_projected_only_if_width_is_set() -> None:
    tokens = {"a": Sequence(torch.randn(3, 4, 8)), "b": Sequence(torch.randn(3, 2, 8))}
    assert [z.shape for z in ClsVectors("ab", 8)(tokens)] == [(3, 8), (3, 8)]
    assert [z.shape for z in ClsVectors("ab", 8, width=5)(tokens)] == [(3, 5), (3, 5)]


@pytest.mark.parametrize("name", NAMES)
def test_model_costs_late_fusion_plus_its_fusion(name: str) -> None:
    """D = 8, two modalities, a hidden layer of width 5, three classes."""
    cost = MODELS[name].cost(SMALL, config(name, hidden_dim=5))
    late = MODELS["late_fusion"].cost(SMALL, config("late_fusion"))
    late_head = 2 * 8 + 8 * 3 + 3
    fusion_macs = {
        "concat_fc": 16 * 5,
        "tfn": 81 * 5 + 2 * 8 * 8,
        "lmf": 2 * 9 * 4 * 5,
        "mi_matrix": (64 + 8 + 8) * 5,
    }[name]
    biases = {"concat_fc": 5, "tfn": 5 + 2 * 8, "lmf": 4 + 5, "mi_matrix": 5}[name]
    own_head = 2 * (2 * 8) + 5 * 3 + 3
    assert cost.parameters == late.parameters - late_head + own_head + fusion_macs + biases
    assert 1e9 * (cost.gflops - late.gflops) == pytest.approx(fusion_macs)
    assert 1e9 * (cost.gmacs - late.gmacs) == pytest.approx(fusion_macs + 5 * 3 - 2 * 8 * 3)


def refused(name: str, spec: DatasetSpec, **options: Any) -> str:
    """Return the error message, which must be the same for building and computing the cost."""
    messages = set()
    for act in (lambda c: build_model(name, spec, c, seed=0), lambda c: MODELS[name].cost(spec, c)):
        with pytest.raises(ConfigError) as caught:
            act(config(name, **options))
        messages.add(str(caught.value))
    (message,) = messages
    return message


def test_too_wide_outer_product_is_refused_with_a_remedy() -> None:
    """17^4 = 83,521 products are too many; 16^4, at width 15, equals the limit."""
    message = refused("tfn", WIDE, dim=16, factor_dim=None)
    assert "at most 65,536" in message
    assert "83,521" in message
    assert "Set `factor_dim` to at most 15." in message
    assert refused("tfn", WIDE, dim=16, factor_dim=16).endswith("at most 15.")
    assert MODELS["tfn"].cost(WIDE, config("tfn", dim=16, factor_dim=15)).parameters > 65_536 * 128
    many = dataset_spec(2, **{f"m{i}": (4, 1) for i in range(17)})
    assert refused("tfn", many, factor_dim=1).endswith("Choose fewer modalities.")
    assert refused("tfn", many, factor_dim=None).endswith("Choose fewer modalities.")


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], None])
def test_an_interaction_matrix_refuses_other_numbers_of_modalities(names: list[str] | None) -> None:
    message = refused("mi_matrix", WIDE, modalities=names)
    assert f"exactly two, but got {len(names or WIDE.modalities)}" in message
    assert "`tfn` or `lmf`" in message


@pytest.mark.parametrize(
    ("name", "field"),
    [("concat_fc", "hidden_dim"), ("tfn", "factor_dim"), ("lmf", "rank"), ("lmf", "num_layers")],
)
def test_sizes_must_be_positive_integers(name: str, field: str) -> None:
    for value in (0, 1.5, True):
        with pytest.raises(ConfigError, match=f"`{field}` must be a whole number from 1"):
            config(name, **{field: value})
