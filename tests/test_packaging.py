"""Check the declared packages, package data, pinned dependencies and the license."""

from __future__ import annotations

import importlib.metadata
import re
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOLDERS = ("datasets", "orchestrator", "search_spaces", "trainables")
API = "orchestrator/api/public"
"""The folder that is installed as `sftsearch.api`."""
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def pins() -> dict[str, Version]:
    """Return the pinned versions by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    written = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for requirement in written:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not pinned"
        found[canonicalize_name(requirement.name)] = Version(specifier.version)
    assert len(found) == len(written)
    return found


def requirements() -> list[Requirement]:
    optional = PROJECT["project"]["optional-dependencies"]
    groups = [PROJECT["project"]["dependencies"], *optional.values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_folder_with_python_files_is_a_declared_package() -> None:
    """A folder that is not listed is missing from the wheel."""
    folders = {path.parent for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    found = {f"sftsearch.{'.'.join(folder.relative_to(ROOT).parts)}" for folder in folders}
    found = found - {f"sftsearch.{API.replace('/', '.')}"} | {"sftsearch.api"}
    assert found == set(SETUPTOOLS["packages"])
    named = {f"sftsearch.{name}": name for name in FOLDERS}
    assert SETUPTOOLS["package-dir"] == {"sftsearch.api": API, **named}


def test_packages_have_an_init_and_datasets_has_none() -> None:
    """With an init, Ray's workers would import our folder as Hugging Face's `datasets`."""
    for package in SETUPTOOLS["packages"]:
        folder = ROOT / SETUPTOOLS["package-dir"].get(package, "/".join(package.split(".")[1:]))
        assert (folder / "__init__.py").is_file() == (package != "sftsearch.datasets"), package
    assert not (ROOT / "sftsearch").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_package_data_patterns_match_all_files() -> None:
    matched = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            inside = package.removeprefix("sftsearch.").replace(".", "/")
            folders = [*FOLDERS, API] if package == "*" else [inside]
            files = {file for name in folders for file in (ROOT / name).glob(pattern)}
            assert len(files) >= len(folders), f"{package} {pattern}"
            matched |= files
    present = {
        path
        for name in FOLDERS
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert present == matched


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt"
        assert pinned[name] in requirement.specifier, f"{name} {pinned[name]}"


def test_every_transitive_dependency_is_pinned() -> None:
    """Two fresh installs a year apart must be equal."""
    pinned = pins() | {"setuptools": None}  # only needed to build
    seen, todo = set(), requirements()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert name in pinned, f"{name} is not in constraints.txt"
        for text in importlib.metadata.requires(name) or []:
            inner = Requirement(text)
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in extras):
                todo.append(inner)


def test_installed_versions_are_the_pinned_ones() -> None:
    # Only in this folder: setuptools, once imported, lists its own copies of other packages.
    found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(one.metadata["Name"]): Version(one.version) for one in found}
    assert "torch" in installed
    for name, version in pins().items():
        if name in installed:  # packages of other platforms are not
            assert installed[name].public == version.public, name


def test_every_declared_dependency_is_imported() -> None:
    """The sources import each dependency by its import name."""
    imported_as = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
    sources = "\n".join(
        path.read_text() for name in FOLDERS for path in (ROOT / name).rglob("*.py")
    )
    found = set(re.findall(r"^\s*(?:import|from) (\w+)", sources, flags=re.MULTILINE))
    declared = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    for name in declared:
        assert imported_as.get(name, name) in found, f"{name} is never imported"


def test_license_and_attribution_files_are_complete() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
    for name in PROJECT["project"]["license-files"]:
        assert (ROOT / name).stat().st_size > 500
    assert "CC BY 4.0" in (ROOT / "datasets/shipped/ATTRIBUTION.md").read_text()


@pytest.mark.parametrize(
    "target", ["lint", "types", "layers", "wheel", "test-quick", "test", "run"]
)
def test_documented_make_targets_exist(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
