"""A valid study file, and study files of other tasks than classification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftsearch.search_spaces.load import parse_study

if TYPE_CHECKING:
    from sftsearch.search_spaces.load import StudySource

OBJECTIVES = """\
objectives:
  - {metric: top1, direction: maximize}
  - {metric: gflops, direction: minimize}
"""
VALID = f"""\
study: {{name: small}}
dataset: {{kind: wearables}}
{OBJECTIVES}search: {{trials: 4, sampler: {{kind: random}}}}
training: {{epochs: 2}}
space:
  - kind: sft
    patch: 8
    stride: {{kind: choice, values: [1, 2]}}
    modalities: [watch_acc, phone_acc]
  - kind: concat
    dim: {{kind: int, low: 20, high: 40, step: 20}}
    num_heads: 4
"""
TASKS = {"multilabel": "synthetic_tags", "regression": "synthetic_rating"}


def parse(old: str = "", new: str = "") -> StudySource:
    assert VALID.count(old) == 1 or not old
    return parse_study(VALID.replace(old, new).encode() if old else VALID.encode(), name="s.yaml")


def of_task(task: str, objectives: str) -> StudySource:
    text = (
        f"study: {{name: small}}\ndataset: {{kind: {TASKS[task]}}}\n{objectives}"
        "search: {trials: 4}\nspace: [{kind: sft}]\n"
    )
    return parse_study(text.encode(), name="s.yaml")
