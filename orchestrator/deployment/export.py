"""Export a trained configuration of a study to a folder that works without this package."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from sftsearch.datasets.folds import fold_of, open_fold
from sftsearch.orchestrator.analysis.front import FrontOptions, build_front, mark_front
from sftsearch.orchestrator.candidates.binding import bind
from sftsearch.orchestrator.deployment import predict
from sftsearch.orchestrator.deployment.card import Subject, write_card
from sftsearch.orchestrator.deployment.choice import choose_configuration
from sftsearch.orchestrator.deployment.folder import ExportError, new_folder, write_checksums
from sftsearch.orchestrator.deployment.trained import (
    choose_replicates,
    load_replicates,
    open_store_of,
)
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.storage.journal import read_entries

if TYPE_CHECKING:
    from collections.abc import Collection

    from sftsearch.orchestrator.deployment.card import Format
    from sftsearch.orchestrator.deployment.choice import Choice
    from sftsearch.orchestrator.deployment.verify import Arrays, Verification
    from sftsearch.orchestrator.storage.events import Created
    from sftsearch.trainables.deployed_model import DeployedModel

FORMAT_VERSION = 1
"""Of `model.json`; increased when a key changes its meaning."""
NUM_EXAMPLES = 5
"""Samples of `sample.npz`."""
NEEDED: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "mlflow": ("onnx", "onnxscript", "onnxruntime"),
    "pt2": (),
    "safetensors": (),
}
"""Packages of the extra `export` that a format needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A written export."""

    folder: Path
    kind: Format
    configuration_id: str
    model: str
    seeds: tuple[int, ...]
    """The exported replicates; several: the mean of their scores."""
    is_fresh: bool
    """Whether they were trained after the configuration was chosen."""
    files: dict[str, int]
    """Size of each file in bytes, by name."""
    verification: Verification | None
    """None for weights alone, which are equal."""


def export_model(
    study: Path,
    choice: Choice,
    *,
    kind: Format,
    out: Path,
    replicate: int | None = None,
    ensemble: bool = False,
) -> Export:
    """Export a configuration of a study, compare the export with the trained model, and write it.

    Args:
        study: the study's folder.
        choice: which configuration.
        kind: of the files.
        out: the folder to write; it must not exist, or be empty.
        replicate: which one; None: see `choose_replicates`.
        ensemble: export the mean of all replicates instead.

    Raises:
        StudyError: there is no such configuration, or its weights or dataset are missing.
        ExportError: a package is missing, `out` exists, or the export differs from the model.
    """
    check_packages(kind)
    state = StudyState.of(read_entries(study))
    front = build_front(mark_front(record_of(state), FrontOptions()))
    summary = choose_configuration(front, choice)
    identity = summary.configuration_id
    with new_folder(out) as folder:
        seeds = choose_replicates(study, state, identity, replicate, ensemble=ensemble)
        model = load_replicates(study, state, identity, seeds)
        created = state.created
        assert created is not None, "it has a configuration"
        subject = Subject(
            front=front,
            summary=summary,
            seeds=seeds,
            model=model,
            spec=model.spec,
            versions=_versions(kind),
        )
        samples = _validation_samples(created, seeds[0], model)
        verification = _write(folder, kind, subject, samples)
        (folder / "configuration.yaml").write_text(_configuration(subject, created))
        (folder / "card.md").write_text(write_card(subject, kind, verification))
    return Export(
        folder=out,
        kind=kind,
        configuration_id=identity,
        model=summary.model,
        seeds=seeds,
        is_fresh=summary.is_fresh,
        files={p.relative_to(out).as_posix(): p.stat().st_size for p in _files(out)},
        verification=verification,
    )


def check_packages(kind: Format) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ExportError: one is missing.
    """
    missing = [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"Exporting to {kind} needs {', '.join(missing)}. Install the extra `export`: "
            "pip install 'sftsearch[export]'."
        )


def write_graphs(
    folder: Path, kinds: Collection[Format], model: DeployedModel, facts: dict[str, str]
) -> None:
    """Write the graphs of a model as `NAME.onnx`, `NAME.pt2` or both."""
    from sftsearch.orchestrator.deployment import graphs

    names = graphs.input_names(model)
    for name, graph in graphs.graphs_of(model).items():
        program = graphs.trace(model, graph)
        if "pt2" in kinds:
            graphs.save_pt2(program, folder / f"{name}.pt2")
        if "onnx" in kinds:
            output = str(graph.output)
            graphs.save_onnx(program, folder / f"{name}.onnx", names, output, facts)


