"""The contract of every reader of published files; a new reader is tested by being listed."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

from sftsearch.datasets.catalog import DATASETS
from sftsearch.datasets.errors import UserError
from sftsearch.datasets.prepare import prepare
from sftsearch.datasets.reader_catalog import READERS, read_source, reader, reader_for
from sftsearch.datasets.sample_checks import count_classes
from sftsearch.datasets.source import Source
from sftsearch.datasets.spec import SPLITS
from sftsearch.datasets.store import open_store, verify

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz_readers.py"


@pytest.mark.parametrize("name", sorted(READERS))
class TestReader:
    def test_reader_documents_what_it_reads_and_has_valid_options(self, name: str) -> None:
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

    def test_reader_and_its_options_are_in_the_docs(self, name: str) -> None:
        page = PAGE.read_text()
        assert f"`{name}`" in page
        for option in list(inspect.signature(reader(name)).parameters)[1:]:
            assert f"`{option}`" in page, f"the page lacks option {option} of {name}"

    def test_unknown_options_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"No option of the reader '{name}' is called 'color'"):
            read_source(name, tmp_path, ["color=red"])
        with pytest.raises(UserError, match="An option must be KEY=VALUE, but got 'color'"):
            read_source(name, tmp_path, ["color"])

    def test_reader_name_is_not_a_dataset_name(self, name: str) -> None:
        assert name not in DATASETS


def _needs_files(name: str) -> bool:
    return inspect.signature(reader(name)).parameters["path"].default is inspect.Parameter.empty


@pytest.mark.parametrize("name", [name for name in sorted(READERS) if _needs_files(name)])
def test_missing_or_empty_path_gives_a_one_line_error(name: str, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as raised:
            read_source(name, path)
        assert "\n" not in str(raised.value)
        assert str(tmp_path) in str(raised.value)


def _writers() -> dict[str, Any]:
    """Return the fuzzer's functions that write small files in each published layout."""
    spec = importlib.util.spec_from_file_location("fuzz_readers", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.writers()
    return found


@pytest.mark.parametrize("name", sorted(_writers()))
def test_store_is_valid_and_does_not_depend_on_the_folder(name: str, tmp_path: Path) -> None:
    write, options = _writers()[name]
    given = [f"{key}={value}" for key, value in options.items()]
    stores = []
    for folder_name in ("first", "second"):
        folder = tmp_path / folder_name
        folder.mkdir()
        write(folder)
        pickles = list(folder.glob("*.pkl"))
        source = read_source(name.split()[0], pickles[0] if pickles else folder, given)
        done = prepare("mine", source, tmp_path / f"{folder_name} store" / "mine")
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


def test_option_values_must_have_the_type_of_their_default(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`missing` must be true or false, but got 'maybe'"):
        read_source("vggsound", tmp_path, ["missing=maybe"])
    with pytest.raises(UserError, match=r"`fold` must be a whole number, but got '1.5'"):
        read_source("ravdess", tmp_path, ["fold=1.5"])


def test_only_synthetic_readers_need_no_path() -> None:
    assert len(read_source("synthetic_tunable", None, ["samples=60"]).samples) == 60
    with pytest.raises(UserError, match=r"'mosei' needs published files. Give their path by"):
        read_source("mosei", None)
    with pytest.raises(UserError, match="Choose one by --reader, or give files by --from"):
        reader_for("mine", None)


def test_reader_is_inferred_from_the_path(tmp_path: Path) -> None:
    assert reader_for("mosei", tmp_path) == "mosei"
    assert reader_for("mine", tmp_path / "x.parquet") == "parquet"
    with pytest.raises(UserError, match=r"No reader is called 'mine', and .* is not a Parquet"):
        reader_for("mine", tmp_path)
    (tmp_path / "labels.csv").write_text("")
    assert reader_for("mine", tmp_path) == "arrays"
    (tmp_path / "x.parquet").write_text("")
    assert reader_for("mine", tmp_path) == "parquet"
    (tmp_path / "x.parquet").unlink()
    (tmp_path / "dataset_dict.json").write_text("")
    assert reader_for("mine", tmp_path) == "huggingface"
