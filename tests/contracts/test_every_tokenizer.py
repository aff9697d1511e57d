"""The contract of every tokenizer and way to cut samples, with every model that has them.

Shapes: B batch, T samples of a modality, F features.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import TOKENIZERS, ConfigError, TrainConfig
from sftsearch.trainables.cost import count_gmacs
from sftsearch.trainables.memory import MEGABYTE, count_memory
from sftsearch.trainables.mixup import Mixup

from small_models import SPEC, batch, fill_padding, lengths, losses, small

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.trainables.models.fusion import FusionModel

OWN_TOKENS = ("msaf_lstm", "mult_original")
"""Models whose tokens are their paper's."""
OWN_SEGMENTS = ("msaf", "msaf_lstm")
"""Models of which `segments` has another meaning."""
CUT = sorted(name for name, entry in MODELS.items() if hasattr(entry.config, "patch"))
TOKENIZED = sorted(set(CUT) - set(OWN_TOKENS))
SEGMENTED = sorted(set(CUT) - set(OWN_SEGMENTS))
PATCHES = {"type": 3, "audio": 2, "text": 4}
ALL_AT_ONCE = {
    "patch": 1,
    "segments": {"type": 3, "audio": 9, "text": 4},
    "tokenizer": "linear_statistics",
}
Cases = list[tuple[str, dict[str, Any]]]
CASES: Cases = [
    *((name, {"tokenizer": "conv"}) for name in TOKENIZED),
    *((name, ALL_AT_ONCE) for name in SEGMENTED if name in TOKENIZED),
    ("mult_original", {"patch": 1, "segments": 4}),
]
"""Models and options, with which every tokenizer and segments occur."""
PRICED: Cases = [
    *CASES,
    *((name, {"tokenizer": "statistics"}) for name in TOKENIZED),
    *((name, {"patch": PATCHES}) for name in CUT),
    *((name, {"patch": 1, "segments": 4}) for name in SEGMENTED),
]


def each(cases: Cases) -> pytest.MarkDecorator:
    ids = [
        f"{name}-{'-'.join(str(value) for value in options.values())}" for name, options in cases
    ]
    return pytest.mark.parametrize(("name", "options"), cases, ids=ids)


def build(name: str, options: dict[str, Any]) -> FusionModel:
    """Build a model whose running statistics are those of a batch."""
    model = build_model(name, SPEC, small(name, **options), seed=0)
    torch.manual_seed(0)
    model.train()(batch(seed=10), lengths())
    return model.eval()


@each(PRICED)
def test_counts_match_the_closed_form(name: str, options: dict[str, Any]) -> None:
    config = small(name, **options)
    model, cost = build_model(name, SPEC, config, seed=0), MODELS[name].cost(SPEC, config)
    assert cost.gmacs == count_gmacs(model, SPEC, config)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    same = config.canonical(SPEC)
    assert same == same.canonical(SPEC)
    assert MODELS[name].cost(SPEC, same) == cost


@each(CASES)
def test_padding_and_missing_modalities_are_not_read(name: str, options: dict[str, Any]) -> None:
    """Bit for bit, in evaluation, in training, and in the gradients."""
    model = build(name, options)
    outputs = model(batch(), lengths())
    assert outputs.isfinite().all()
    assert torch.equal(model(fill_padding(batch(), lengths(), math.nan), lengths()), outputs)
    found = [gradients(model, one) for one in (batch(), fill_padding(batch(), lengths(), math.nan))]
    for given, with_nan in zip(*found, strict=True):
        assert (given is None) == (with_nan is None)
        assert given is None or torch.equal(given, with_nan)


def gradients(model: FusionModel, inputs: dict[str, Tensor]) -> list[Tensor | None]:
    torch.manual_seed(0)
    model.train().zero_grad()
    losses(model, model(inputs, lengths())).sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@each(CASES)
def test_evaluation_depends_on_each_sample_alone(name: str, options: dict[str, Any]) -> None:
    """Whole lengths change nothing, and nor does the rest of the batch."""
    model = build(name, options).double()
    inputs = {key: x_BTF.double() for key, x_BTF in batch(size=3).items()}
    together = model(inputs)
    whole = {key: torch.full((3,), shape.num_tokens) for key, shape in SPEC.modalities.items()}
    torch.testing.assert_close(model(inputs, whole), together, rtol=1e-12, atol=1e-12)
    alone = torch.cat([model({k: x[i : i + 1] for k, x in inputs.items()}) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(TOKENIZED) & set(SEGMENTED)))
def test_a_short_sample_is_that_of_the_unpadded_one(name: str) -> None:
    model = build(name, ALL_AT_ONCE).double()
    inputs = {key: x_BTF.double()[:1] for key, x_BTF in batch().items()}
    short = dict.fromkeys(inputs, 4)
    padded = fill_padding(inputs, {key: torch.tensor([n]) for key, n in short.items()}, math.nan)
    given = {key: torch.tensor([n]) for key, n in short.items()}
    cut = {key: x_BTF[:, :4] for key, x_BTF in inputs.items()}
    torch.testing.assert_close(model(padded, given), model(cut), rtol=1e-12, atol=1e-12)