def describe_model(model: DeployedModel) -> dict[str, object]:
    """Return the content of `model.json` that does not depend on a study: inputs and graphs."""
    from sftsearch.orchestrator.deployment.graphs import LENGTH, members_of

    inputs = []
    for name in model.modalities:
        shape = model.spec.modalities[name]
        inputs.append(
            {
                "name": name,
                "num_samples": shape.num_tokens,
                "num_features": shape.num_features,
                "length": f"{name}{LENGTH}" if shape.variable_length else None,
            }
        )
    return {
        "format_version": FORMAT_VERSION,
        "task": model.spec.task,
        "classes": list(model.classes),
        "num_outputs": model.spec.num_outputs,
        "inputs": inputs,
        "members": [dataclasses.asdict(member) for member in members_of(model)],
    }


def _write(folder: Path, kind: Format, subject: Subject, samples: Arrays) -> Verification | None:
    """Write and verify the model files of a format."""
    if kind == "mlflow":
        from sftsearch.orchestrator.deployment.mlflow_model import save_mlflow

        with tempfile.TemporaryDirectory(prefix="sftsearch-") as scratch:
            inner = Path(scratch) / "model"
            inner.mkdir()
            found = _write(inner, "onnx", subject, samples)
            write_checksums(inner)
            save_mlflow(folder, inner, subject.model, _first(samples, 2))
        return found
    described = {
        "study": subject.front.study.name,
        "configuration": subject.summary.configuration_id,
        "replicates": list(subject.seeds),
        **describe_model(subject.model),
    }
    (folder / "model.json").write_text(json.dumps(described, indent=2) + "\n")
    np.savez(folder / "sample.npz", allow_pickle=False, **_first(samples, NUM_EXAMPLES))
    if kind == "safetensors":
        _write_weights(folder / "model.safetensors", subject.model)
        return None
    names = ("study", "configuration", "task")
    facts = {name: str(described[name]) for name in names} | {
        "replicates": json.dumps(described["replicates"]),
        "classes": json.dumps(described["classes"]),
    }
    write_graphs(folder, [kind], subject.model, facts)
    if kind == "onnx":
        shutil.copy(str(predict.__file__), folder / "predict.py")
    from sftsearch.orchestrator.deployment.verify import open_programs, verify

    run = predict.open_graphs(folder) if kind == "onnx" else open_programs(folder, subject.model)
    return verify(subject.model, run, described, samples)


def _write_weights(file: Path, model: DeployedModel) -> None:
    """Write weights and normalization, and compare them with the model's.

    Raises:
        ExportError: they differ.
    """
    from safetensors.torch import load_file, save_file

    tensors = {name: t.contiguous().clone() for name, t in model.state_dict().items()}
    save_file(tensors, file)
    read = load_file(file)
    if set(read) != set(tensors) or not all(read[name].equal(t) for name, t in tensors.items()):
        raise ExportError("The written weights differ from the trained ones: nothing was written.")


def _validation_samples(created: Created, seed: int, model: DeployedModel) -> Arrays:
    """Return samples of the validation split of a replicate."""
    from sftsearch.orchestrator.deployment.verify import NUM_SAMPLES, take_samples

    store = open_store_of(created)
    split = open_fold(store, fold_of(seed, created.folds), created.folds).split("validation")
    return take_samples(model, split, NUM_SAMPLES)


def _configuration(subject: Subject, created: Created) -> str:
    """Return the configuration as YAML: all parameters of model and training."""
    c, spec = subject.summary, subject.spec
    bound = bind(c.model, c.parameters, created.training, spec)
    content = {
        "study": created.name,
        "configuration": c.configuration_id,
        "replicates": list(subject.seeds),
        "dataset": {"kind": created.dataset, "fingerprint": spec.fingerprint},
        "model": {"kind": c.model, **dataclasses.asdict(bound.model_config)},
        "training": dataclasses.asdict(bound.train_config),
    }
    plain = json.loads(json.dumps(content, default=dict))  # tuples and mappings
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


def _first(samples: Arrays, count: int) -> Arrays:
    return {name: values[:count] for name, values in samples.items()}


def _versions(kind: Format) -> dict[str, str]:
    names = ("sftsearch", "torch", "numpy", *NEEDED[kind])
    return {name: importlib.metadata.version(name) for name in names}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
