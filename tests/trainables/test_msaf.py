"""Test MSAF: its steps, their costs, and the networks of its paper.

Shapes: B batch, C_m channels of a modality, C of a block, N blocks, Z bottleneck, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.spec import ModalitySpec
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.cost import count_gmacs
from sftsearch.trainables.layers.msaf import (
    MSAF,
    SegmentedMSAF,
    msaf_macs,
    segment_lengths,
)
from sftsearch.trainables.layers.ravdess import AudioBranch
from sftsearch.trainables.layers.recurrent import LSTM, last_valid, step_by_step
from sftsearch.trainables.layers.tokens import Sequence

from shapes import MOSEI, dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from sftsearch.trainables.cost import Cost
    from sftsearch.trainables.models.fusion import FusionModel

SMALL = dataset_spec(3, first=(7, 4), second=(5, 4), third=(4, 4))
MOSEI_NET = replace(
    describe("synthetic_rating"),
    modalities={
        name: ModalitySpec(num_tokens=50, num_features=features)
        for name, features in (("vision", 35), ("audio", 74), ("text", 768))
    },
)
MOSEI_WIDTHS = {"vision": 32, "audio": 64, "text": 128}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def price(name: str, spec: Any, **options: Any) -> Cost:
    return MODELS[name].cost(spec, MODELS[name].config(**options))


def small(name: str = "msaf", **options: Any) -> FusionModel:
    """Build a small model in float64, where reordered sums differ by 1e-15, not by 1e-6."""
    config = MODELS[name].config(**{"dim": 8, "num_heads": 2} | options)
    return build_model(name, SMALL, config, seed=0).eval().double()


def samples(size: int = 3) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(size, shape.num_tokens, 4, generator=random, dtype=torch.float64)
        for name, shape in SMALL.modalities.items()
    }


SHAPES = ((10, 3, 4), (7,), (5, 6))
"""Channels and further axes of three modalities; 4 divides no number of channels."""


def module(channels: tuple[int, ...] = (10, 7, 5), **options: Any) -> MSAF:
    """Return a module in float64 with random running statistics."""
    torch.manual_seed(0)
    made = MSAF(channels, **{"block_width": 4, "reduction": 2} | options).double().eval()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0.5, 2.0)
    return made


def features(shapes: tuple[tuple[int, ...], ...] = SHAPES, size: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(size, *shape, generator=random, dtype=torch.float64) for shape in shapes]


def blocks_of(x: Tensor, width: int) -> list[Tensor]:
    """Return the blocks (C, ...) of one sample's features (C_m, ...), the last one padded."""
    blocks = list(x.split(width))
    missing = width - len(blocks[-1])
    if missing:
        blocks[-1] = torch.cat([blocks[-1], x.new_zeros(missing, *x.shape[1:])])
    return blocks


def reference(made: MSAF, xs: list[Tensor]) -> list[Tensor]:
    """Compute the paper's steps, one sample at a time, in evaluation mode."""
    c, norm = made.block_width, made.norm
    outputs = []
    for sample in zip(*xs, strict=True):
        split = [blocks_of(x, c) for x in sample]
        means = [torch.stack(blocks).sum(dim=0).reshape(c, -1).mean(dim=1) for blocks in split]
        z = made.join.weight @ torch.stack(means).sum(dim=0) + made.join.bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        z = F.relu(z * norm.weight + norm.bias)
        weights, biases = made.highlight.weight.split(c), made.highlight.bias.split(c)
        scores = [w @ z + b for w, b in zip(weights, biases, strict=True)]
        total = torch.stack(scores).exp().sum(dim=0)
        attention = iter([score.exp() / total for score in scores])
        scaled = []
        for x, blocks in zip(sample, split, strict=True):
            gains = [
                made.suppression + (1 - made.suppression) * next(attention)
                for _ in range(len(blocks))
            ]
            products = [
                block * gain.reshape(-1, *[1] * (block.dim() - 1))
                for block, gain in zip(blocks, gains, strict=True)
            ]
            scaled.append(torch.cat(products)[: len(x)])
        outputs.append(scaled)
    return [torch.stack(samples_) for samples_ in zip(*outputs, strict=True)]


# --------------------------------------------------------------- the module


