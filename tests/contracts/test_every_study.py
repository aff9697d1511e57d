"""The contract of every shipped study: it is valid and described, and its budget fits its space."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest
import torch
import yaml

import sftsearch.search_spaces
from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.orchestrator.candidates.binding import definition_of, parameter_names
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.pricing.costs import list_prices
from sftsearch.orchestrator.study_file import check_study
from sftsearch.search_spaces.load import find_study_file, read_study
from sftsearch.search_spaces.papers import paper_tables
from sftsearch.search_spaces.plain_yaml import parse_yaml
from sftsearch.search_spaces.schema import StudyFile
from sftsearch.search_spaces.section import Section
from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.fit import Fit
from sftsearch.trainables.models.sft import SFTConfig

if TYPE_CHECKING:
    from sftsearch.orchestrator.candidates.admission import Admission
    from sftsearch.orchestrator.candidates.binding import Configuration
    from sftsearch.search_spaces.load import StudySource

FOLDER = Path(next(iter(sftsearch.search_spaces.__path__)))
STUDIES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> StudySource:
    return read_study(find_study_file(name), parameter_names)


@functools.cache
def admission_of(name: str) -> Admission:
    """Compute the costs of a study's space, once for all tests."""
    return check_study(name)[2]


def test_studies_are_found() -> None:
    assert {"stride", "stride_paper", "tokens"} <= set(STUDIES)


def test_every_table_of_the_papers_has_a_study() -> None:
    reproduced = {read(name).study.study.paper for name in STUDIES}
    assert reproduced - {None} == set(paper_tables())


@pytest.mark.parametrize("name", STUDIES)
def test_study_is_valid_and_its_names_are_known(name: str) -> None:
    source = read(name)
    check_names(source)
    study = source.study
    assert study.study.name == name
    assert len(study.study.description.split()) >= 5
    assert definition_of(source, describe(study.dataset.kind))["dataset"] == study.dataset.kind


