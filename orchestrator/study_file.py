"""Check a study file, write one, and check whether a study can be resumed from it."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.candidates import binding
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.orchestrator.metrics import metric
from sftsearch.orchestrator.plugins import check_plugins, load_installed
from sftsearch.orchestrator.search.state import StudyState
from sftsearch.orchestrator.storage.journal import FILE_NAME, read_entries
from sftsearch.orchestrator.storage.runs_folder import describe_runs_folder
from sftsearch.orchestrator.studies import StudyError
from sftsearch.search_spaces.load import StudySource, find_study_file, on_dataset, read_study
from sftsearch.search_spaces.schema import StudyFile
from sftsearch.search_spaces.shared_space import contract_shared
from sftsearch.search_spaces.study_name import NAME_PATTERN
from sftsearch.trainables.metrics import METRICS

if TYPE_CHECKING:
    from sftsearch.datasets.spec import DatasetSpec
    from sftsearch.orchestrator.storage.event import JSON

_LINE = 90
"""Characters of a mapping that is written in one line."""


def check_study(
    file: str | Path | StudySource, *, dataset: str | None = None, root: str | None = None
) -> tuple[StudySource, DatasetSpec, Admission]:
    """Read a study file and check everything that can be checked before a trial runs.

    Args:
        file: a study file, the name of a shipped one, or a study that was parsed.
        dataset: another dataset than the file's; see `load.on_dataset`.
        root: of that dataset's store.

    Raises:
        UserError: the file has errors; all of them are listed.
    """
    return check_source(read_source(file, dataset=dataset, root=root))


def read_source(
    file: str | Path | StudySource, *, dataset: str | None = None, root: str | None = None
) -> StudySource:
    """Read a study file, and adapt it to another dataset, if one is given; see `check_study`.

    Raises:
        UserError: the file cannot be read or adapted.
    """
    load_installed()
    source = (
        file
        if isinstance(file, StudySource)
        else read_study(find_study_file(str(file)), binding.parameter_names)
    )
    if dataset is not None:
        source.study  # noqa: B018 - raises schema errors
        source = _on_dataset(source, describe(dataset, root=root), root)
    return source


def check_needed_plugins(source: StudySource, runs: Path) -> None:
    """Check that the plug-ins are loaded that a study of this name used before, if there is one.

    It explains an error of `check_source`, for which their models are just unknown names.

    Raises:
        PluginFileError: one is not loaded, or has another source.
    """
    section = source.data.get("study")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        return  # an error that `check_source` reports with all others
    if not (runs / name / FILE_NAME).is_file():
        return
    created = StudyState.of(itertools.islice(read_entries(runs / name), 8)).created
    if created is not None:
        check_plugins(created.name, created.definition, created.facts)


def check_source(source: StudySource) -> tuple[StudySource, DatasetSpec, Admission]:
    """Check everything of a study file that can be checked before a trial runs.

    Raises:
        UserError: the file has errors; all of them are listed.
    """
    check_names(source)
    chosen = source.study.dataset
    spec = describe(chosen.kind, root=chosen.root)
    source = binding.with_objectives(source, spec)
    return source, spec, Admission(source, spec)


def _on_dataset(source: StudySource, spec: DatasetSpec, root: str | None) -> StudySource:
    chosen = source.study.dataset
    try:
        own = describe(chosen.kind, root=chosen.root)
    except UserError:  # it is not on this machine
        own = None
    name = METRICS[spec.task][0]
    accuracy = {"metric": name, "direction": metric(name).direction}
    return on_dataset(source, spec, own, root=root, accuracy=accuracy)


def write_study_file(source: StudySource, spec: DatasetSpec, path: Path) -> Path:
    """Write a checked study file as YAML, with comments that explain it.

    Args:
        source: the study, of one dataset.
        spec: of this dataset.
        path: of the file; it must not exist.

    Raises:
        StudyError: the file exists or cannot be written.
    """
    values = copy.deepcopy(source.data)
    values["space"] = contract_shared(values["space"], binding.parameter_names)
    values["dataset"] = {k: v for k, v in values["dataset"].items() if v is not None}
    ordered = {name: values[name] for name in StudyFile.model_fields if name in values}
    sizes = ", ".join(
        f"{name} {one.num_tokens} x {one.num_features}" for name, one in spec.modalities.items()
    )
    header = (
        f"# Which fusion model for {spec.name}?\n"
        f"# {spec.num_samples['train']} training samples; samples x features: {sizes}.\n"
        "# Run it with `sftsearch run FILE`; `sftsearch models` explains all parameters.\n"
    )
    text = yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, width=100)
    sections = re.sub(r"^(?=\w)", "\n", text, flags=re.MULTILINE)
    try:
        with path.open("x") as stream:
            stream.write(header + sections)
    except FileExistsError as error:
        raise StudyError(
            f"'{path}' exists: remove it, or choose another file with --out."
        ) from error
    except OSError as error:
        raise StudyError(f"Cannot write '{path}': {error.strerror}.") from error
    return path


class _Dumper(yaml.SafeDumper):
    """Writes short mappings and lists in one line, and no aliases, which study files lack."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_mapping(
        self, tag: str, mapping: Any, flow_style: bool | None = None
    ) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = len(str(mapping)) < _LINE
        return node

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = not any(isinstance(one, dict) for one in sequence)
        return node


def check_resumable(
    source: StudySource, spec: DatasetSpec, folder: Path, state: StudyState, *, resume: bool
) -> None:
    """Raise if the study cannot be started or resumed from this file.

    Args:
        source: the checked study file.
        spec: of its dataset.
        folder: of the study.
        state: of the study; empty if it has not begun.
        resume: whether to resume.

    Raises:
        StudyError: the study exists and `resume` is false, it has another definition or warm
            start, or it was confirmed and the file has more trials.
    """
    name, created = folder.name, state.created
    if created is None:
        return
    definition = binding.definition_of(source, spec)
    if definition_hash(definition) != created.definition_hash:
        theirs = created.definition
        differs = ", ".join(f"`{k}`" for k in definition if definition[k] != theirs.get(k))
        raise StudyError(
            f"The study '{name}' exists with another definition (it differs in {differs}). Use "
            f"another `study.name`, or delete '{folder}'."
        )
    if state.facts.confirmed and source.study.search.trials > state.num_admitted:
        raise StudyError(
            f"The study '{name}' was confirmed, so it cannot be extended: new trials would be "
            "chosen with knowledge of the test split. Use another `study.name`."
        )
    _check_warm_start(source, state, name)
    if not resume and state.opened is not None:
        raise StudyError(
            f"The study '{name}' exists in '{describe_runs_folder(folder.parent)}' with "
            f"{state.num_ended.total()} of {source.study.search.trials} trials done. Add --resume "
            f"to continue it, see its front with `sftsearch pareto {name}`, or use another "
            "`study.name`."
        )


def _check_warm_start(source: StudySource, state: StudyState, name: str) -> None:
    """Raise if the warm start is new or differs from that of the existing study."""
    section = source.study.warm_start
    if section is None:
        return
    if state.imported is None and state.num_proposals:
        raise StudyError(
            f"The study '{name}' has begun without a warm start: remove `warm_start`, or use "
            "another `study.name`."
        )
    if state.imported is not None and state.imported.study != Path(section.study).name:
        raise StudyError(
            f"The study '{name}' was warm-started from '{state.imported.study}': restore "
            "`warm_start`, or use another `study.name`."
        )


def definition_hash(definition: JSON) -> str:
    """Return the hash of a study's definition, which must not change when it is resumed."""
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
