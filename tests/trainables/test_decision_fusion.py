"""Test averaging, multiplication and the multiplicative combination against slow loops.

Shapes: M modalities, B batch, C classes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.evaluation import losses_of
from sftsearch.trainables.models.decision_fusion import (
    log_one_minus,
    log_product,
    mean_of_label_probabilities,
    mean_of_probabilities,
    weighted_log_product,
)

from shapes import dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.trainables.models.fusion import FusionModel

SMALL = dataset_spec(4, first=(6, 4), second=(5, 4), third=(4, 4))
RATING = replace(SMALL, task="regression", classes=())
TAGS = replace(SMALL, task="multilabel")
NAMES = ("averaging", "multiplication", "multiplicative")
M, B, C = 3, 2, 4


def logits(scale: float = 2.0) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return scale * torch.randn(M, B, C, generator=random, dtype=torch.float64)


def probabilities(of: Tensor) -> list[Any]:
    """Return p[m][b][c] by the definition of a softmax."""
    exps = [[[math.exp(x) for x in row] for row in rows] for rows in of.tolist()]
    return [[[e / sum(row) for e in row] for row in rows] for rows in exps]


def slow_scores(of: Tensor, beta: float) -> Tensor:
    """Return s_y = sum_j [prod_{i != j} (1 - p_i^y)]^(beta / (M - 1)) log p_j^y, by loops."""
    p, (modalities, batch, classes) = probabilities(of), of.shape
    scores = torch.zeros(batch, classes, dtype=torch.float64)
    for b in range(batch):
        for y in range(classes):
            for j in range(modalities):
                rest = 1.0
                for i in range(modalities):
                    if i != j:
                        rest *= 1 - p[i][b][y]
                q = rest ** (beta / (modalities - 1)) if modalities > 1 else 1.0
                scores[b, y] += q * math.log(p[j][b][y])
    return scores


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_multiplicative_scores_match_the_papers_formula(modalities: int, beta: float) -> None:
    given = logits()[:modalities]
    expected = slow_scores(given, beta)
    torch.testing.assert_close(weighted_log_product(given, beta), expected, rtol=1e-12, atol=1e-12)


def test_scores_with_beta_zero_are_the_product_of_probabilities() -> None:
    p = probabilities(logits())
    expected = [[math.prod(p[m][b][c] for m in range(M)) for c in range(C)] for b in range(B)]
    for given in (weighted_log_product(logits(), 0.0), log_product(logits())):
        torch.testing.assert_close(given.exp(), torch.tensor(expected, dtype=torch.float64))


def test_no_gradient_flows_through_the_weights() -> None:
    """A logit's gradient is that of the cross-entropies, weighted by constants."""
    given, beta = logits().requires_grad_(), 0.7
    labels = [1, 3]
    weighted_log_product(given, beta)[[0, 1], labels].sum().neg().backward()
    p = probabilities(given.detach())
    expected = torch.zeros(M, B, C, dtype=torch.float64)
    for b, y in enumerate(labels):
        for j in range(M):
            rest = math.prod(1 - p[i][b][y] for i in range(M) if i != j)
            for c in range(C):
                expected[j, b, c] = rest ** (beta / (M - 1)) * (p[j][b][c] - (c == y))
    torch.testing.assert_close(given.grad, expected, rtol=1e-12, atol=1e-12)


def test_beta_reduces_the_gradient_where_other_modalities_are_confident() -> None:
    """If the others are not confident, a modality keeps nearly all of its gradient."""
    label = 0

    def gradient_norm(of_others: float, beta: float) -> float:
        given = torch.zeros(3, 1, C, dtype=torch.float64)
        given[:2, 0, label] = of_others
        given.requires_grad_()
        weighted_log_product(given, beta)[0, label].neg().backward()
        assert given.grad is not None
        return given.grad[2].norm().item()

    alone = gradient_norm(5.0, 0.0)
    shares = [gradient_norm(5.0, beta) / alone for beta in (0.0, 0.1, 0.3, 1.0, 3.0)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == len(shares)
    rest = 3 / (math.exp(5) + 3)  # 1 - p of each of the two others
    assert shares[3] == pytest.approx(rest, rel=1e-9)
    assert gradient_norm(-5.0, 3.0) / alone > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.0, 0.3, 5.0])
