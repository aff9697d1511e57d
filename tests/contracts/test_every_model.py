"""The contract of every listed model; a new model is tested by being listed in MODELS.

Shapes: B batch, T tokens, F features, C classes.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.checkpoint import read_checkpoint, write_checkpoint
from sftsearch.trainables.config import ConfigError, TrainConfig, TransformerConfig
from sftsearch.trainables.cost import count_gmacs
from sftsearch.trainables.layers.tokens import Sequence
from sftsearch.trainables.mixup import Mixup

from small_models import ALONE, NUM_CLASSES, SPEC, batch, fill_padding, lengths, losses, small

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sftsearch.trainables.layers.tokens import Tokens

MIXING_LATENTS = sorted(name for name, entry in MODELS.items() if entry.mixes_latents)
"""Models that support manifold mixup; the others refuse it, see `test_dynmm.py`."""
TRANSFORMERS = sorted(
    name for name, entry in MODELS.items() if issubclass(entry.config, TransformerConfig)
)
WITH_DROPOUT = sorted(name for name, entry in MODELS.items() if hasattr(entry.config, "dropout"))
POOLED = sorted(name for name, entry in MODELS.items() if hasattr(entry.config, "stride"))
POOLED_APART = sorted(set(POOLED) - {"concat"})
"""Models that pool each modality separately."""


def with_dropout(name: str, rate: float) -> dict[str, float]:
    return {"dropout": rate} if name in WITH_DROPOUT else {}


@pytest.fixture(params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.mark.medium
def test_gives_a_logit_for_each_class_and_a_gradient_to_each_parameter(name: str) -> None:
    model = build_model(name, SPEC, small(name), seed=0)
    assert model.eval()(batch()).shape == (4, NUM_CLASSES)
    # Gates begin to learn at half of the epochs; later their gradients may be too small to see.
    model.train().begin_epoch(5, 10)
    losses_B = losses(model, model(batch()))
    assert losses_B.shape == (4,)
    losses_B.sum().backward()
    without = [
        key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    assert without == []


def test_is_built_from_the_seed_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_model(name, SPEC, small(name), seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    for key, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[key])
    assert any(
        not torch.equal(weights, other.state_dict()[key])
        for key, weights in first.state_dict().items()
    )


@pytest.mark.medium
def test_counted_cost_matches_the_closed_form(name: str) -> None:
    config = small(name)
    model, cost = build_model(name, SPEC, config, seed=0), MODELS[name].cost(SPEC, config)
    assert cost.gmacs == count_gmacs(model, SPEC, config)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.gflops > 0


@pytest.mark.medium
def test_counting_operations_does_not_change_the_model(name: str) -> None:
    config = small(name)
    model = build_model(name, SPEC, config, seed=0)
    before = model.eval()(batch())
    count_gmacs(model, SPEC, config)
    assert torch.equal(model(batch()), before)


def test_configuration_survives_json(name: str) -> None:
    config = small(name, modalities=("audio",), **with_dropout(name, 0.1))
    assert MODELS[name].config(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.medium
def test_only_the_chosen_modalities_are_read_in_the_datasets_order(name: str) -> None:
    subset = ("text",) if name in ALONE else ("text", "type")
    model = build_model(name, SPEC, small(name, modalities=subset), seed=0).eval()
    assert model.modalities == tuple(m for m in SPEC.modalities if m in subset)
    inputs = batch()
    logits_BC = model(inputs)
    assert torch.equal(model({**inputs, "audio": inputs["audio"] + 1}), logits_BC)
    del inputs["audio"]
    assert torch.equal(model(inputs), logits_BC)


@pytest.mark.medium
def test_every_chosen_modality_changes_the_outputs(name: str) -> None:
    model = build_model(name, SPEC, small(name), seed=0).eval()
    inputs, others = batch(), batch(seed=2)
    logits_BC = model(inputs)
    for modality in model.modalities:
        changed = model({**inputs, modality: others[modality]})
        assert not torch.allclose(changed, logits_BC), modality


@pytest.mark.medium
def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    config = small(name, **with_dropout(name, 0.5))
    model = build_model(name, SPEC, config, seed=0).double().eval()
    inputs = {key: x_BTF.double() for key, x_BTF in batch(size=5).items()}
    together = model(inputs)
    alone = torch.cat([model({k: x[i : i + 1] for k, x in inputs.items()}) for i in range(5)])
    # float64: another batch size may change the order of sums; nothing else may differ.
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1e6, math.nan, math.inf])
def test_a_padded_value_changes_nothing_bit_for_bit(name: str, value: float) -> None:
    model = build_model(name, SPEC, small(name), seed=0).eval()
    outputs = model(batch(), lengths())
    assert outputs.isfinite().all()
    assert torch.equal(model(fill_padding(batch(), lengths(), value), lengths()), outputs)


@pytest.mark.medium
def test_a_padded_value_changes_no_gradient(name: str) -> None:
    def gradients(inputs: dict[str, Tensor]) -> list[Tensor | None]:
        model = build_model(name, SPEC, small(name), seed=0)
        torch.manual_seed(0)  # some models draw random numbers in training
        model(inputs, lengths()).square().sum().backward()
        return [p.grad for p in model.parameters()]

    corrupted = fill_padding(batch(), lengths(), math.nan)
    for given, with_nan in zip(gradients(batch()), gradients(corrupted), strict=True):
        assert (given is None) == (with_nan is None)
        if given is not None and with_nan is not None:
            assert given.isfinite().all()
            assert torch.equal(given, with_nan)


@pytest.mark.medium
def test_whole_lengths_change_nothing(name: str) -> None:
    model = build_model(name, SPEC, small(name), seed=0).double().eval()
    inputs = {key: x_BTF.double() for key, x_BTF in batch().items()}
    whole = {key: torch.full((4,), shape.num_tokens) for key, shape in SPEC.modalities.items()}
    torch.testing.assert_close(model(inputs, whole), model(inputs), rtol=1e-12, atol=1e-12)


def test_a_token_without_a_real_sample_is_not_read(name: str) -> None:
    """The position embedding of a padded token does not matter either."""
    model = build_model(name, SPEC, small(name), seed=0).eval()
    known = {"type": torch.tensor([4, 3, 2, 0])}  # patches of 2: at most two tokens are real
    outputs = model(batch(), known)
    table = model.tokenizer.modalities[0]
    with torch.no_grad():
        for positions in (p for key, p in table.named_parameters() if key == "positions"):
            positions[3:] += 7.0
    assert torch.equal(model(batch(), known), outputs)


def test_real_sample_changes_the_outputs_despite_padding(name: str) -> None:
    model = build_model(name, SPEC, small(name), seed=0).eval()
    known, inputs = {"type": torch.full((4,), 5)}, batch()
    outputs = model(inputs, known)
    inputs["type"][:, 4] += 1.0  # the last real one
    assert not torch.allclose(model(inputs, known), outputs)


@pytest.mark.medium
def test_any_modality_can_be_missing(name: str) -> None:
    model = build_model(name, SPEC, small(name), seed=0).eval()
    for modality in model.modalities:
        missing = {modality: torch.zeros(4, dtype=torch.int64)}
        outputs = model(batch(), missing)
        assert outputs.isfinite().all()
        assert torch.equal(model({**batch(), modality: batch(seed=2)[modality]}, missing), outputs)


@pytest.mark.medium
def test_exported_model_gives_the_same_logits(name: str) -> None:
    """The exported program also takes other batch sizes than the one it was traced with."""
    model = build_model(name, SPEC, small(name), seed=0).eval()
    read = {key: x_BTF for key, x_BTF in batch().items() if key in model.modalities}
    known = {key: length for key, length in lengths().items() if key in model.modalities}
    size = torch.export.Dim("size", min=2, max=64)
    for arguments in ((read,), (read, known)):
        by_name = [{key: {0: size} for key in argument} for argument in arguments]
        shapes = dict(zip(("inputs", "lengths"), by_name, strict=False))
        program = torch.export.export(model, arguments, dynamic_shapes=shapes)
        torch.testing.assert_close(program.module()(*arguments), model(*arguments))
    other = {key: x_BTF for key, x_BTF in batch(size=7).items() if key in model.modalities}
    program = torch.export.export(model, (read,), dynamic_shapes={"inputs": by_name[0]})
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.medium
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_same_probabilities(name: str, precision: torch.dtype) -> None:
    """With autocast, as in training; within 1e-2."""
    model = build_model(name, SPEC, small(name), seed=0).eval()
    for known in (None, lengths()):
        exact = model(batch(), known).softmax(dim=1)
        with torch.autocast("cpu", dtype=precision):
            half = model(batch(), known).float().softmax(dim=1)
        torch.testing.assert_close(half, exact, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", MIXING_LATENTS)
def test_manifold_mixup_can_mix_after_transformer_layers(name: str) -> None:
    """All mixing points are called in order, and their results are used."""
    model = build_model(name, SPEC, small(name), seed=0).eval()
    seen: list[int] = []

    def swap(i: int, tokens: Tokens) -> Tokens:
        seen.append(i)
        return {key: Sequence(one.z.flip(0), one.valid) for key, one in tokens.items()}

    def keep(i: int, tokens: Tokens) -> Tokens:
        return tokens

    outputs = model(batch())
    assert torch.equal(model(batch(), None, keep), outputs)
    swapped = model(batch(), None, swap)
    assert tuple(seen) == model.mixing_points
    assert len(seen) > 0
    expected = outputs if len(seen) % 2 == 0 else outputs.flip(0)
    torch.testing.assert_close(swapped, expected)


@pytest.mark.medium
@pytest.mark.parametrize("weights", ["batch", "sample"])
@pytest.mark.parametrize(
    ("name", "mixup"),
    [
        *((name, "manifold") for name in MIXING_LATENTS),
        *((name, mixup) for name in sorted(MODELS) for mixup in ("input", "modality")),
    ],
)
def test_mixup_mixes_its_batches(name: str, mixup: Any, weights: Any) -> None:
    model = build_model(name, SPEC, small(name), seed=0)
    config = TrainConfig(mixup=mixup, mixup_weights=weights, mixup_alpha=2.0)
    known = {key: length for key, length in lengths().items() if key in model.modalities}
    inputs = fill_padding({key: batch()[key] for key in model.modalities}, known, 0.0)
    mix = Mixup(config, model, inputs, known).draw(4, np.random.default_rng(0))
    outputs = model(*mix.inputs(inputs, known), mix.after_layer)
    assert outputs.isfinite().all()
    assert not torch.allclose(outputs, model(batch(), lengths()))
    outputs.square().sum().backward()


def test_equal_outcomes_have_one_canonical_configuration(name: str) -> None:
    config = small(name)
    same = config.canonical(SPEC)
    assert same == same.canonical(SPEC)
    assert same == replace(config, modalities=config.chosen(SPEC)).canonical(SPEC)
    assert MODELS[name].cost(SPEC, same) == MODELS[name].cost(SPEC, config)
    model = build_model(name, SPEC, config, seed=0).eval()
    assert torch.equal(build_model(name, SPEC, same, seed=0).eval()(batch()), model(batch()))


@pytest.mark.parametrize("name", POOLED_APART)
def test_a_stride_that_drops_nothing_is_a_token_budget(name: str) -> None:
    one = {"modalities": ("text",), "patch": 1}  # nine tokens
    budget = small(name, tokens=3, stride=None, **one)
    model = build_model(name, SPEC, budget, seed=0).eval()
    for stride in (3, {"text": 3}, {"text": 3, "type": 2}):
        config = small(name, stride=stride, tokens=None, **one)
        assert config.canonical(SPEC) == budget.canonical(SPEC)
        assert torch.equal(build_model(name, SPEC, config, seed=0).eval()(batch()), model(batch()))
    for other in ({"stride": 2}, {"tokens": 4}, {"stride": 3, "pooling": "max"}):
        config = small(name, **{"stride": None, "tokens": None, **other}, **one)
        assert config.canonical(SPEC) != budget.canonical(SPEC)


@pytest.mark.medium
@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_acts_only_in_training(name: str) -> None:
    model = build_model(name, SPEC, small(name, dropout=0.5), seed=0)
    assert not torch.equal(model(batch()), model(batch()))
    model.eval()
    assert torch.equal(model(batch()), model(batch()))


def test_weights_survive_a_file_exactly(name: str, tmp_path: Path) -> None:
    model = build_model(name, SPEC, small(name), seed=0).eval()
    write_checkpoint(tmp_path / "model", model.state_dict(), {})
    other = build_model(name, SPEC, small(name), seed=1).eval()
    tensors, _ = read_checkpoint(tmp_path / "model", other.state_dict())
    other.load_state_dict(tensors)
    assert torch.equal(other(batch()), model(batch()))


def refused(name: str, **options: Any) -> str:
    """Return the error message, which must be the same for building and computing the cost."""
    config = small(name, **options)
    with pytest.raises(ConfigError) as building:
        build_model(name, SPEC, config, seed=0)
    with pytest.raises(ConfigError) as costing:
        MODELS[name].cost(SPEC, config)
    assert str(building.value) == str(costing.value)
    assert "\n" not in str(building.value)
    return str(building.value)


def test_an_unknown_modality_is_refused_with_the_nearest(name: str) -> None:
    message = refused(name, modalities=("audoi",))
    assert "'audoi'" in message
    assert "Did you mean 'audio'?" in message


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_patch_longer_than_a_modality_is_refused_naming_both(name: str) -> None:
    message = refused(name, patch=7, modalities=("audio",))
    assert "patch=7" in message
    assert "audio has 6 samples" in message


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_heads_that_do_not_divide_the_width_are_refused_naming_both(name: str) -> None:
    with pytest.raises(ConfigError, match=r"num_heads=5, dim=12"):
        small(name, num_heads=5)


@pytest.mark.parametrize("name", POOLED_APART)
def test_stride_longer_than_its_tokens_is_refused_naming_both(name: str) -> None:
    one = {"modalities": ("audio",)}
    assert "stride=4, tokens=3" in refused(name, stride={"audio": 4}, **one)
    assert "stride=4, tokens=3" in refused(name, stride=4, **one)


@pytest.mark.parametrize("name", POOLED_APART)
def test_strides_by_modality_must_name_modalities_of_the_data(name: str) -> None:
    one = {"modalities": ("audio",)}
    assert "no modality 'audo'" in refused(name, stride={"audo": 1, "audio": 1}, **one)
    assert "has no value for 'audio'" in refused(name, stride={"text": 1}, **one)


@pytest.mark.parametrize("name", sorted(set(POOLED_APART) - set(ALONE)))
def test_one_stride_for_all_leaves_a_short_modality_one_token(name: str) -> None:
    by_modality = small(name, stride={"type": 5, "audio": 3, "text": 5})
    assert MODELS[name].cost(SPEC, small(name, stride=5)) == MODELS[name].cost(SPEC, by_modality)
    assert build_model(name, SPEC, small(name, stride=5), seed=0)(batch()).isfinite().all()


@pytest.mark.parametrize("name", ALONE)
def test_a_unimodal_model_refuses_several_modalities(name: str) -> None:
    message = refused(name, modalities=None)
    assert "exactly one" in message
    assert "type, audio, text" in message
