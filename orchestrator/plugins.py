"""Load plug-ins, from files or installed distributions: models, functions and dataset readers.

A file is imported only if a user names it, by `--plugin FILE` or `plugins=[FILE]`; a distribution
only because it is installed, by its entry points. Study files, journals and stored datasets hold
names and hashes, which are compared and never imported.

A worker gets the text of a file in its trial's spec, so nodes share no file system. A distribution
must be installed on every node. Both are identified by a hash of their source, which is part of
the ids of the configurations that use them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import linecache
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from sftsearch.datasets.errors import UserError
from sftsearch.datasets.reader_catalog import add_readers
from sftsearch.trainables.config import TOKENIZERS
from sftsearch.trainables.plugin_functions import (
    DEFAULTS,
    FUNCTIONS,
    MODULE_PREFIX,
    PluginFunction,
    describe_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

GROUP = "sftsearch.models"
"""Entry points of a distribution's models: `name = "module:Class"`."""
READER = "reader"
"""The kind of functions that list the samples of a dataset."""
ENCODER = "tokenizer"
"""The parameter that names an encoder."""
FUNCTION_GROUPS = {
    ENCODER: "sftsearch.encoders",
    "trainer": "sftsearch.trainers",
    "training_loss": "sftsearch.losses",
    READER: "sftsearch.datasets",
}
"""Entry points of its functions, by the parameter that names them, or `READER`."""
TABLES = {
    ENCODER: "ENCODERS",
    "trainer": "TRAINERS",
    "training_loss": "LOSSES",
    READER: "READERS",
}
"""Names of the dicts of a file that list its functions, by the same keys."""
NAME_PATTERN = "[a-z][a-z0-9_]*"
MAX_BYTES = 1_000_000
"""Largest file: its text is sent with each trial."""
FACT = "plug-in of "
"""Start of the names of the facts of a study that name its plug-ins."""