def test_extreme_logits_give_finite_scores_and_gradients(dtype: torch.dtype, beta: float) -> None:
    """Up to 1e4, where all other probabilities are zero in every dtype."""
    for size in (1.0, 30.0, 1e3, 1e4):
        given = (logits(size / 3).clamp(-size, size)).to(dtype).requires_grad_()
        scores = weighted_log_product(given, beta)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
        scores.sum().backward()
        assert given.grad is not None
        assert given.grad.isfinite().all()


def test_log_one_minus_is_accurate() -> None:
    """With two classes, 1 - p is the other's probability: log(1 - p) = -log(1 + exp(d)).

    In float32, exp(-40) is lost in 1 - p, so computing the difference would give log(0).
    """
    for d in (0.0, 1e-3, 1.0, 10.0, 40.0, 90.0, 500.0):
        log_p = F.log_softmax(torch.tensor([d, 0.0]), dim=0)
        of_top, of_other = log_one_minus(log_p).tolist()
        exact = -d - math.log1p(math.exp(-d))
        assert of_top == pytest.approx(exact, rel=1e-6, abs=1e-7)
        assert of_other == pytest.approx(-math.log1p(math.exp(-d)), rel=1e-5, abs=1e-7)


def test_mean_of_probabilities_is_returned_as_logits() -> None:
    p = torch.tensor(probabilities(logits()), dtype=torch.float64)
    torch.testing.assert_close(mean_of_probabilities(logits()).softmax(dim=1), p.mean(dim=0))
    single = [[[1 / (1 + math.exp(-x)) for x in row] for row in rows] for rows in logits().tolist()]
    expected = torch.tensor(single, dtype=torch.float64).mean(dim=0)
    torch.testing.assert_close(mean_of_label_probabilities(logits()).sigmoid(), expected)
    for mean in (mean_of_probabilities, mean_of_label_probabilities):
        assert mean(logits(1e4).float()).isfinite().all()


@pytest.mark.parametrize(
    "combine",
    [
        partial(weighted_log_product, beta=0.0),
        log_product,
        mean_of_probabilities,
        mean_of_label_probabilities,
    ],
)
def test_gradients_match_finite_differences(combine: Any) -> None:
    """In float64; beta is 0 because its weights have no gradient."""
    assert torch.autograd.gradcheck(combine, logits().requires_grad_())


# ------------------------------------------------------------------------------ the models


def build(name: str, spec: DatasetSpec = SMALL, **options: Any) -> FusionModel:
    sizes = {"dim": 8, "num_heads": 2, "num_layers": 2}
    model = build_model(name, spec, MODELS[name].config(**sizes | options), seed=0)
    return model.eval().double()


def samples() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(B, shape.num_tokens, 4, generator=random, dtype=torch.float64)
        for name, shape in SMALL.modalities.items()
    }


def heads_of(model: FusionModel) -> Tensor:
    """Return the outputs of each modality's head, (M, B, C)."""
    tokens = model.tokenizer(samples())
    for layer in model.layers:
        tokens = layer(tokens)
    head: Any = model.head
    return torch.stack([one(tokens) for one in head.heads])


def test_every_modality_has_a_separate_head() -> None:
    model, others = build("averaging"), {k: x + 1 for k, x in samples().items()}
    by_head = heads_of(model)
    for m, name in enumerate(SMALL.modalities):
        tokens = model.tokenizer({**others, name: samples()[name]})
        for layer in model.layers:
            tokens = layer(tokens)
        head: Any = model.head
        assert torch.equal(head.heads[m](tokens), by_head[m])
    late = MODELS["late_fusion"].cost(SMALL, MODELS["late_fusion"].config(num_layers=2))
    for name in NAMES:
        cost = MODELS[name].cost(SMALL, MODELS[name].config(num_layers=2))
        assert cost.gflops == late.gflops
        assert cost.gmacs == late.gmacs
        assert cost.parameters == late.parameters + 2 * (2 * 40 + 40 * 4 + 4)


