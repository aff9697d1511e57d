"""Read names, papers and parameters of models from their source files, without importing torch."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
from importlib import resources
from typing import Any, TypedDict

from sftsearch.trainables import config, pooling_config
from sftsearch.trainables.models.listing import FILES, added_models

PACKAGE = "sftsearch.trainables.models"


class Parameter(TypedDict):
    """A field of a configuration class."""

    name: str
    type: str
    default: object


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSource:
    """A model of the catalog, as declared in its source file."""

    name: str
    paper: str
    parameters: list[Parameter]
    """The fields of its configuration."""


def read_models() -> list[ModelSource]:
    """Return the models of the catalog and of plug-ins, sorted by name."""
    found = [model for file in FILES for model in _read_file(file)]
    found += [
        ModelSource(name, entry.paper, describe_fields(entry.config))
        for name, entry in added_models().items()
    ]
    return sorted(found, key=lambda model: model.name)


def describe_fields(of: type) -> list[Parameter]:
    """Return name, type and default of each field of a configuration class."""
    return [
        {"name": field.name, "type": _type_of(field), "default": field.default}
        for field in dataclasses.fields(of)
    ]


def _type_of(field: dataclasses.Field[Any]) -> str:
    """Return the type as it is written; that of a plug-in's parameter is no text."""
    return field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)


def _read_file(file: str) -> list[ModelSource]:
    """Return the models of a file; import it if it is written in a way not understood here."""
    try:
        return [_read_model(file, name, entry) for name, entry in _entries(file)]
    except (AssertionError, AttributeError, LookupError, ValueError):
        models = importlib.import_module(f"{PACKAGE}.{file}").MODELS
        return [
            ModelSource(name, entry.paper, describe_fields(entry.config))
            for name, entry in models.items()
        ]


@functools.cache
def _parse(file: str) -> ast.Module:
    return ast.parse(resources.files(PACKAGE).joinpath(f"{file}.py").read_text())


def _entries(file: str) -> list[tuple[str, ast.Call]]:
    """Return the names and entries of a file's `MODELS`."""
    table = _assigned(file, "MODELS")
    assert isinstance(table, ast.Dict)
    names = [ast.literal_eval(key) for key in table.keys if key is not None]
    entries = [entry for entry in table.values if isinstance(entry, ast.Call)]
    return list(zip(names, entries, strict=True))


def _read_model(file: str, name: str, entry: ast.Call) -> ModelSource:
    keywords = {keyword.arg: keyword.value for keyword in entry.keywords}
    of, paper = keywords["config"], keywords["paper"]
    assert isinstance(of, ast.Name)
    if isinstance(paper, ast.Name):
        paper = _assigned(*_home(file, paper.id))
    return ModelSource(name, ast.literal_eval(paper), list(_fields(file, of.id).values()))


def _fields(file: str, class_name: str) -> dict[str, Parameter]:
    """Return the fields of a configuration class by name, those of its bases first."""
    file, class_name = _home(file, class_name)
    if not file:  # declared in a file of `trainables` that does not import torch
        home = config if hasattr(config, class_name) else pooling_config
        shared = describe_fields(getattr(home, class_name))
        return {field["name"]: field for field in shared}
    found: dict[str, Parameter] = {}
    (declared,) = (
        node
        for node in _parse(file).body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    for base in declared.bases:
        found |= _fields(file, ast.unparse(base))
    for node in declared.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            name, default = node.target.id, ast.literal_eval(node.value)
            found[name] = {
                "name": name,
                "type": ast.unparse(node.annotation),
                "default": default,
            }
    return found


def _home(file: str, name: str) -> tuple[str, str]:
    """Return the file that declares a name, empty if it is not in this folder, and the name."""
    for node in _parse(file).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            module = str(node.module)
            if module.startswith(f"{PACKAGE}."):
                return _home(module.removeprefix(f"{PACKAGE}."), name)
            return "", name
    return file, name


def _assigned(file: str, name: str) -> ast.expr:
    """Return the value that a file assigns to a name at module level."""
    for node in _parse(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value:
            return node.value
    raise LookupError(f"{file}.py does not assign {name}.")