class PluginFileError(UserError):
    """A plug-in cannot be loaded, or a study needs another one."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """The source of some models and functions; JSON in a trial's spec."""

    name: str
    """Name of the file, or of the distribution and its version."""
    sha256: str
    """Hash of the file, or of all Python files of the distribution's package."""
    text: str | None
    """Content of the file; None: an installed distribution."""

    def __str__(self) -> str:
        return f"{self.name} (sha256 {self.sha256[:12]})"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a plug-in has, by name."""

    models: Mapping[str, type[nn.Module]]
    functions: Mapping[str, Mapping[str, Callable[..., Any]]]
    """By the keys of `TABLES`."""

    @property
    def names(self) -> list[str]:
        """All names."""
        return [*self.models, *(name for table in self.functions.values() for name in table)]


_loaded: dict[str, Plugin] = {}
"""The plug-in of each model and function that this process loaded."""


def loaded_plugins() -> Mapping[str, Plugin]:
    """Return the plug-in of each loaded model and function, by its name."""
    return MappingProxyType(_loaded)


def load_plugins(
    files: Iterable[str | Path], notice: Callable[[str], None] = lambda _: None
) -> None:
    """Import plug-in files and add what they have; a changed file replaces what it had.

    Args:
        files: Python files.
        notice: called with a message for each installed plug-in that cannot be used.

    Raises:
        PluginFileError: a file cannot be read or imported, has no model, or has a name that is
            taken.
        PluginError: a model has another signature.
    """
    names: dict[str, Plugin] = {}
    for file in files:
        plugin = read_plugin(Path(file))
        contents = contents_of(plugin)
        for name in contents.names:
            if name in names and names[name].sha256 != plugin.sha256:
                raise PluginFileError(
                    f"Two plug-ins have a '{name}': {names[name].name} and {plugin.name}."
                )
            names[name] = plugin
        _add(plugin, contents)
    for problem in load_installed():
        notice(problem)


def read_plugin(file: Path) -> Plugin:
    """Read a plug-in file without importing it.

    Raises:
        PluginFileError: it cannot be read, or is too large.
    """
    try:
        content = file.expanduser().read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PluginFileError(f"The plug-in '{file}' cannot be read: {reason}.") from error
    if file.suffix != ".py" or len(content) > MAX_BYTES:
        raise PluginFileError(
            f"A plug-in must be a Python file of at most {MAX_BYTES // 1_000_000} MB, but got "
            f"'{file}'. Install larger ones as a distribution with the entry points `{GROUP}`."
        )
    return Plugin(file.name, hashlib.sha256(content).hexdigest(), text)


def contents_of(plugin: Plugin) -> Contents:
    """Import the file of a plug-in and return what it has.

    Models are in its dict `MODELS`; without one, they are its public modules whose `forward` takes
    `inputs`, each with the name of its class in snake case. Functions are in dicts, see `TABLES`.

    Raises:
        PluginFileError: it cannot be imported, has nothing, or has a wrong name or value.
    """
    module = _import_text(plugin)
    models = getattr(module, "MODELS", None)
    models = _public_models(module) if models is None else models
    functions = {field: getattr(module, table, {}) for field, table in TABLES.items()}
    modules = {"MODELS": models, TABLES[ENCODER]: functions[ENCODER]}
    for name, table in (modules | {TABLES[field]: functions[field] for field in TABLES}).items():
        is_usable, what = (
            (_is_module, "classes of nn.Module") if name in modules else (callable, "functions")
        )
        if not isinstance(table, dict) or not all(map(is_usable, table.values())):
            raise PluginFileError(f"`{name}` of {plugin.name} must be a dict of {what}.")
    contents = Contents(models, functions)
    if not contents.names:
        raise PluginFileError(
            f"{plugin.name} has no model: write a class of torch.nn.Module whose forward takes "
            "`inputs`, {modality: (B, T, F)}."
        )
    for name in contents.names:
        if not re.fullmatch(NAME_PATTERN, str(name)):
            raise PluginFileError(
                f"A name must be lower-case letters, digits and underscores, but {plugin.name} has "
                f"{name!r}."
            )
        if contents.names.count(name) > 1 or name in (*DEFAULTS.values(), *TOKENIZERS):
            raise PluginFileError(f"The name '{name}' of {plugin.name} is taken: choose another.")
    return contents


def _is_module(value: object) -> bool:
    from torch import nn

    return isinstance(value, type) and issubclass(value, nn.Module)


def _public_models(module: ModuleType) -> dict[str, type[nn.Module]]:
    import inspect

    from sftsearch.trainables.plugin_model import INPUTS

    return {
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower(): value
        for name, value in vars(module).items()
        if _is_module(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and INPUTS in inspect.signature(value.forward).parameters
    }


def _import_text(plugin: Plugin) -> ModuleType:
    """Run the text of a plug-in as a module with a name of its own; once per process and text."""
    assert plugin.text is not None, "a distribution has no text"
    name = f"{MODULE_PREFIX}{plugin.sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    where = f"<plug-in {plugin.name} {plugin.sha256[:12]}>"
    lines = plugin.text.splitlines(keepends=True)
    linecache.cache[where] = (len(plugin.text), None, lines, where)  # for tracebacks
    sys.modules[name] = module  # dataclasses and annotations look it up
    try:
        exec(compile(plugin.text, where, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginFileError(
            f"The plug-in {plugin.name} cannot be imported: {describe_error(error)}"
        ) from error
    return module


def _add(plugin: Plugin, contents: Contents) -> None:
    """Add the models of a plug-in to the catalog, and its functions to their tables."""
    from sftsearch.trainables.models.listing import add_models, shipped_models
    from sftsearch.trainables.plugin_model import model_entry

    for name in contents.names:
        if name in shipped_models():
            raise PluginFileError(
                f"'{name}' of {plugin.name} has the name of a shipped model: rename it."
            )
    entries = {
        name: model_entry(model, source_hash=plugin.sha256, paper=f"plug-in {plugin}")
        for name, model in contents.models.items()
    }
    add_models(entries)
    add_readers(contents.functions.get(READER, {}))
    for field, table in contents.functions.items():
        if field == READER:  # no trial needs it: what it reads is a store like any other
            continue
        FUNCTIONS[field] |= {
            name: PluginFunction(call, plugin.sha256) for name, call in table.items()
        }
    _loaded.update(dict.fromkeys(contents.names, plugin))


# ------------------------------------------------------------------ installed distributions


@functools.cache
def load_installed() -> tuple[str, ...]:
    """Import what installed distributions offer, once per process.

    Returns:
        a message for each entry point that cannot be used; the others are not affected.
    """
    problems = []
    for field, group in ((None, GROUP), *FUNCTION_GROUPS.items()):
        for point in metadata.entry_points(group=group):
            try:
                _load_installed(point, field)
            except Exception as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                name = point.dist.name if point.dist else point.value
                problems.append(f"The installed plug-in '{name}' was not loaded: {lines[0]}")
    return tuple(problems)


def _load_installed(point: metadata.EntryPoint, field: str | None) -> None:
    """Load an entry point: a model, an encoder, a function for training, or a reader."""
    found = point.load()
    is_usable = _is_module(found) if field in (None, ENCODER) else callable(found)
    if not is_usable or not re.fullmatch(NAME_PATTERN, point.name):
        what = "a class of nn.Module" if field in (None, ENCODER) else "a function"
        raise PluginFileError(f"'{point.name} = {point.value}' must name {what}.")
    dist = point.dist
    name = f"{dist.name} {dist.version}" if dist else point.value
    contents = (
        Contents({point.name: found}, {})
        if field is None
        else Contents({}, {field: {point.name: found}})
    )
    _add(Plugin(name, _hash_package(point.module), None), contents)


def _hash_package(module: str) -> str:
    """Return the hash of all Python files of the package that a module is in."""
    top = importlib.import_module(module.partition(".")[0])
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    files = [(file.relative_to(f).as_posix(), file) for f in folders for file in f.rglob("*.py")]
    if not folders:
        files = [(Path(str(top.__file__)).name, Path(str(top.__file__)))]
    whole = hashlib.sha256()
    for name, file in sorted(files):
        whole.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


# ------------------------------------------------------------------ in studies and trials


def plugins_of(names: Iterable[str]) -> dict[str, Plugin]:
    """Return the plug-ins of those names that are models or functions of one."""
    return {name: _loaded[name] for name in names if name in _loaded}


def describe_plugins(names: Iterable[str]) -> dict[str, str]:
    """Return the facts of a study that name its plug-ins."""
    return {f"{FACT}{name}": str(plugin) for name, plugin in plugins_of(names).items()}


def check_plugins(study: str, definition: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """Check that the plug-ins of a study are loaded, with the source that its trials used.

    Args:
        study: its name.
        definition: of the study; `plugins` has the hash of each model's plug-in.
        facts: of the study, for the message.

    Raises:
        PluginFileError: a plug-in is not loaded, or has another source.
    """
    load_installed()
    known = definition.get("plugins")
    for name, sha256 in known.items() if isinstance(known, dict) else ():
        text = facts.get(f"{FACT}{name}", f"sha256 {str(sha256)[:12]}")
        own = _loaded.get(name)
        if own is None:
            raise PluginFileError(
                f"The study '{study}' uses '{name}' of the plug-in {text}, which is not "
                "loaded. Add --plugin FILE with this file, or install its distribution."
            )
        if own.sha256 != sha256:
            raise PluginFileError(
                f"The study '{study}' uses '{name}' of the plug-in {text}, but got "
                f"{own}. Restore the file, or start a study with another `study.name`."
            )


def to_json(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the plug-ins of some models and functions for a trial's spec."""
    return [dataclasses.asdict(one) for one in dict.fromkeys(plugins_of(names).values())]


def load_shipped(sent: Iterable[Mapping[str, Any]]) -> None:
    """Load the plug-ins of a trial's spec in a worker.

    Raises:
        PluginFileError: one cannot be imported, or the node has another version of a distribution.
    """
    for one in sent:
        plugin = Plugin(**one)
        if plugin.text is not None:
            assert hashlib.sha256(plugin.text.encode()).hexdigest() == plugin.sha256, plugin.name
            _add(plugin, contents_of(plugin))
            continue
        load_installed()
        if plugin.sha256 not in {own.sha256 for own in _loaded.values()}:
            raise PluginFileError(
                f"This node does not have the plug-in {plugin}: install the same version on every "
                "node."
            )