@pytest.mark.medium
@each(
    [(name, ALL_AT_ONCE) for name in sorted(set(TOKENIZED) & set(SEGMENTED))]
    + [(name, {"tokenizer": "conv"}) for name in ("sft", "dynmm_fusion")]
)
def test_exported_model_gives_the_same_logits(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    read = {key: x_BTF for key, x_BTF in batch().items() if key in model.modalities}
    known = {key: length for key, length in lengths().items() if key in model.modalities}
    size = torch.export.Dim("size", min=2, max=64)
    shapes = {"inputs": {k: {0: size} for k in read}, "lengths": {k: {0: size} for k in known}}
    program = torch.export.export(model, (read, known), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(read, known), model(read, known))


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(set(TOKENIZED) & set(SEGMENTED)))
def test_half_precision_mixup_and_memory(name: str) -> None:
    model = build(name, ALL_AT_ONCE)
    exact = model(batch(), lengths()).softmax(dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(batch(), lengths()).float().softmax(dim=1)
    torch.testing.assert_close(half, exact, rtol=0, atol=1e-2)
    known = {key: length for key, length in lengths().items() if key in model.modalities}
    inputs = fill_padding({key: batch()[key] for key in model.modalities}, known, 0.0)
    mix = Mixup(TrainConfig(mixup="input"), model, inputs, known).draw(4, np.random.default_rng(0))
    assert model.train()(*mix.inputs(inputs, known), mix.after_layer).isfinite().all()
    counted = count_memory(name, SPEC, model.config, TrainConfig(batch_size=4))
    held = [*model.parameters(), *model.buffers()]
    assert counted.weights_mb * MEGABYTE == sum(t.numel() * t.element_size() for t in held)
    assert counted.train_memory_mb > counted.inference_memory_mb > counted.weights_mb


# ------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", OWN_TOKENS)
@pytest.mark.parametrize("kind", TOKENIZERS[1:])
def test_models_with_their_own_tokens_refuse_the_others(name: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"must be linear for `{name}`.* but got '{kind}'"):
        small(name, tokenizer=kind)


@pytest.mark.parametrize("name", CUT)
def test_cuts_that_do_not_fit_are_refused(name: str) -> None:
    for options, message in (
        ({"tokenizer": "fourier"}, "`tokenizer` must be one of linear, statistics"),
        ({"patch": {"type": 0}}, "`patch.type` must be a whole number from 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            small(name, **options)
    for options, message in (
        ({"patch": {"type": 2, "texts": 2, "audio": 2}}, "Did you mean 'text'"),
        ({"patch": {"audio": 2, "text": 2}}, "`patch` has no value for 'type'"),
        ({"patch": {**PATCHES, "type": 14}}, "patch=14, type has 13 samples"),
    ):
        with pytest.raises(ConfigError, match=message):
            MODELS[name].cost(SPEC, small(name, **options))


@pytest.mark.parametrize("name", SEGMENTED)
def test_patch_and_segments_exclude_each_other(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Only one of `patch` and `segments`.*segments=3"):
        small(name, patch=2, segments=3)
    with pytest.raises(ConfigError, match="`segments` must be a whole number from 1"):
        small(name, patch=1, segments=0)


def test_a_modality_with_fewer_samples_than_segments_has_one_token_each() -> None:
    config = small("sft", patch=1, segments=8)
    assert config.num_tokens(SPEC) == {"type": 8, "audio": 6, "text": 8}
    assert {name: cut.patch for name, cut in config.cuts(SPEC).items()} == {
        "type": 2, "audio": 1, "text": 2
    }  # fmt: skip


def test_segments_that_cut_every_sample_evenly_are_patches() -> None:
    """Only if no sample is shorter."""
    spec = replace(
        SPEC, modalities={m: replace(s, num_tokens=12) for m, s in SPEC.modalities.items()}
    )
    config = small("sft", patch=1, segments=4)
    assert config.canonical(spec) == small("sft", patch=3).canonical(spec)
    varies = replace(
        spec, modalities={m: replace(s, variable_length=True) for m, s in spec.modalities.items()}
    )
    assert config.canonical(varies) != small("sft", patch=3).canonical(varies)


def test_experts_inherit_the_tokens_of_dynmm() -> None:
    experts = (
        {"kind": "late_fusion", "num_layers": 1},
        {"kind": "msaf", "num_layers": 1, "segments": 2},
        {"kind": "concat", "num_layers": 1, "patch": 3, "tokenizer": "statistics"},
    )
    config = small("dynmm", patch=1, segments=4, tokenizer="conv", experts=experts)
    found = [one.config for one in config.experts_of(SPEC)]
    assert [one.tokenizer for one in found] == ["conv", "conv", "statistics"]
    assert [(one.patch, one.segments) for one in found] == [(1, 4), (1, 2), (3, None)]
    assert "tokenizer" in {field.name for field in fields(config)}
