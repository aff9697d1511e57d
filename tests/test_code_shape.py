"""Limit the size of files, functions and classes; `pytest -s` prints a table."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
FOLDERS = ("datasets", "orchestrator", "search_spaces", "trainables")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

MAX_LINES = {"file": 400, "function": 60, "class": 250}
MAX_ANY = 60
"""Lines of `orchestrator/` with `Any`, for values of Ray and MLflow that have no types."""
EXCEPTIONS: dict[str, str] = {}
"""Longer parts, as `path` or `path:name`, and the reason for each."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Part:
    """A file, a function or a class."""

    kind: str
    name: str
    """`path`, or `path:name`."""
    num_lines: int


@functools.cache
def trees() -> list[tuple[Path, str, ast.Module]]:
    """Return path, text and syntax tree of every product file."""
    texts = {file.relative_to(ROOT): file.read_text(encoding="utf-8") for file in FILES}
    return [(path, text, ast.parse(text)) for path, text in texts.items()]


def parts() -> Iterator[Part]:
    """Yield every product file, function and class."""
    for path, text, tree in trees():
        yield Part("file", str(path), len(text.splitlines()))
        for node, name in named(tree):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            yield Part(kind, f"{path}:{name}", node.end_lineno - node.lineno + 1)  # type: ignore[operator]


def named(node: ast.AST, prefix: str = "") -> Iterator[tuple[Function | ast.ClassDef, str]]:
    """Yield functions and classes with their dotted names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            yield child, f"{prefix}{child.name}"
            inner = "." if isinstance(child, ast.ClassDef) else ".<locals>."
            yield from named(child, f"{prefix}{child.name}{inner}")
        else:
            yield from named(child, prefix)


def is_public(name: str) -> bool:
    return not any(part.startswith(("_", "<")) for part in name.split("."))


def share_of_annotated_arguments() -> float:
    total = annotated = 0
    for _, _, tree in trees():
        for node, _ in named(tree):
            if isinstance(node, ast.ClassDef):
                continue
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every += [one for one in (node.args.vararg, node.args.kwarg) if one]
            counted = [one for one in every if one.arg not in ("self", "cls", "mcs")]
            total += len(counted)
            annotated += sum(one.annotation is not None for one in counted)
    return annotated / total


def without_docstring() -> Iterator[str]:
    """Yield public modules, classes and functions without a docstring."""
    for path, _, tree in trees():
        nodes: list[tuple[ast.Module | Function | ast.ClassDef, str]] = [(tree, str(path))]
        nodes += [(node, f"{path}:{name}") for node, name in named(tree) if is_public(name)]
        yield from (name for node, name in nodes if ast.get_docstring(node) is None)


def num_public() -> int:
    return len(FILES) + sum(is_public(n) for _, _, tree in trees() for _, n in named(tree))


def module_name(path: Path) -> str:
    return ".".join(("sftsearch", *path.with_suffix("").parts)).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """Return our modules that each module imports, including in functions and for types."""
    known = {module_name(file.relative_to(ROOT)) for file in FILES}
    found: dict[str, set[str]] = {}
    for path, _, tree in trees():
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module_name(path)] = (names & known) - {module_name(path)}
    return found


def modules_in_cycles() -> list[str]:
    graph = imports()

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    return sorted(name for name in graph if name in reachable(name))


def lines_with_any() -> list[str]:
    return [
        f"{path}:{number}"
        for path, text, _ in trees()
        for number, line in enumerate(text.splitlines(), start=1)
        if path.parts[0] == "orchestrator" and re.search(r"\bAny\b", line)
    ]


def test_code_shape_is_printed() -> None:
    every = list(parts())
    print()  # noqa: T201 - shown by `pytest -s`
    for kind, limit in MAX_LINES.items():
        sizes = [part.num_lines for part in every if part.kind == kind]
        median, nine_tenths = np.percentile(sizes, [50, 90])
        longest = max((part for part in every if part.kind == kind), key=lambda p: p.num_lines)
        print(  # noqa: T201
            f"{kind:9}{len(sizes):5}   lines p50 {median:4.0f}  p90 {nine_tenths:4.0f}  "
            f"max {longest.num_lines:4} of {limit}   {longest.name}"
        )
    documented = 1 - len(list(without_docstring())) / num_public()
    for name, value in (
        ("modules in import cycles", str(len(modules_in_cycles()))),
        ("arguments with a type", f"{share_of_annotated_arguments():.1%}"),
        ("public docstrings", f"{documented:.1%}"),
        ("lines of orchestrator/ with Any", f"{len(lines_with_any())} of {MAX_ANY}"),
    ):
        print(f"{name:34}{value}")  # noqa: T201


@pytest.mark.parametrize("kind", MAX_LINES)
def test_parts_are_not_longer_than_their_limit(kind: str) -> None:
    limit = MAX_LINES[kind]
    found = {p.name: p.num_lines for p in parts() if p.kind == kind and p.num_lines > limit}
    assert {name: lines for name, lines in found.items() if name not in EXCEPTIONS} == {}


def test_exceptions_to_length_are_needed_and_have_a_reason() -> None:
    longer = {part.name for part in parts() if part.num_lines > MAX_LINES[part.kind]}
    assert set(EXCEPTIONS) <= longer
    assert all(EXCEPTIONS.values())


def test_modules_import_each_other_without_cycles() -> None:
    assert modules_in_cycles() == []


def test_every_argument_has_a_type() -> None:
    assert share_of_annotated_arguments() == 1


def test_everything_public_has_a_docstring() -> None:
    assert list(without_docstring()) == []


def test_any_is_used_on_few_lines() -> None:
    found = lines_with_any()
    assert len(found) <= MAX_ANY, found


@pytest.mark.parametrize("text", ['body["', 'rpartition("-")'])
def test_only_events_module_reads_event_bodies(text: str) -> None:
    """All other modules use typed events and keys."""
    found = [
        f"{path}:{number}"
        for path, content, _ in trees()
        for number, line in enumerate(content.splitlines(), start=1)
        if path.parts[0] == "orchestrator" and text in line
    ]
    assert [one for one in found if not one.startswith("orchestrator/storage/events.py:")] == []
