"""What the sources of the models declare equals what importing them gives."""

from __future__ import annotations

import dataclasses

import pytest

from sftsearch.trainables.catalog import MODELS
from sftsearch.trainables.config import TrainConfig
from sftsearch.trainables.models.source import describe_fields, read_models


def test_read_models_finds_every_listed_model() -> None:
    assert [model.name for model in read_models()] == sorted(MODELS)


@pytest.mark.parametrize("model", read_models(), ids=lambda model: model.name)
def test_read_models_gives_the_fields_of_the_imported_class(model: object) -> None:
    (found,) = [one for one in read_models() if one == model]
    entry = MODELS[found.name]
    assert found.paper == entry.paper
    assert found.parameters == describe_fields(entry.config)


def test_describe_fields_gives_defaults() -> None:
    defaults = {field["name"]: field["default"] for field in describe_fields(TrainConfig)}
    assert defaults == dataclasses.asdict(TrainConfig())
