"""Check the names in a study file against the catalogs; errors have their line."""

from __future__ import annotations

import pytest

from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.metrics import COSTS
from sftsearch.search_spaces.load import parse_study
from sftsearch.search_spaces.mistakes import StudyFileError
from sftsearch.trainables.metrics import METRICS

from bound_study import OBJECTIVES, TASKS, VALID, of_task, parse


def mistakes_of(old: str, new: str) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        check_names(parse(old, new))
    return [line.removeprefix("s.yaml, ") for line in str(caught.value).splitlines()]


def test_check_names_passes_a_valid_file() -> None:
    check_names(parse())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: wearables", "kind: wearble",
         "line 2: dataset.kind: No dataset is called 'wearble'. Did you mean 'wearables'? Known"),
        ("kind: concat", "kind: conkat",
         "line 13: space[1].kind: No model is called 'conkat'. Did you mean 'concat'? Known: "),
        ("patch: 8", "ptach: 8",
         "line 10: space[0].ptach: No parameter is called 'ptach'. Did you mean 'patch'? Known: "
         "accumulate, "),
        ("num_heads: 4", "fused_layers: 4",
         "line 15: space[1].fused_layers: No parameter is called 'fused_layers'."),
        ("epochs: 2", "epoch: 2",
         "line 7: training.epoch: No parameter is called 'epoch'. Did you mean 'epochs'?"),
        ("epochs: 2", "patch: 8", "line 7: training.patch: No parameter is called 'patch'. "),
        ("metric: top1", "metric: tpo1",
         "line 4: objectives[0].metric: No metric of classification is called 'tpo1'. Did you mean "
         "'top1'? Known: balanced_accuracy, gflops, gflops_dense, gflops_expected, gmacs, "
         "inference_memory_mb, latency_ms, loss, macro_f1, map, parameters, seconds, top1, "
         "train_memory_mb, train_step_ms, weights_mb."),
        ("[watch_acc, phone_acc]", "[watch_acc, phone_mic]",
         "line 12: space[0].modalities: No modality of 'wearables' is called 'phone_mic'. Did you "
         "mean 'phone_acc'? Known: phone_acc, phone_gyro, watch_acc, watch_gyro."),
        ("[watch_acc, phone_acc]", "{kind: choice, values: [[watch_acc], [watch_ac]]}",
         "line 12: space[0].modalities.values[1]: No modality of 'wearables' is called "
         "'watch_ac'."),
        ("values: [1, 2]", "values: [1, {watch_acc: 1, phone: 2}]",
         "line 11: space[0].stride.values[1]: No modality of 'wearables' is called 'phone'."),
        ("{kind: choice, values: [1, 2]}", "{phone_acc: 2, watch: {kind: choice, values: [1, 2]}}",
         "line 11: space[0].stride.watch: No modality of 'wearables' is called 'watch'. Did you "
         "mean 'watch_acc'?"),
        ("{kind: choice, values: [1, 2]}", "{fone_acc: 2, watch_acc: {kind: choice, values: [1]}}",
         "line 11: space[0].stride.fone_acc: No modality of 'wearables' is called 'fone_acc'."),
        ("{kind: choice, values: [1, 2]}", "{watch_acc: {kind: choice, values: [1, two]}}",
         "line 11: space[0].stride.watch_acc.values[1]: It must be a whole number, but got "
         '{"watch_acc": "two"}.'),
        ("{kind: choice, values: [1, 2]}",
         "{watch_acc: {kind: int, low: 1, high: 2}, phone_acc: x}",
         "line 11: space[0].stride.phone_acc: It must be a whole number, but got "
         '{"phone_acc": "x"}.'),
        ("patch: 8", "summary: {watch_acc: {kind: choice, values: [8]}}",
         "line 10: space[0].summary.watch_acc.values[0]: It must be a whole number, but got "
         '{"watch_acc": 8}.'),
        ("patch: 8", "patch: eight",
         'line 10: space[0].patch: It must be a whole number or a mapping, but got "eight".'),
        ("patch: 8", "patch: 8.0",
         "line 10: space[0].patch: It must be a whole number or a mapping, but got 8.0."),
        ("patch: 8", "patch: true",
         "line 10: space[0].patch: It must be a whole number or a mapping, but got true."),
        ("values: [1, 2]", "values: [1, two]", "line 11: space[0].stride.values[1]: It must be a "
         'whole number or a mapping, but got "two".'),
        ("[watch_acc, phone_acc]", "watch_acc",
         'line 12: space[0].modalities: It must be a list, but got "watch_acc".'),
        ("patch: 8", "pooling: mean",
         "line 10: space[0].pooling: It must be 'average'"),
        ("epochs: 2", "epochs: 0",
         "line 7: training.epochs: `epochs` must be a whole number from 1, but got 0."),
        ("epochs: 2", "value: best",
         "line 7: training.value: `value` is now `score_epoch`."),
        ("epochs: 2", "learning_rate: .nan", "line 7: training.learning_rate: `learning_rate` must "
         "lie in (0, inf), but got nan."),
        ("epochs: 2", "epochs: {kind: int, low: 1, high: 2}",
         "line 7: training.epochs: `training` applies to all trials: move searched parameters to "
         "`space`."),
        ("direction: maximize", "direction: minimize",
         "line 4: objectives[0].direction: `top1` can only be maximized."),
        ("{metric: gflops, direction: minimize}", "{metric: map, direction: maximize}",
         "line 3: objectives: The first objective must be an accuracy (top1, map, "
         "balanced_accuracy, macro_f1, loss) and another a cost (gflops, gmacs, parameters, "
         "gflops_dense, gflops_expected, latency_ms, train_step_ms, train_memory_mb, "
         "inference_memory_mb, weights_mb, seconds), but got (top1, map)."),
        ("{metric: top1, direction: maximize}", "{metric: gmacs, direction: minimize}",
         "line 3: objectives: The first objective must be an accuracy (top1, "),
        ("{metric: gflops, direction: minimize}", "{metric: loss, direction: minimize}",
         "line 3: objectives: The first objective must be an accuracy (top1, "),
        ("metric: gflops, direction: minimize", "metric: top1, direction: maximize",
         "line 5: objectives[1].metric: `top1` is listed more than once."),
        ("metric: top1", "metric: top5", "line 4: objectives[0].metric: `top5` needs more than "
         "five classes."),
    ],
)  # fmt: skip
def test_check_names_reports_the_line_and_the_nearest_known_name(
    old: str, new: str, message: str
) -> None:
    found = mistakes_of(old, new)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_check_names_refuses_a_float_range_for_integers() -> None:
    """Bounds without a decimal point are refused too."""
    assert mistakes_of(
        "{kind: int, low: 20, high: 40, step: 20}", "{kind: float, low: 20, high: 40}"
    ) == [
        "line 14: space[1].dim.high: It must be a whole number, but got 40.0.",
        "line 14: space[1].dim.low: It must be a whole number, but got 20.0.",
    ]


