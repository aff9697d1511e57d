"""An encoder of a plug-in: priced, trained in workers, part of ids, checked, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner

from sftsearch.datasets.catalog import describe
from sftsearch.orchestrator.candidates.binding import bind, definition_of
from sftsearch.orchestrator.cli.main import main
from sftsearch.orchestrator.execution.trial_spec import TrialSpec
from sftsearch.orchestrator.execution.worker import TrainingWorker
from sftsearch.orchestrator.plugins import PluginFileError, load_plugins, loaded_plugins, to_json
from sftsearch.orchestrator.study_file import check_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.trainables.catalog import MODELS, build_model
from sftsearch.trainables.config import ConfigError
from sftsearch.trainables.cost import count_gmacs
from sftsearch.trainables.plugin_functions import PluginError

from trial_specs import run, trial_spec

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(__file__).parent / "examples" / "patch_gru.py"
SPEC = describe("synthetic")
PARAMETERS: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 2}
ENCODER = EXAMPLE.read_text()


def load(folder: Path, text: str) -> None:
    (folder / "own.py").write_text(text)
    load_plugins([folder / "own.py"])


def priced(model: str, **parameters: Any) -> Any:
    config = bind(model, {**PARAMETERS, **parameters}, {}, SPEC).model_config
    return MODELS[model].cost(SPEC, config)


@pytest.mark.parametrize("patch", [1, 4])
def test_the_price_has_the_encoder_s_multiply_adds(patch: int) -> None:
    """A GRU has three products of its input and three of its state at every sample."""
    load_plugins([EXAMPLE])
    own, plain = (priced("concat", patch=patch, tokenizer=one) for one in ("patch_gru", "linear"))
    d, macs, parameters = 8, 0, 0
    for shape in SPEC.modalities.values():
        n, features = -(-shape.num_tokens // patch), shape.num_features
        recurrent = 3 * d * (features + d)
        macs += n * patch * recurrent + n * d * d - n * patch * features * d
        parameters += recurrent + 6 * d + d * d - patch * features * d
    assert round(1e9 * (own.gmacs - plain.gmacs)) == macs
    assert own.parameters - plain.parameters == parameters
    assert own.gflops == plain.gflops  # the papers count no tokenizer


@pytest.mark.parametrize("model", ["sft", "late_fusion", "mbt"])
def test_what_runs_has_the_price(model: str) -> None:
    load_plugins([EXAMPLE])
    parameters = {"dim": 8, "num_heads": 2, "tokenizer": "patch_gru", "segments": 3}
    config = bind(model, parameters, {}, SPEC).model_config
    built = build_model(model, SPEC, config, 0)
    assert count_gmacs(built, SPEC, config) == MODELS[model].cost(SPEC, config).gmacs
    assert sum(p.numel() for p in built.parameters()) == MODELS[model].cost(SPEC, config).parameters


def test_samples_after_the_end_change_nothing() -> None:
    load_plugins([EXAMPLE])
    config = bind("concat", {**PARAMETERS, "patch": 4, "tokenizer": "patch_gru"}, {}, SPEC)
    model = build_model("concat", SPEC, config.model_config, 0).eval()
    shapes = SPEC.modalities.items()
    inputs = {name: torch.randn(3, one.num_tokens, one.num_features) for name, one in shapes}
    lengths = {name: torch.tensor([one.num_tokens, 3, 0]) for name, one in shapes}
    other = {name: x.clone() for name, x in inputs.items()}
    for name, x in other.items():
        for row, length in enumerate(lengths[name].tolist()):
            x[row, length:] = 1e3
    with torch.no_grad():
        outputs = model(inputs, lengths)
        assert outputs.isfinite().all()
        assert torch.equal(model(other, lengths), outputs)


@pytest.mark.medium
def test_a_worker_trains_with_the_encoder_of_its_spec(
    tmp_path: Path, no_plugins: Callable[[], None]
) -> None:
    load_plugins([EXAMPLE])
    parameters = {**PARAMETERS, "tokenizer": "patch_gru"}
    spec = trial_spec(
        tmp_path / "trial",
        model="concat",
        parameters=parameters,
        cost=priced("concat", tokenizer="patch_gru").as_dict(),
        plugins=to_json(["concat", "patch_gru"]),
    )
    text = spec.to_json()
    no_plugins()
    worker = TrainingWorker()
    worker.start(TrialSpec.from_json(text))
    assert "final" in run(worker)[-1]


def test_an_encoder_s_source_is_part_of_the_ids_that_use_it(tmp_path: Path) -> None:
    def ids() -> list[str]:
        values = [{**PARAMETERS, "tokenizer": one} for one in ("patch_gru", "conv")]
        experts = [{"kind": "concat", "tokenizer": "patch_gru"}] * 2
        bound = [bind("concat", one, {}, SPEC) for one in values]
        bound.append(bind("dynmm", {"experts": experts}, {}, SPEC))
        return [one.id for one in bound]

    load(tmp_path, ENCODER)
    before = ids()
    load(tmp_path, ENCODER + "# changed\n")
    after = ids()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]


def test_a_study_names_its_encoders_and_a_search_may_choose_one(tmp_path: Path) -> None:
    load_plugins([EXAMPLE])
    file = tmp_path / "study.yaml"
    file.write_text(
        "study: {name: own}\ndataset: {kind: synthetic}\nsearch: {trials: 1}\nspace:\n  - kind: sft"
        "\n    num_heads: 2\n    dim: {kind: choice, values: [4, 8]}\n"
        "    tokenizer: {kind: choice, values: [linear, patch_gru]}\n"
    )
    source, spec, admission = check_study(file)
    assert definition_of(source, spec)["plugins"] == {
        "patch_gru": loaded_plugins()["patch_gru"].sha256
    }
    assert admission.table is not None
    assert len(admission.table) == 4


def test_sizes_that_an_encoder_refuses_are_an_error_of_the_configuration() -> None:
    load_plugins([EXAMPLE])
    with pytest.raises(ConfigError, match=r"`patch_gru` refuses .*dim=5: dim must be even"):
        priced("concat", dim=5, num_heads=1, tokenizer="patch_gru")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[:, -1]", "", r"must return features of shape \(N, 8\) for N patches, but returned \("),
        ("self.gru(patches)[0][:, -1]", "patches.sum().item()", "fails on the meta device"),
        ("self.gru(patches)[0][:, -1]", "patches.fft()", "fails on the meta device"),
        ("super().__init__()", "super().__init__(1)", "constructor of the encoder `patch_gru` fai"),
    ],
)
def test_an_encoder_that_cannot_be_priced_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    load(tmp_path, ENCODER.replace(old, new))
    with pytest.raises(PluginError, match=message):
        priced("concat", tokenizer="patch_gru")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ENCODERS = {'one': print}",
            "`ENCODERS` of own.py must be a dict of classes of nn.Module",
        ),
        (ENCODER.replace('"patch_gru"', '"conv"'), "The name 'conv' of own.py is taken"),
        (ENCODER.replace('"patch_gru"', '"sft"'), "'sft' of own.py has the name of a shipped mod"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PluginFileError, match=message):
        load(tmp_path, text)


def test_an_unknown_tokenizer_names_those_that_exist(tmp_path: Path) -> None:
    load_plugins([EXAMPLE])
    file = tmp_path / "study.yaml"
    file.write_text(
        "study: {name: own}\ndataset: {kind: synthetic}\nsearch: {trials: 1}\nspace:\n"
        "  - {kind: sft, tokenizer: patch_gruu}\n"
    )
    with pytest.raises(StudyFileError, match=r"linear_statistics, conv.*patch_gru"):
        check_study(file)


@pytest.mark.medium
def test_check_model_checks_encoders(tmp_path: Path) -> None:
    def checks(text: str) -> dict[str, bool]:
        (tmp_path / "own.py").write_text(text)
        arguments = ["check-model", str(tmp_path / "own.py"), "--json"]
        result = CliRunner().invoke(main, arguments)
        models = json.loads(result.stdout)["models"]
        return {one["name"]: one["passed"] for one in models["patch_gru"]}

    assert all(checks(ENCODER).values())
    over_the_batch = ENCODER.replace("(patches)[0]", "(patches - patches.mean(0))[0]")
    assert [name for name, passed in checks(over_the_batch).items() if not passed] == [
        "independence"
    ]