@pytest.mark.parametrize("name", STUDIES)
def test_first_line_states_the_question_of_the_study(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 110
    assert "?" in first
    paper = read(name).study.study.paper
    if paper is not None:  # `SFT table 2` reads "SFT paper, table 2"
        source, number = paper.split(" ", 1)
        assert first.startswith(f"# {source} paper, {number}")


@pytest.mark.parametrize("name", STUDIES)
def test_every_branch_tunes_the_same_training_parameters(name: str) -> None:
    """Learning rate and weight decay are searched, with equally many configurations per branch.

    An exhaustive study need not be balanced: it trains its whole space.
    """
    study = read(name).study
    if study.search.sampler.kind == "exhaustive":
        assert all("learning_rate" in branch.parameters for branch in study.space)
        return
    for branch in study.space:
        tuned = {n for n, parameter in branch.parameters.items() if isinstance(parameter, Section)}
        assert {"learning_rate", "weight_decay"} <= tuned
    if len(study.space) > 1:
        assert study.search.balance == "branches"
    if study.study.paper is not None:
        assert (study.search.trials // study.search.replicates.min) % len(study.space) == 0


@pytest.mark.parametrize("name", ["baselines", "cost", "sparsification", "pooling", "stride_paper"])
def test_sft_is_trained_with_manifold_mixup_and_others_with_dropout(name: str) -> None:
    """Ding et al. 2021, sec. 4: dropout of 0.2 where nothing is mixed; SFT-PO is without mixup."""
    study, kinds = read(name).study, set()
    for branch in study.space:
        recipe = {"mixup": "none", "dropout": 0.0} | study.training | branch.parameters
        mixes = recipe["mixup"] == "manifold"
        assert (recipe["mixup"], recipe["dropout"]) == (
            ("manifold", 0.0) if mixes else ("none", 0.2)
        )
        assert mixes or branch.kind != "sft"
        assert not mixes or branch.kind in ("sft", "mbt")
        kinds.add(branch.kind)
    assert "sft" in kinds


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", STUDIES)
def test_the_cheapest_configuration_of_every_branch_trains(name: str) -> None:
    """For one epoch, with mixup from the start if the branch uses mixup."""
    torch.set_num_threads(1)
    _, spec, admission = check_study(name)
    cheapest: dict[int, Configuration] = {}
    for candidate in list_prices(admission):
        cheapest.setdefault(candidate.point.branch, candidate.configuration)
    assert len(cheapest) == len(admission.space.models)
    store = open_dataset(spec.name)
    for bound in cheapest.values():
        model = build_model(bound.model, spec, bound.model_config, seed=0)
        config = dataclasses.replace(bound.train_config, epochs=1, mixup_warmup=0)
        assert math.isfinite(Fit(model, store, config, seed=0).run_epoch()["loss"])


@pytest.mark.parametrize("name", STUDIES)
def test_budget_fits_the_space(name: str) -> None:
    """An exhaustive study runs exactly its space; another one requests at most its size."""
    search = read(name).study.search
    admission = admission_of(name)
    requested = search.trials // search.replicates.min
    if search.sampler.kind == "exhaustive":
        assert requested == len(admission.table or ())
    elif admission.table is not None:
        assert requested <= len(admission.table)


@pytest.mark.medium
@pytest.mark.parametrize("name", STUDIES)
def test_every_point_has_a_cost_and_most_are_admitted(name: str) -> None:
    admission = admission_of(name)
    listing = list_prices(admission)
    assert all(candidate.cost.gflops > 0 for candidate in listing)
    assert all(math.isfinite(candidate.cost.gmacs) for candidate in listing)
    assert sum(admission.num_refused.values()) < admission.num_points / 2


@pytest.mark.parametrize("name", STUDIES)
def test_json_schema_accepts_the_study(name: str) -> None:
    """Draft 2020-12, on the values that the loader reads (YAML 1.2)."""
    schema = StudyFile.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    data, _, _ = parse_yaml(find_study_file(name).read_bytes(), name)
    jsonschema.Draft202012Validator(schema).validate(data)


def test_the_json_schema_refuses_what_the_loader_refuses() -> None:
    validator = jsonschema.Draft202012Validator(StudyFile.model_json_schema())
    data = yaml.safe_load((FOLDER / "stride.yaml").read_text())
    for change in ({"search": {"trials": 0}}, {"sampler": 1}, {"space": []}, {"dataset": "x"}):
        assert not validator.is_valid(data | change)


@pytest.mark.medium
def test_stride_searches_what_the_main_study_is_about() -> None:
    """All models at equal tuning, strides and budgets by sensor, kinds of pooling, mixup, alpha."""
    study = read("stride").study
    branches = {branch.kind: branch.parameters for branch in study.space}
    assert branches.keys() == {
        "sft", "sft_po", "late_fusion", "concat", "unimodal", "mbt", "mult",
    }  # fmt: skip
    assert study.search.trials >= 5 * len(branches)
    assert study.search.balance == "branches"
    sensors = describe("wearables").modalities
    for kind, name in (("sft", "stride"), ("sft_po", "tokens"), ("late_fusion", "tokens")):
        for sensor in sensors:
            assert len(branches[kind][f"{name}.{sensor}"].values) >= 5
    for kind in ("sft", "sft_po", "late_fusion", "concat", "unimodal"):
        assert branches[kind]["pooling"].values == ["average", "max", "attention"]
    for parameters in branches.values():
        assert parameters["mixup"].values == ["none", "manifold"]
        assert len(parameters["mixup_alpha"].values) >= 3
    listing = list_prices(admission_of("stride"))
    assert listing[-1].cost.gmacs >= 100 * listing[0].cost.gmacs


def test_sparse_attention_is_sparse_in_the_main_study() -> None:
    """SFT has at least 64 tokens a sensor before pooling; at most 35 % of the pairs attend."""
    spec = describe("wearables")
    configs = [
        candidate.configuration.model_config
        for candidate in list_prices(admission_of("stride"))
        if candidate.configuration.model == "sft"
    ]
    assert configs
    for config in configs:
        assert isinstance(config, SFTConfig)
        tokens = config.num_tokens(spec)
        for name, pattern in config.patterns(spec).items():
            assert tokens[name] >= 64
            assert pattern is not None
            assert pattern.num_pairs(1 + tokens[name]) <= 0.35 * (1 + tokens[name]) ** 2


def test_the_full_main_study_has_the_space_of_the_main_study() -> None:
    short, full = read("stride"), read("stride_full")
    assert full.data["space"] == short.data["space"]
    assert full.study.training == short.study.training
