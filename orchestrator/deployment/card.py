"""Write the model card of an export: what the model is, how good it is, and on which data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sftsearch.orchestrator.deployment.verify import ABSOLUTE, MARGIN, RELATIVE
from sftsearch.orchestrator.metrics import metric, what_is_counted
from sftsearch.orchestrator.report.baselines import describe_baseline, describe_contest
from sftsearch.orchestrator.report.cells import format_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.analysis.configurations import ConfigurationSummary, Interval
    from sftsearch.orchestrator.analysis.front import Front
    from sftsearch.orchestrator.deployment.verify import Verification
    from sftsearch.trainables.deployed_model import DeployedModel

Format = Literal["onnx", "pt2", "safetensors", "mlflow"]
COSTS = ("gmacs", "gflops", "gflops_expected", "parameters", "weights_mb", "latency_ms")
USES: dict[Format, str] = {
    "onnx": """`python predict.py sample.npz` prints the prediction of each sample; it needs numpy
and onnxruntime alone. Without an argument it reads `sample.npz`.""",
    "pt2": """`torch.export.load("NAME.pt2").module()(samples, lengths)` runs a graph. It needs
torch, without this package. `samples` and `lengths` are mappings from modality to tensor.""",
    "safetensors": """`safetensors.torch.load_file("model.safetensors")` returns the weights and the
normalization. They fit `load_trained` of this package; `configuration.yaml` has all parameters.""",
    "mlflow": """`mlflow.pyfunc.load_model(FOLDER).predict(samples)` returns the scores; `samples`
is a mapping from input to array. The model in `artifacts/model` also works without MLflow.""",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a card describes."""

    front: Front
    summary: ConfigurationSummary
    """The configuration."""
    seeds: tuple[int, ...]
    """The exported replicates."""
    model: DeployedModel
    spec: DatasetSpec
    versions: Mapping[str, str]
    """Of the libraries that exported it."""


def write_card(subject: Subject, kind: Format, verification: Verification | None) -> str:
    """Return the card in Markdown."""
    study, c = subject.front.study, subject.summary
    parts = [
        f"# {c.model} {c.configuration_id} of the study '{study.name}'",
        _describe_model(subject),
        f"## Use\n\n{USES[kind]}",
        _describe_inputs(subject),
        f"## Accuracy\n\n{_describe_accuracy(subject)}",
        f"## Cost\n\n{_describe_cost(c)}",
        f"## Data\n\n{_describe_data(subject.spec)}",
        f"## Verification\n\n{describe_verification(verification)}",
        f"## Versions\n\n{_describe_versions(subject)}",
    ]
    return "\n\n".join(parts) + "\n"


def describe_replicates(subject: Subject) -> str:
    """Return which replicates were exported."""
    known = "fresh replicate" if subject.summary.is_fresh else "replicate"
    known = f"refitted {known}" if subject.front.study.refit else known
    if len(subject.seeds) > 1:
        seeds = ", ".join(map(str, subject.seeds))
        return f"the mean of the scores of the {known}s {seeds}"
    return f"{known} {subject.seeds[0]}"


def describe_verification(verification: Verification | None) -> str:
    """Return how the export was compared with the trained model, and the result."""
    if verification is None:
        return "The file was read again: all weights are equal to the trained ones."
    v = verification
    text = (
        f"The export was compared with the trained model on {v.num_samples} validation samples, "
        "alone and in batches of 7, and again without each modality that may be missing. The "
        f"largest difference of a score is {v.largest_error:.1e} (allowed: {ABSOLUTE:g} + "
        f"{RELATIVE:g} of the score)"
    )
    if v.num_decisions:
        text += f", and all {v.num_decisions} decisions with a margin above {MARGIN:g} are equal"
    return f"{text}."


def _describe_model(subject: Subject) -> str:
    c, model = subject.summary, subject.model
    lines = [f"It is {describe_replicates(subject)} of {c.num_finished}."]
    if model.is_gated:
        lines.append(
            f"A gate sends each sample along one of {model.members[0].num_routes} routes; all are "
            "exported, each as a graph of its own, so a sample costs the gate and one route."
        )
    lines.append("It runs in float32, also if it was trained in a lower precision.")
    return " ".join(lines)