def test_averaging_is_the_mean_of_logits_or_probabilities() -> None:
    model = build("averaging")
    torch.testing.assert_close(model(samples()), heads_of(model).mean(dim=0))
    model = build("averaging", of="probabilities")
    expected = heads_of(model).softmax(dim=2).mean(dim=0)
    torch.testing.assert_close(model(samples()).softmax(dim=1), expected)


def test_averaging_takes_every_task() -> None:
    numbers = build("averaging", RATING)
    assert numbers(samples()).shape == (B, 1)
    torch.testing.assert_close(numbers(samples()), heads_of(numbers).mean(dim=0))
    labels = build("averaging", TAGS, of="probabilities")
    expected = heads_of(labels).sigmoid().mean(dim=0)
    torch.testing.assert_close(labels(samples()).sigmoid(), expected)


@pytest.mark.parametrize(
    ("name", "beta", "options"),
    [("multiplication", 0.0, {}), ("multiplicative", 0.6, {"beta": 0.6})],
)
def test_the_loss_is_minus_the_score_of_the_class(
    name: str, beta: float, options: dict[str, float]
) -> None:
    model = build(name, **options)
    expected = slow_scores(heads_of(model).detach(), beta)
    torch.testing.assert_close(model(samples()), expected, rtol=1e-10, atol=1e-10)
    task = partial(losses_of, "classification", TrainConfig())
    for train in (False, True):
        model.train(train)
        losses = model.losses(task, model(samples()), torch.tensor([2, 0]))
        torch.testing.assert_close(losses, -expected[[0, 1], [2, 0]])


def test_multiplication_loss_is_the_sum_of_the_modalities_cross_entropies() -> None:
    model, labels = build("multiplication"), torch.tensor([2, 0])
    task = partial(losses_of, "classification", TrainConfig())
    losses = model.losses(task, model(samples()), labels)
    apart = sum(F.cross_entropy(one, labels, reduction="none") for one in heads_of(model))
    torch.testing.assert_close(losses, apart)


def test_multiplicative_with_beta_zero_equals_multiplication() -> None:
    plain, weighted = build("multiplication"), build("multiplicative", beta=0.0)
    assert torch.equal(plain(samples()), weighted(samples()))
    task, labels = partial(losses_of, "classification", TrainConfig()), torch.tensor([2, 0])
    for model in (plain, weighted):
        model.losses(task, model(samples()), labels).sum().backward()
    for one, other in zip(plain.parameters(), weighted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_equal_outcomes_share_a_canonical_configuration() -> None:
    def same(name: str, *options: dict[str, Any]) -> bool:
        config = MODELS[name].config
        return len({str(config(**one).canonical(SMALL)) for one in options}) == 1

    one = {"modalities": ("first",)}
    assert same("averaging", one, one | {"of": "probabilities"})
    assert same("multiplicative", one, one | {"beta": 3.0})
    assert not same("averaging", {}, {"of": "probabilities"})
    assert not same("multiplicative", {}, {"beta": 3.0})
    alone = [build("averaging", of=of, **one)(samples()) for of in ("logits", "probabilities")]
    assert torch.equal(*alone)


def refused(name: str, spec: DatasetSpec, **options: Any) -> str:
    config, messages = MODELS[name].config(**options), set()
    for act in (lambda: build_model(name, spec, config, seed=0),
                lambda: MODELS[name].cost(spec, config)):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            act()
        messages.add(str(caught.value))
    (message,) = messages
    return message


@pytest.mark.parametrize("spec", [RATING, TAGS], ids=["regression", "multilabel"])
@pytest.mark.parametrize("name", ["multiplication", "multiplicative"])
def test_products_refuse_other_tasks_than_classification(name: str, spec: DatasetSpec) -> None:
    message = refused(name, spec)
    assert f"is {spec.task}" in message
    assert "Use `averaging`." in message


def test_invalid_options_are_refused() -> None:
    assert "the task is regression" in refused("averaging", RATING, of="probabilities")
    with pytest.raises(ConfigError, match="`of` must be one of logits, probabilities"):
        MODELS["averaging"].config(of="votes")
    for beta in (-0.1, math.inf, math.nan, "1"):
        with pytest.raises(ConfigError, match="`beta` must lie in"):
            MODELS["multiplicative"].config(beta=beta)