@pytest.mark.parametrize("suppression", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("block_width", [1, 4, 5, 10])
def test_msaf_matches_the_papers_split_join_and_highlight(
    block_width: int, suppression: float
) -> None:
    made = module(block_width=block_width, reduction=1, suppression=suppression)
    for got, expected in zip(made(features()), reference(made, features()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "block_width", "reduction", "expected"),
    [
        ((64, 64), 32, 4, 1_432),  # the complexity table: c = 64, C = c / 2
        ((1024, 1024), 512, 4, 330_112),  # the same, c = 1024
        ((32, 64, 128), 16, 2, 2_168),  # CMU-MOSEI, one of five segments
        ((1024, 32), 16, 4, 5_356),  # RAVDESS, first
        ((2048, 64), 32, 4, 19_288),  # RAVDESS, second
        ((832, 128, 128), 64, 4, 19_568),  # NTU RGB+D, first
        ((1024, 512), 256, 4, 116_416),  # NTU RGB+D, second
    ],
)
def test_parameters_match_the_papers_networks(
    channels: tuple[int, ...], block_width: int, reduction: int, expected: int
) -> None:
    assert parameters(MSAF(channels, block_width=block_width, reduction=reduction)) == expected


@pytest.mark.parametrize(
    ("channels", "expected", "printed"), [(64, 10_432, 10.4e3), (1024, 2_624_512, 2.6e6)]
)
def test_flops_match_the_paper(channels: int, expected: int, printed: float) -> None:
    """Blocks of half the channels, r = 4, a batch of four.

    The paper counts two for each multiply-add of a product, each ReLU and each of the two steps of
    a norm; it does not count means, softmax and the final scaling.
    """
    width, squeezed = channels // 2, channels // 8
    flops = 2 * 4 * (msaf_macs(width, squeezed, 4) + 3 * squeezed)
    assert flops == expected
    assert flops == pytest.approx(printed, rel=0.01)


def test_papers_networks_have_the_expected_blocks() -> None:
    for channels, width, expected in (
        ((1024, 32), 16, 66),
        ((2048, 64), 32, 66),
        ((832, 128, 128), 64, 17),
        ((1024, 512), 256, 6),
    ):
        assert sum(MSAF(channels, block_width=width, reduction=4).num_blocks) == expected


def test_the_network_for_ravdess_has_25_940_724_parameters() -> None:
    """The video branch, not implemented here, has 25,882,056; the rest is counted."""
    audio = AudioBranch()
    assert parameters(audio) == 34_024
    fused = sum(
        parameters(MSAF(channels, block_width=width, reduction=4))
        for channels, width in (((1024, 32), 16), ((2048, 64), 32))
    )
    assert 25_882_056 + parameters(audio) + fused == 25_940_724


def test_audio_branch_calls_after_stage_with_its_features() -> None:
    audio, seen = AudioBranch().eval(), []

    def halve(stage: int, x: Tensor) -> Tensor:
        seen.append((stage, tuple(x.shape)))
        return x / 2

    x = torch.randn(2, 13, 212)
    assert audio(x).shape == (2, 8)
    assert not torch.allclose(audio(x, halve), audio(x))
    assert seen == [(0, (2, 32, 208)), (1, (2, 64, 26))]
    assert audio.train()(x[:1]).isfinite().all()


def test_full_suppression_is_the_identity() -> None:
    xs = features()
    for got, x in zip(module(suppression=1.0)(xs), xs, strict=True):
        assert torch.equal(got, x)


@pytest.mark.parametrize("suppression", [0.0, 0.3])
def test_gains_are_one_softmax_over_all_blocks(suppression: float) -> None:
    made = module(suppression=suppression)
    gains_BNC = made.gains(torch.randn(5, 7, 4, dtype=torch.float64))
    assert gains_BNC.min() >= suppression
    assert gains_BNC.max() <= 1
    total = suppression * 7 + (1 - suppression)  # A sums to 1 for every channel and sample
    torch.testing.assert_close(gains_BNC.sum(dim=1), torch.full((5, 4), total).double())


def test_zero_weights_treat_all_blocks_equally() -> None:
    made = module(suppression=0.2)
    nn.init.zeros_(made.highlight.weight)
    nn.init.zeros_(made.highlight.bias)
    for got, x in zip(made(features()), features(), strict=True):
        torch.testing.assert_close(got, x * (0.2 + 0.8 / 7))


def test_training_gradients_match_finite_differences() -> None:
    """In float64, including the gradient through the norm's statistics."""
    made = module((5, 3), block_width=2, reduction=1).train()
    xs = [x.requires_grad_() for x in features(((5, 2), (3,)))]
    weights = list(made.parameters())
    assert torch.autograd.gradcheck(lambda *_: tuple(made(xs)), [*xs, *weights])


def test_training_on_a_single_sample_uses_running_statistics() -> None:
    """The running statistics are not updated."""
    made = module()
    xs = features(size=1)
    before = {key: value.clone() for key, value in made.norm.state_dict().items()}
    evaluated = made(xs)
    trained = made.train()(xs)
    for got, expected in zip(trained, evaluated, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for key, value in made.norm.state_dict().items():
        assert torch.equal(value, before[key])
    made(features(size=2))
    assert not torch.equal(made.norm.running_mean, before["running_mean"])


def test_invalid_positions_are_not_read() -> None:
    """Even NaN is not read; a modality without valid positions acts as zeros."""
    made = module((10, 5))
    shapes = ((10, 3, 4), (5, 6))
    valid = [torch.rand(3, *shape[1:]) < 0.6 for shape in shapes]
    valid[1][1] = False
    zeros = [x * mask.unsqueeze(1) for x, mask in zip(features(shapes), valid, strict=True)]
    corrupted = [
        x.masked_fill(~mask.unsqueeze(1), torch.nan).requires_grad_()
        for x, mask in zip(features(shapes), valid, strict=True)
    ]
    outputs = made(corrupted, valid)
    for got, expected in zip(outputs, made(zeros, valid), strict=True):
        assert torch.equal(got, expected)
    for i, length in enumerate(int(mask[0].sum()) for mask in valid):
        assert length
        cut = [x[:1, :, mask[0]] for x, mask in zip(zeros, valid, strict=True)]
        torch.testing.assert_close(outputs[i][:1, :, valid[i][0]], made(cut)[i])
    missing = [zeros[0][1:2, :, valid[0][1]], torch.zeros(1, 5, 1).double()]
    torch.testing.assert_close(outputs[0][1:2, :, valid[0][1]], made(missing)[0])
    sum(x.sum() for x in outputs).backward()
    for x in corrupted:
        assert x.grad is not None
        assert x.grad.isfinite().all()


# --------------------------------------------------------------- block dropout


def test_block_dropout_acts_only_in_training() -> None:
    plain, dropping = module(), module(block_dropout=0.2)
    for got, expected in zip(dropping(features()), plain(features()), strict=True):
        assert torch.equal(got, expected)
    for got, expected in zip(dropping.train()(features()), plain(features()), strict=True):
        assert not torch.equal(got, expected)


def test_block_dropout_scales_once() -> None:
    """At p = 0.2 kept blocks are multiplied by 1.25, so that the mean is that of evaluation.

    The authors' code multiplies twice, by 1.5625, which gives a mean of 1.25.
    """
    made = MSAF([8, 4], block_width=4, reduction=2, block_dropout=0.2).train()
    nn.init.zeros_(made.highlight.weight)
    nn.init.zeros_(made.highlight.bias)
    torch.manual_seed(0)
    x, y = made([torch.ones(20_000, 8, 2), torch.ones(20_000, 4)])
    blocks_BN = 3 * torch.stack([x[:, 0, 0], x[:, 4, 0], y[:, 0]], dim=1)  # each gain is a third
    dropped = blocks_BN == 0
    torch.testing.assert_close(blocks_BN[~dropped], torch.full_like(blocks_BN[~dropped], 1.25))
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.007)  # four standard errors
    assert blocks_BN.mean().item() == pytest.approx(1.0, abs=0.01)
    for part in (x[:, :4], x[:, 4:]):  # whole blocks, at all positions
        assert torch.equal(part.amin(dim=(1, 2)), part.amax(dim=(1, 2)))
    both = (dropped[:, 0] & dropped[:, 1]).float().mean().item()
    assert both == pytest.approx(0.04, abs=0.006)  # blocks are dropped independently


def test_a_dropped_block_is_not_joined_either() -> None:
    """The result is that of the paper's steps on the kept features."""
    made = module(block_dropout=0.4).train()
    made.norm.eval()
    torch.manual_seed(5)
    got = made(features())
    torch.manual_seed(5)
    kept_BN = torch.rand(3, 7).ge(0.4) / 0.6
    xs = []
    for x, kept in zip(features(), kept_BN.double().split([3, 2, 2], dim=1), strict=True):
        by_channel = kept.repeat_interleave(4, dim=1)[:, : x.shape[1]]
        xs.append(x * by_channel.reshape(*by_channel.shape, *[1] * (x.dim() - 2)))
    for one, expected in zip(got, reference(made, xs), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-6)  # draws are float32


# --------------------------------------------------------------- segments


def segmented(count: int, shared: int = 0) -> SegmentedMSAF:
    torch.manual_seed(0)
    parts = [MSAF([4, 6], block_width=2, reduction=1) for _ in range(count)]
    return SegmentedMSAF(parts, shared=shared).double().eval()


def test_last_segment_takes_the_remaining_steps() -> None:
    assert segment_lengths(50, 5) == [10] * 5
    assert segment_lengths(11, 4) == [2, 2, 2, 5]
    assert segment_lengths(3, 3) == [1, 1, 1]


def test_segments_are_independent() -> None:
    made, xs = segmented(3), features(((4, 7), (6, 9, 2)))
    outputs = made(xs)
    changed = [x.clone() for x in xs]
    changed[0][:, :, 2:4] += 1
    for got, expected in zip(made(changed), outputs, strict=True):
        own = slice(got.shape[2] // 3, 2 * (got.shape[2] // 3))
        rest = torch.ones(got.shape[2], dtype=torch.bool)
        rest[own] = False
        assert torch.equal(got[:, :, rest], expected[:, :, rest])
        assert not torch.allclose(got[:, :, own], expected[:, :, own])


def test_each_segment_has_a_separate_module() -> None:
    made, xs = segmented(3), features(((4, 7), (6, 9)))
    valid = [torch.arange(7) < torch.tensor([7, 3, 0])[:, None], None]
    assert parameters(made) == 3 * parameters(made.segments[0])
    outputs = made(xs, valid)
    for i, (first, second) in enumerate(zip(((0, 2), (2, 4), (4, 7)), range(0, 9, 3), strict=True)):
        own = slice(*first), slice(second, second + 3)
        pieces = [x[:, :, cut] for x, cut in zip(xs, own, strict=True)]
        expected = made.segments[i](pieces, [valid[0][:, own[0]], None])
        for got, one, cut in zip(outputs, expected, own, strict=True):
            torch.testing.assert_close(got[:, :, cut], one)


def test_one_segment_is_the_plain_module() -> None:
    made, xs = segmented(1), features(((4, 7), (6, 9)))
    for got, expected in zip(made(xs), made.segments[0](xs), strict=True):
        assert torch.equal(got, expected)


def test_shared_step_is_read_by_all_segments_and_averaged() -> None:
    made, xs = segmented(2, shared=1), features(((4, 7), (6, 9)))
    outputs = made(xs)
    first = made.segments[0]([xs[0][:, :, :4], xs[1][:, :, :5]])
    second = made.segments[1](
        [torch.cat([x[:, :, :1], x[:, :, cut:]], dim=2) for x, cut in zip(xs, (4, 5), strict=True)]
    )
    for got, a, b in zip(outputs, first, second, strict=True):
        joined = torch.cat([(a[:, :, :1] + b[:, :, :1]) / 2, a[:, :, 1:], b[:, :, 1:]], dim=2)
        torch.testing.assert_close(got, joined)


# --------------------------------------------------------------- the model on tokens


def test_msaf_without_fusion_layers_is_late_fusion() -> None:
    msaf, late = small(num_layers=3, fusion_layers=[]), small("late_fusion", num_layers=3)
    assert [p.shape for p in msaf.state_dict().values()] == [
        p.shape for p in late.state_dict().values()
    ]
    weights = late.state_dict().values()
    msaf.load_state_dict(dict(zip(msaf.state_dict(), weights, strict=True)))
    torch.testing.assert_close(msaf(samples()), late(samples()), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize(("layers", "interact"), [((), False), ((1,), True), ((2,), True)])
def test_modalities_interact_only_with_fusion_layers(
    layers: tuple[int, ...], interact: bool, segments: int
) -> None:
    """Late fusion is a sum of functions of one modality each, without interaction."""
    model = small(num_layers=2, fusion_layers=layers, segments=segments)
    one, other = samples(), {name: x.flip(0) for name, x in samples().items()}
    mixed = (
        model(one)
        - model(one | {"first": other["first"]})
        - model(one | {"second": other["second"]})
        + model(one | {name: other[name] for name in ("first", "second")})
    )
    assert (mixed.abs().max().item() > 1e-9) == interact


def test_added_cost_does_not_depend_on_the_layer() -> None:
    """At width 40, C = 20, r = 2 and N = 6: 20 * 10 + 3 * 10 + 6 * 220 for each layer."""
    late = price("late_fusion", MOSEI)
    for layers in ((1,), (12,), (3, 7), (10, 11, 12)):
        cost = price("msaf", MOSEI, fusion_layers=layers)
        assert cost.parameters - late.parameters == len(layers) * (200 + 30 + 6 * 220)
        assert cost.gmacs - late.gmacs == pytest.approx(len(layers) * 7 * 200 / 1e9, rel=1e-6)
    two = {"modalities": ("audio", "text")}  # r = 4, four blocks
    more = price("msaf", MOSEI, **two).parameters - price("late_fusion", MOSEI, **two).parameters
    assert more == 2 * (20 * 5 + 3 * 5 + 4 * (5 * 20 + 20))  # after the last two layers
    three = price("msaf", MOSEI, segments=3).parameters - late.parameters
    assert three == 3 * 2 * (200 + 30 + 6 * 220)


def test_equal_outcomes_share_a_canonical_configuration() -> None:
    config = MODELS["msaf"].config

    def same(*options: dict[str, Any]) -> bool:
        return len({str(config(**one).canonical(MOSEI)) for one in options}) == 1

    assert same({}, {"fusion_layers": [12, 11]}, {"block_width": 20}, {"reduction": 2})
    assert same({"fusion_layers": []}, {"fusion_layers": [], "segments": 3, "suppression": 0.5})
    assert same({"reduction": 15}, {"reduction": 20})  # a bottleneck of one number
    for read in (
        {"block_width": 10},
        {"reduction": 4},
        {"suppression": 0.5},
        {"block_dropout": 0.0},
        {"segments": 2},
        {"fusion_layers": [12]},
    ):
        assert not same({}, read), read


def test_invalid_options_are_refused() -> None:
    config = MODELS["msaf"].config
    for options, message in (
        ({"num_layers": 4, "fusion_layers": [5]}, r"fusion_layers=\[5\], num_layers=4"),
        ({"fusion_layers": [0]}, "`fusion_layers` must be a whole number from 1"),
        ({"fusion_layers": [2, 2]}, "`fusion_layers` must be distinct layers"),
        ({"fusion_layers": 3}, "`fusion_layers` must be a list"),
        ({"block_width": 0}, "`block_width` must be a whole number from 1"),
        ({"reduction": 0}, "`reduction` must be a whole number from 1"),
        ({"suppression": 1.0}, r"`suppression` must lie in \[0, 1\)"),
        ({"block_dropout": 1.0}, r"`block_dropout` must lie in \[0, 1\)"),
        ({"segments": 0}, "`segments` must be a whole number from 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**options)


@pytest.mark.parametrize("name", ["msaf", "msaf_lstm"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_width": 9}, r"block_width=9, widest modality: 8"),
        ({"reduction": 5}, r"reduction=5, block_width=4"),
        ({"segments": 5}, r"segments=5, third has 4 tokens"),
        ({"block_width": 8, "modalities": ["first"]}, r"block_width=8, one modality of width 8"),
    ],
)
def test_incompatible_sizes_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    config = MODELS[name].config(**{"dim": 8, "num_heads": 2, "segments": 1} | options)
    for refuse in (MODELS[name].build, MODELS[name].cost):
        with pytest.raises(ConfigError, match=message):
            refuse(SMALL, config)
    with pytest.raises(ConfigError, match=message):
        config.canonical(SMALL)


# --------------------------------------------------------------- the network for CMU-MOSEI


def test_the_network_for_mosei_has_689_337_parameters() -> None:
    config = MODELS["msaf_lstm"].config(widths=MOSEI_WIDTHS, block_width=16, reduction=2)
    model = build_model("msaf_lstm", MOSEI_NET, config, seed=0)
    first, fusion, second = model.layers
    lstms = [
        parameters(a) + parameters(b) for a, b in zip(first.blocks, second.blocks, strict=True)
    ]
    assert lstms == [17_280, 69_120, 591_872]
    assert parameters(fusion) == 10_840
    assert parameters(model.head) == 225
    assert parameters(model) == 689_337
    assert config.canonical(MOSEI_NET) == MODELS["msaf_lstm"].config(widths=MOSEI_WIDTHS).canonical(
        MOSEI_NET
    )  # the paper's sizes are the defaults


@pytest.mark.medium
def test_cost_of_the_network_for_mosei_counts_its_products() -> None:
    """50 tokens through two LSTMs per modality, five MSAFs of 1 + 14 products, one output."""
    config = MODELS["msaf_lstm"].config(widths=MOSEI_WIDTHS)
    lstms = sum(50 * 4 * d * (f + d + d + d) for f, d in ((35, 32), (74, 64), (768, 128)))
    macs = lstms + 5 * (16 * 8 + 14 * 8 * 16) + 224
    cost = MODELS["msaf_lstm"].cost(MOSEI_NET, config)
    assert cost.gmacs == macs / 1e9
    assert cost.gflops == (macs - 224 + 5 * 3 * 8) / 1e9  # norm and relu, but no head
    model = build_model("msaf_lstm", MOSEI_NET, config, seed=0)
    assert cost.gmacs == count_gmacs(model, MOSEI_NET, config)


def test_step_by_step_matches_pytorchs_lstm() -> None:
    torch.manual_seed(0)
    cell = nn.LSTM(5, 7, batch_first=True).double()
    x = torch.randn(3, 11, 5, dtype=torch.float64)
    torch.testing.assert_close(step_by_step(cell, x), cell(x)[0], rtol=1e-13, atol=1e-13)
    assert torch.equal(LSTM.forward(_wrapped(cell), Sequence(x)).z, cell(x)[0])


def _wrapped(cell: nn.LSTM) -> LSTM:
    lstm = LSTM(5, 7).double()
    lstm.cell.load_state_dict(cell.state_dict())
    return lstm


def test_the_last_valid_step_is_classified() -> None:
    z = torch.arange(24.0).reshape(3, 4, 2)
    assert torch.equal(last_valid(Sequence(z)), z[:, 3])
    valid = torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    expected = torch.stack([z[0, 3], z[1, 1], torch.zeros(2)])
    assert torch.equal(last_valid(Sequence(z, valid)), expected)


def test_padding_does_not_change_a_short_sample() -> None:
    """Compare with the samples cut to their length; no weight depends on the length."""
    model, x = small("msaf_lstm", segments=1), samples()
    cut = replace(SMALL, modalities={m: ModalitySpec(num_tokens=3, num_features=4) for m in x})
    config = MODELS["msaf_lstm"].config(dim=8, segments=1)
    short = build_model("msaf_lstm", cut, config, seed=1).eval().double()
    short.load_state_dict(model.state_dict())
    outputs = model(x, {m: torch.full((3,), 3) for m in x})
    torch.testing.assert_close(outputs, short({m: one[:, :3] for m, one in x.items()}))
    assert not torch.allclose(outputs, model(x))


def test_equal_widths_by_modality_have_the_canonical_form_of_one_width() -> None:
    config = MODELS["msaf_lstm"].config
    widths = {"first": 6, "second": 6, "third": 6}
    options: dict[str, Any] = {"segments": 2}
    assert config(dim=6, **options).canonical(SMALL) == config(
        widths=widths, dim=10, num_heads=2, **options
    ).canonical(SMALL)
    assert config(widths=widths | {"third": 8}, **options).canonical(SMALL) != config(
        dim=6, **options
    ).canonical(SMALL)
    with pytest.raises(ConfigError, match=r"`widths\.first` must be a whole number from 1"):
        config(widths={"first": 0})
    with pytest.raises(ConfigError, match="`widths` must be a mapping by modality"):
        config(widths=8)
    with pytest.raises(ConfigError, match="has no value for 'second'"):
        config(widths={"first": 6, "third": 6}, **options).canonical(SMALL)
    with pytest.raises(ConfigError, match="Did you mean 'third'"):
        config(widths=widths | {"thirds": 6}, **options).canonical(SMALL)