def _describe_inputs(subject: Subject) -> str:
    rows = []
    for name in subject.model.modalities:
        shape = subject.spec.modalities[name]
        note = "always needed"
        if shape.variable_length:
            note = f"up to {shape.num_tokens} samples are read; `{name}_length` 0: it is missing"
        tokens = "any" if shape.variable_length else shape.num_tokens
        rows.append(f"| `{name}` | (batch, {tokens}, {shape.num_features}) | {note} |")
    outputs = {
        "classification": f"the probabilities of {', '.join(subject.spec.classes)}",
        "multilabel": f"the probability of each label: {', '.join(subject.spec.classes)}",
        "regression": "one number, in the units of the labels",
    }[subject.spec.task]
    return (
        "Inputs are samples as in the dataset, before normalization, in float32:\n\n"
        "| input | shape | |\n| --- | --- | --- |\n" + "\n".join(rows) + f"\n\nOutputs: {outputs}."
    )


def _describe_accuracy(subject: Subject) -> str:
    front, c = subject.front, subject.summary
    y, study = metric(front.y), front.study
    rows = [_row(f"this configuration, mean of {len(c.seeds)} replicates", front, c)]
    of_trials = [t for t in study.trials if t.configuration_id == c.configuration_id]
    rows += [
        _accuracy_row(
            f"its replicate {one.seed} (exported)", front, one.values, None, one.test_values, None
        )
        for one in of_trials
        if one.seed in subject.seeds
    ]
    baselines = () if front.baselines is None else front.baselines.summaries
    rows += [_row(f"baseline {describe_baseline(b)}", front, b) for b in reversed(baselines)]
    split = (
        "the dataset's validation split" if study.folds is None
        else f"the validation part of {study.folds} folds of the subjects, used in turn"
    )  # fmt: skip
    chosen = (
        "The replicates are fresh: they were trained after the configuration was chosen."
        if c.is_fresh
        else "The configuration was chosen by the same replicates, which favors it."
    )
    tested = (
        "The test split was evaluated once, after the study." if study.confirmed
        else "The test split has not been evaluated (`sftsearch confirm` does, once)."
    )  # fmt: skip
    if study.refit:
        tested += (
            " Before, the models were trained again on training and validation: these weights are "
            "exported, and the values on validation are of the models before."
        )
    notes = [f"Validation is on {split}. {chosen} {tested}", describe_contest(front)]
    table = (
        f"| | validation {y.label} | 95 % interval | test {y.label} | 95 % interval |\n"
        "| --- | --- | --- | --- | --- |\n"
    )
    return table + "\n".join(rows) + "\n\n" + "\n\n".join(filter(None, notes))


def _row(name: str, front: Front, c: ConfigurationSummary) -> str:
    tested = c.test_values or None
    return _accuracy_row(name, front, c.values, c.interval, tested, c.test_interval)


def _accuracy_row(
    name: str,
    front: Front,
    values: Mapping[str, float],
    interval: Interval | None,
    test_values: Mapping[str, float] | None,
    test_interval: Interval | None,
) -> str:
    y, tested = metric(front.y), test_values or {}
    cells = (
        name,
        y.format(values.get(front.y)),
        format_interval(interval),
        y.format(tested.get(front.y)),
        format_interval(test_interval),
    )
    return f"| {' | '.join(one.replace('|', '/') for one in cells)} |"


def _describe_cost(c: ConfigurationSummary) -> str:
    found = [name for name in COSTS if name in c.values]
    lines = [f"- {metric(name).label}: {metric(name).format(c.values[name])}" for name in found]
    return "\n".join([*lines, "", what_is_counted(found)])


def _describe_data(spec: DatasetSpec) -> str:
    lines = (
        f"`{spec.name}`: {spec.description}",
        f"License: {spec.licence}. {spec.attribution}",
        f"Source: {spec.source}",
        "`sample.npz` has some of its validation samples, under the same license.",
        f"Fingerprint: `{spec.fingerprint}`",
    )
    return "\n\n".join(lines)


def _describe_versions(subject: Subject) -> str:
    def listed(title: str, facts: Iterable[tuple[str, str]]) -> str:
        return f"{title}: {', '.join(f'{name} {value}' for name, value in facts)}."

    shown = ("data set", "licence", "attribution", "fingerprint")
    facts = subject.front.study.facts.items()
    trained = [(name, value) for name, value in facts if name not in shown]
    return f"{listed('Study', trained)}\n\n{listed('Export', subject.versions.items())}"