@pytest.mark.parametrize(
    ("task", "metric", "direction"),
    [
        ("multilabel", "micro_f1", "maximize"),
        ("multilabel", "loss", "minimize"),
        ("regression", "mae", "minimize"),
        ("regression", "pearson", "maximize"),
    ],
)
def test_check_names_accepts_any_metric_of_the_task_in_its_direction(
    task: str, metric: str, direction: str
) -> None:
    objectives = OBJECTIVES.replace(
        "top1, direction: maximize", f"{metric}, direction: {direction}"
    )
    check_names(of_task(task, objectives))
    opposite = {"maximize": "minimize", "minimize": "maximize"}[direction]
    with pytest.raises(StudyFileError) as caught:
        check_names(of_task(task, objectives.replace(direction, opposite, 1)))
    assert str(caught.value) == (
        f"s.yaml, line 4: objectives[0].direction: `{metric}` can only be {direction}d."
    )


@pytest.mark.parametrize("task", TASKS)
def test_check_names_lists_the_metrics_of_the_task(task: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        check_names(of_task(task, OBJECTIVES))
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.key) == (4, "objectives[0].metric")
    text, known = mistake.message.split("Known: ")
    assert text == f"No metric of {task} is called 'top1'. "
    assert set(known.rstrip(".").split(", ")) == {*METRICS[task], "loss", *COSTS}


def test_check_names_checks_objectives_despite_schema_errors() -> None:
    text = VALID.replace("metric: top1", "metric: topl").replace("trials: 4", "trials: no")
    with pytest.raises(StudyFileError) as caught:
        check_names(parse_study(text.encode(), name="s.yaml"))
    assert [mistake.key for mistake in caught.value.mistakes] == [
        "objectives[0].metric",
        "search.trials",
    ]
