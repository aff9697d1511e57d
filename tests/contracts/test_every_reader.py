"""What every reader of published files must keep; a new one is tested by being listed."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

from sftsearch.datasets.catalog import DATASETS, READERS, read_source, reader, reader_for
from sftsearch.datasets.errors import UserError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.sample_checks import count_classes
from sftsearch.datasets.source import Source
from sftsearch.datasets.spec import SPLITS
from sftsearch.datasets.store import open_store, verify

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz_readers.py"


@pytest.mark.parametrize("name", sorted(READERS))
class TestReader:
    def test_it_says_what_it_reads_and_every_option(self, name: str) -> None:
        text = inspect.getdoc(reader(name)) or ""
        assert text.split("\n", 1)[0].startswith("List ")
        assert text.split("\n", 1)[0].endswith(".")
        module = inspect.getmodule(reader(name))
        assert module is not None
        assert module.__doc__
        signature = inspect.signature(reader(name), eval_str=False)
        assert signature.return_annotation in (Source, "Source")
        first, *options = signature.parameters.values()
        assert first.name == "path"
        for option in options:
            assert option.kind is option.KEYWORD_ONLY
            assert isinstance(option.default, str | int | bool)

    def test_it_has_a_page_with_its_command(self, name: str) -> None:
        page = PAGE.read_text()
        assert f"`{name}`" in page
        for option in list(inspect.signature(reader(name)).parameters)[1:]:
            assert f"`{option}`" in page, f"the page lacks option {option} of {name}"

    def test_options_that_are_none_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"No option of the reader '{name}' is called 'colour'"):
            read_source(name, tmp_path, ["colour=red"])
        with pytest.raises(UserError, match="An option must be KEY=VALUE, but got 'colour'"):
            read_source(name, tmp_path, ["colour"])

    def test_it_is_no_data_sets_name(self, name: str) -> None:
        assert name not in DATASETS


def _needs_files(name: str) -> bool:
    return inspect.signature(reader(name)).parameters["path"].default is inspect.Parameter.empty


@pytest.mark.parametrize("name", [name for name in sorted(READERS) if _needs_files(name)])
def test_what_is_not_there_or_empty_is_one_line(name: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as raised:
            read_source(name, path)
        assert "\n" not in str(raised.value)
        assert str(tmp_path) in str(raised.value)


def _writers() -> dict[str, Any]:
    """Return what writes small files in each published layout, which mutations begin with too."""
    spec = importlib.util.spec_from_file_location("fuzz_readers", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.writers()
    return found


@pytest.mark.parametrize("name", sorted(_writers()))
def test_a_store_of_its_files_is_sound_and_the_same_everywhere(name: str, tmp_path: Path) -> None:
    write, options = _writers()[name]
    given = [f"{key}={value}" for key, value in options.items()]
    stores = []
    for place in ("here", "elsewhere"):
        folder = tmp_path / place
        folder.mkdir()
        write(folder)
        pickles = list(folder.glob("*.pkl"))
        source = read_source(name.split()[0], pickles[0] if pickles else folder, given)
        done = prepare("mine", source, tmp_path / f"{place} store" / "mine")
        stores.append(open_store(done.path))
        verify(stores[-1])
    one, other = stores
    assert one.spec.fingerprint == other.spec.fingerprint
    assert one.checksums == other.checksums
    seen: set[str] = set()
    for split_name in SPLITS:
        split = one.split(split_name, unseal_test=True)
        assert len(split) == one.spec.num_samples[split_name] > 0
        assert count_classes(one.spec, split.labels) == one.class_counts[split_name]
        people = {one.spec.subjects[split_name][code] for code in split.subjects if code >= 0}
        assert people == set(one.spec.subjects[split_name])
        assert not people & seen
        seen |= people


def test_values_of_options_are_as_their_defaults_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`missing` must be true or false, but got 'maybe'"):
        read_source("vggsound", tmp_path, ["missing=maybe"])
    with pytest.raises(UserError, match=r"`fold` must be a whole number, but got '1.5'"):
        read_source("ravdess", tmp_path, ["fold=1.5"])


def test_only_what_reads_nothing_needs_no_path() -> None:
    assert len(read_source("synthetic_tunable", None, ["samples=60"]).samples) == 60
    with pytest.raises(UserError, match="'mosei' needs published files: say where by --from"):
        read_source("mosei", None)
    with pytest.raises(UserError, match="choose one by --reader, or a file by --from"):
        reader_for("mine", None)


def test_a_path_tells_its_reader(tmp_path: Path) -> None:
    assert reader_for("mosei", tmp_path) == "mosei"
    assert reader_for("mine", tmp_path / "x.parquet") == "parquet"
    with pytest.raises(UserError, match=r"No reader is called 'mine', and .* does not look like"):
        reader_for("mine", tmp_path)
    (tmp_path / "labels.csv").write_text("")
    assert reader_for("mine", tmp_path) == "arrays"
    (tmp_path / "x.parquet").write_text("")
    assert reader_for("mine", tmp_path) == "parquet"
    (tmp_path / "x.parquet").unlink()
    (tmp_path / "dataset_dict.json").write_text("")
    assert reader_for("mine", tmp_path) == "huggingface"
