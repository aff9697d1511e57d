"""A plain module as a model: price, configuration, padding, and the five examples."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.binding import bind, fields_of
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.plugins import load_plugins
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError, TrainConfig
from sftsearch.trainables.cost import GIGA, count_gmacs
from sftsearch.trainables.memory import count_memory
from sftsearch.trainables.plugin_checks import MODALITIES, checked_spec
from sftsearch.trainables.plugin_functions import PluginError
from sftsearch.trainables.plugin_model import model_entry

if TYPE_CHECKING:
    from sftsearch.trainables.cost import Cost

EXAMPLES = Path(__file__).parent / "examples"
SPEC = checked_spec(describe("synthetic"))
"""audio 12 x 5, image 1 x 6, text 9 x 3; seven classes."""
PRICES = {
    # 14 features, width 32, 7 classes: 14 * 32 + 32 * 7
    "mean_mlp": (672, 14 * 32 + 32 + 32 * 7 + 7),
    # A step of a GRU: three gates, each from the features and from the state, 3 * 16 * (F + 16).
    # audio 12 * 48 * 21 + image 48 * 22 + text 9 * 48 * 19 + head 3 * 16 * 7
    "gated_recurrent": (
        12_096 + 1_056 + 8_208 + 336,
        sum(48 * (f + 16) + 2 * 48 for f in (5, 6, 3)) + 48 * 7 + 7,
    ),
    # width 8; convolutions of 3: audio 12 * 3 * 5 * 8, text 9 * 3 * 3 * 8; image 6 * 8; attention,
    # scores and values, 2 * 12^2 * 8 and 2 * 9^2 * 8; head 8 * 7
    "vectors_and_sequences": (
        1_440 + 648 + 48 + 2_304 + 1_296 + 56,
        (3 * 5 * 8 + 8) + (3 * 3 * 8 + 8) + (6 * 8 + 8) + 8 * 7 + 7,
    ),
    # S = 22 tokens of width 16: embeddings 16 * (12 * 5 + 6 + 9 * 3); a layer: four projections
    # 4 * 22 * 16^2, attention 2 * 22^2 * 16, MLP 2 * 22 * 16 * 32; head 16 * 7
    "tiny_transformer": (
        1_488 + 22_528 + 15_488 + 22_528 + 112,
        (16 * 14 + 48) + 4 * (16 * 16 + 16) + (2 * 16 * 32 + 48) + 2 * 32 + 16 * 7 + 7,
    ),
}
"""Multiply-adds of a sample and parameters of each example, from its layers."""


def price(name: str, **values: Any) -> Cost:
    bound = bind(name, values, {}, SPEC)
    return MODELS[name].cost(SPEC, bound.model_config)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def load_example(name: str) -> Path:
    if name == "tiny_transformer":
        pytest.importorskip("transformers", reason="the encoder comes from transformers")
    load_plugins([EXAMPLES / f"{name}.py"])
    return EXAMPLES / f"{name}.py"


# ------------------------------------------------------------------ the five examples


@pytest.mark.medium
@pytest.mark.parametrize("name", sorted(PRICES))
def test_an_example_has_the_price_of_its_layers_and_passes_every_check(name: str) -> None:
    file = load_example(name)
    macs, parameters = PRICES[name]
    cost = price(name)
    assert round(cost.gmacs * GIGA) == macs
    assert cost.gflops == cost.gflops_dense == cost.gflops_low == cost.gmacs
    assert cost.parameters == parameters
    model = build_model(name, SPEC, bind(name, {}, {}, SPEC).model_config, seed=0)
    assert count_gmacs(model, SPEC, model.config) == cost.gmacs
    assert len(file.read_text().splitlines()) <= 25
    result = call("check-model", file, "--json")
    assert result.exit_code == 0, result.output
    checks = json.loads(result.output)["models"][name]
    assert len(checks) == 12
    assert [one for one in checks if not one["passed"]] == []


@pytest.mark.medium
def test_check_model_lists_every_fault_of_the_broken_example() -> None:
    result = call("check-model", EXAMPLES / "broken.py", "--json")
    assert result.exit_code == 1
    found = json.loads(result.output)["models"]
    signature = [one["message"] for one in found["wrong_signature"] if not one["passed"]]
    assert len(found["wrong_signature"]) == len(signature) == 7
    for part in ("`mask`", "(self, shapes, outputs)", "`width` must come after a `*`",
                 "`depth` needs a type annotation", "`epochs` is already one of training",
                 "`kind` is already a key of study files", "`kind` needs a default"):  # fmt: skip
        assert sum(part in message for message in signature) == 1, part
    wrong = {one["name"]: one["message"] for one in found["wrong_behavior"] if not one["passed"]}
    assert {name: re.search(pattern, wrong[name]) is not None for name, pattern in {
        "determinism": "Two evaluations differ",
        "independence": "depends on the other samples",
        "reading": "'image'",
        "padding": "'audio' after a sample's length",
        "missing modality": "'audio' .length 0. outputs are not finite",
        "gradients": "2 parameters get no gradient .unused.weight, unused.bias",
        "one sample": "Expected more than 1 value per channel",
    }.items()} == dict.fromkeys(wrong, True)  # fmt: skip


@pytest.mark.medium
def test_check_model_prints_a_table_and_what_to_do_next() -> None:
    good = call("check-model", EXAMPLES / "mean_mlp.py")
    assert good.exit_code == 0
    assert "672 multiply-adds and 711 parameters" in good.output
    assert "add --plugin" in good.output
    bad = call("check-model", EXAMPLES / "broken.py")
    assert bad.exit_code == 1
    assert re.search(r"Error: 14 checks failed on broken.py \(sha256 \w{12}\)\.", bad.output)


@pytest.mark.medium
def test_check_model_uses_the_modalities_of_a_dataset() -> None:
    """synthetic: 6 x 3 and 4 x 2, four classes, so 5 * 32 + 32 * 4 multiply-adds."""
    result = call("check-model", EXAMPLES / "mean_mlp.py", "--dataset", "synthetic", "--json")
    checks = {one["name"]: one for one in json.loads(result.output)["models"]["mean_mlp"]}
    classes = len(describe("synthetic").classes)
    assert f"{5 * 32 + 32 * classes} multiply-adds" in checks["price"]["message"]
    assert checks["padding"]["message"] == "all samples have the same length."


# ------------------------------------------------------------------ configuration


def test_constructor_arguments_are_parameters_with_types_and_bounds() -> None:
    load_example("mean_mlp")
    assert set(fields_of("mean_mlp")) == {"modalities", "width", "depth"}
    with pytest.raises(ConfigError, match="width and depth must be from 1, but got 0, 1"):
        bind("mean_mlp", {"width": 0}, {}, SPEC)
    with pytest.raises(ConfigError, match=r"`width`: It must be a whole number, but got 1\.5"):
        bind("mean_mlp", {"width": 1.5}, {}, SPEC)
    with pytest.raises(ConfigError, match="No parameter is called 'breadth'"):
        bind("mean_mlp", {"breadth": 8}, {}, SPEC)
    config = bind("mean_mlp", {"depth": 2, "modalities": ["text", "audio"]}, {}, SPEC).model_config
    assert config == MODELS["mean_mlp"].config(**json.loads(json.dumps(asdict(config))))
    assert config.modalities == ("audio", "text")


def test_a_literal_annotation_lists_the_values(tmp_path: Path) -> None:
    text = (EXAMPLES / "vectors_and_sequences.py").read_text()
    text = text.replace("pool: str", 'pool: Literal["mean", "amax"]')
    (tmp_path / "own.py").write_text(f"from typing import Literal\n{text}")
    load_plugins([tmp_path / "own.py"])
    bind("vectors_and_sequences", {"pool": "amax"}, {}, SPEC)
    with pytest.raises(ConfigError, match="`pool`: It must be 'mean' or 'amax', but got \"min\""):
        bind("vectors_and_sequences", {"pool": "min"}, {}, SPEC)


def test_a_subset_of_modalities_has_their_price_alone() -> None:
    load_example("mean_mlp")
    assert round(price("mean_mlp", modalities=["text"]).gmacs * GIGA) == 3 * 32 + 32 * 7


def test_manifold_mixup_is_refused_for_a_plugin_s_model() -> None:
    load_example("mean_mlp")
    with pytest.raises(ConfigError, match="does not say where its latents can be mixed"):
        bind("mean_mlp", {}, {"mixup": "manifold", "epochs": 10}, SPEC)
    bind("mean_mlp", {}, {"mixup": "input", "epochs": 10}, SPEC)


@pytest.mark.medium
def test_memory_is_counted_from_the_weights_on() -> None:
    load_example("mean_mlp")
    config = bind("mean_mlp", {}, {}, SPEC).model_config
    memory = count_memory("mean_mlp", SPEC, config, TrainConfig(batch_size=2))
    assert memory.weights_mb == 4 * PRICES["mean_mlp"][1] / 2**20
    assert memory.train_memory_mb > 4 * memory.weights_mb  # gradients and two moments


# ------------------------------------------------------------------ padding


class Sums(nn.Module):
    """Without `lengths`: the sum of all values, so any value in the padding would show."""

    def __init__(self, shapes: Any, num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(1, num_outputs, bias=False)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.head(sum(x.sum(dim=(1, 2)) for x in inputs.values())[:, None])  # type: ignore[union-attr,no-any-return]


def test_without_lengths_padding_and_missing_modalities_are_zeros() -> None:
    entry = model_entry(Sums, source_hash="", paper="")
    model = entry.build(SPEC, entry.config()).double()
    inputs = {
        name: torch.ones(1, one.num_tokens, one.num_features, dtype=torch.float64)
        for name, one in MODALITIES.items()
    }
    inputs["audio"][:, 4:], inputs["text"][:] = math.nan, math.nan
    outputs = model(inputs, {"audio": torch.tensor([4]), "text": torch.tensor([0])})
    expected = (4 * 5 + 6) * model.net.head.weight[:, 0]  # type: ignore[union-attr,index]
    torch.testing.assert_close(outputs[0], expected, rtol=1e-12, atol=0)


# ------------------------------------------------------------------ what cannot be priced


class Odd(nn.Module):
    """Does what a price cannot include."""

    def __init__(self, shapes: Any, num_outputs: int, *, what: str = "nothing") -> None:
        super().__init__()
        if what == "constructor":
            raise KeyError("audio")
        self.what, self.head = what, nn.Linear(6, num_outputs)
        self.constant = torch.ones(1) if what == "constant" else None

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        x = inputs["image"][:, 0]
        if self.what == "fourier":
            x = torch.fft.fft(x).real
        if self.what == "value" and x.sum() > 0:
            x = 2 * x
        if self.what == "device":
            x = x + torch.ones(6, device="cpu")
        if self.what == "shape":
            return self.head(x)[:, :2]
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fourier", r"it uses aten\._fft_\w+\. Register a count"),
        ("value", r"It must not depend on the values of the inputs"),
        ("device", r"create tensors in `forward` on the device of the inputs"),
        ("shape", r"must return outputs of shape \(B, 7\), but returned \(1, 2\)"),
        ("constructor", r"The constructor of `Odd` failed for .*KeyError: 'audio'"),
    ],
)
def test_a_model_without_a_price_is_refused_with_the_reason(what: str, message: str) -> None:
    entry = model_entry(Odd, source_hash="", paper="")
    assert round(entry.cost(SPEC, entry.config()).gmacs * GIGA) == 6 * 7
    with pytest.raises(PluginError, match=message) as caught:
        entry.config(what=what).canonical(SPEC)
    assert not isinstance(caught.value, ConfigError)  # it is no wrong value of a search space


def test_products_of_vectors_are_counted() -> None:
    """X W q: 6 x 4 and 4 multiply-adds; torch counts neither of these products."""

    class Scores(nn.Module):
        def __init__(self, shapes: Any, num_outputs: int) -> None:
            super().__init__()
            self.matrix, self.query = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(4))

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            score = torch.dot(torch.mv(self.matrix, inputs["image"][0, 0]), self.query)
            return score.expand(1, 7)

    entry = model_entry(Scores, source_hash="", paper="")
    assert round(entry.cost(SPEC, entry.config()).gmacs * GIGA) == 6 * 4 + 4


def test_a_price_needs_neither_memory_nor_the_random_state() -> None:
    """A layer of 10^12 weights has a price: it is never allocated."""
    load_example("mean_mlp")
    before = torch.random.get_rng_state()
    cost = price("mean_mlp", width=1_000_000, depth=2)
    assert cost.parameters == 14 * 10**6 + 10**12 + 7 * 10**6 + 2 * 10**6 + 7
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.medium
def test_help_and_models_import_no_torch_without_a_plugin() -> None:
    code = (
        "import sys\nfrom sftsearch.orchestrator.cli.main import main\n"
        "try: main(['models'])\nexcept SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
