"""Read untrusted study files: every error has a line and a key, and nothing crashes."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sftsearch.datasets.errors import UserError
from sftsearch.orchestrator.candidates.study_checks import check_names
from sftsearch.search_spaces.load import StudySource, find_study_file, parse_study, read_study
from sftsearch.search_spaces.mistakes import MAX_SHOWN, StudyFileError
from sftsearch.search_spaces.plain_yaml import MAX_BYTES, MAX_DEPTH

if TYPE_CHECKING:
    from pathlib import Path

VALID = """\
study:
  name: small
  description: three strides
dataset: {kind: wearables}
constraints:
  - {metric: gflops, max: 1e-3}
search:
  sampler: {kind: random, seed: 3}
  trials: 6
  replicates: 2
training:
  learning_rate: 1e-3
resources: {cpus: 1}
space:
  - kind: sft
    patch: 8
    dim: {kind: choice, values: [20, 40]}
    dropout: {kind: float, low: 0.0, high: 0.3, step: 0.1}
    fused_layers: {kind: int, low: 1, high: 3}
"""


def parse(text: str | bytes) -> StudySource:
    return parse_study(text if isinstance(text, bytes) else text.encode(), name="s.yaml")


def parameters_of(model: str) -> tuple[str, ...]:
    return ()


def mistakes_of(text: str | bytes) -> list[str]:
    """Return the lines of the message, without the name of the file."""
    try:
        source = parse(text)
        source.study  # noqa: B018
    except StudyFileError as error:
        lines = str(error).splitlines()
        assert all(line.startswith("s.yaml") for line in lines)
        return [line.removeprefix("s.yaml, ") for line in lines]
    return []


def changed(old: str, new: str) -> str:
    assert VALID.count(old) == 1, old
    return VALID.replace(old, new)


def test_parse_study_reads_values_and_lines() -> None:
    source = parse(VALID)
    assert source.mistakes == ()
    assert source.data == yaml.safe_load(VALID.replace("1e-3", "0.001"))
    assert source.study.search.trials == 6
    assert source.study.constraints[0].max == 1e-3
    assert source.layout.lines[("search", "trials")] == 9
    assert source.layout.lines[("space", 0, "fused_layers", "high")] == 19
    assert str(source.mistake(("space", 0, "dim", "values", 1), "no")) == (
        "line 17: space[0].dim.values[1]: no"
    )
    assert str(source.mistake(("space", 0, "absent", "deep"), "no")).startswith("line 15: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: A study file is a mapping with `study`, `dataset`, `search`, `space`, "
              "but got nothing."),
        (b"# only a comment\n", "line 1: A study file is a mapping with `study`, `dataset`, "
                                "`search`, `space`, but got nothing."),
        (b"- 1\n", "line 1: A study file is a mapping with `study`, `dataset`, `search`, "
                   "`space`, but got a list."),
        (b"\x89PNG\r\n\x1a\n\x00", "line 1: The file is not UTF-8 text (byte 0x89)."),
        (b"study:\n  name: \xe9\n", "line 2: The file is not UTF-8 text (byte 0xe9)."),
        (b"study:\n  name: a\x00b\n", "line 2: The file is not YAML: the character U+0000 is not "
                                      "allowed."),
        (b"study: [1, 2\n", "line 2: The file is not YAML: expected ',' or ']', but got "
                            "'<stream end>'."),
        (b"study: {name: x}\n dataset: 1\n", "line 2: The file is not YAML: expected <block end>, "
                                             "but found '<block mapping start>'."),
        (b"a: &x [1]\nb: *x\n", "line 1: Anchors and aliases (&, *) are not allowed, got 'x'."),
        (b"study: *nowhere\n", "line 1: Anchors and aliases (&, *) are not allowed, got "
                               "'nowhere'."),
        (VALID.encode() + b"---\nstudy: 1\n", "line 20: The file has more than one document: "
                                              "remove this `---`."),
        (b"x: " + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "line 1: Lists and mappings are nested "
                                                       "deeper than 32 levels."),
        (b"x: " + b"{a: " * 10_000, "line 1: Lists and mappings are nested deeper than 32 levels."),
        (b"#" * (MAX_BYTES + 1), "line 1: The file is larger than 256 KiB, the limit of a study "
                                 "file."),
    ],
)  # fmt: skip
def test_parse_study_refuses_other_files_with_one_line(content: bytes, message: str) -> None:
    assert mistakes_of(content) == [message]


def test_parse_study_refuses_a_billion_laughs_at_the_first_anchor() -> None:
    rows = ["a: &a [ha, ha]"]
    rows += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi")]  # noqa: B905
    start = time.perf_counter()
    assert mistakes_of("\n".join(rows)) == [
        "line 1: Anchors and aliases (&, *) are not allowed, got 'a'."
    ]
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  trials: 6\n", "  trials: 6\n  trials: 8\n",
         "line 10: search.trials: The key is listed more than once, first in line 9."),
        ("  trials: 6\n", "  trials: !!python/object/apply:os.system ['true']\n",
         "line 9: search.trials: The tag 'tag:yaml.org,2002:python/object/apply:os.system' is not "
         "allowed: only plain values are."),
        ("  trials: 6\n", "  trials: !secret 6\n",
         "line 9: search.trials: The tag '!secret' is not allowed: only plain values are."),
        ("name: small", "name: !!binary c21hbGw=",
         "line 2: study.name: The tag 'tag:yaml.org,2002:binary' is not allowed: only plain values "
         "are."),
        ("cpus: 1", "cpus: !!int one", "line 13: resources.cpus: 'one' cannot be read as int."),
        ("cpus: 1", "cpus: !!bool perhaps",
         "line 13: resources.cpus: 'perhaps' cannot be read as bool."),
        ("three strides", '"\\ud800"',
         "line 3: study.description: '\\ud800' cannot be read as str."),
        ("cpus: 1", "? [cpus, gpus] : 1",
         "line 13: resources: A key must be text, not a collection."),
        ("  trials: 6\n", "  tirals: 6\n",
         "line 9: search.tirals: No key is called 'tirals'. Did you mean 'trials'? Known: balance, "
         "baselines, deterministic, early_stopping, max_epochs, max_gpu_hours, max_hours, "
         "min_accuracy, replicates, sampler, trials, until_converged."),
        ("  trials: 6\n", "  trials: 6\n  balance: branch\n",
         "line 10: search.balance: No value is called 'branch'. Did you mean 'branches'? Known: "
         "branches, none."),
        ("seed: 3", "sed: 3", "line 8: search.sampler.sed: No key is called 'sed'. Did you mean "
         "'seed'? Known: kind, population, seed, startup_configurations."),
        ("kind: random", "kind: randm", "line 8: search.sampler.kind: No kind is called 'randm'. "
         "Did you mean 'random'? Known: ehvi, exhaustive, gp, nsga2, nsga3, "
         "quasi_random, random, tpe."),
        ("{kind: random, seed: 3}", "{seed: 3}",
         "line 8: search.sampler: It needs a `kind`. Known: ehvi, tpe, nsga2, nsga3, gp, "
         "quasi_random, random, exhaustive."),
        ("metric: gflops", "metric: glops", "line 6: constraints[0].metric: No value is called "
         "'glops'. Did you mean 'gflops'? Known: gflops, gflops_dense, gmacs, "
         "inference_memory_mb, parameters, train_memory_mb, weights_mb."),
        ("max: 1e-3", "max: .inf",
         "line 6: constraints[0].max: It should be a finite number, but got inf."),
        ("max: 1e-3", "max: .nan",
         "line 6: constraints[0].max: It should be a finite number, but got nan."),
        ("max: 1e-3", "max: 0",
         "line 6: constraints[0].max: It should be greater than 0, but got 0."),
        ("  trials: 6\n", "  trials: 7\n", "line 7: search: `trials` must be a multiple of "
         "`replicates`, but got (trials=7, replicates=2); the nearest is 8."),
        ("  trials: 6\n", "  trials: six\n",
         "line 9: search.trials: It should be a valid integer, but got 'six'."),
        ("  trials: 6\n", "  trials: true\n",
         "line 9: search.trials: It should be a valid integer, but got True."),
        ("  trials: 6\n", f"  trials: {'9' * 5000}\n",
         f"line 9: search.trials: '{'9' * 56}... cannot be read as int."),
        ("cpus: 1", "gpus: 1.5",
         "line 13: resources.gpus: `gpus` above 1 must be a whole number, but got 1.5."),
        ("cpus: 1", "concurrent_trials: many", "line 13: resources.concurrent_trials: It must be "
         "`auto` or a whole number from 1 to 100000, but got 'many'."),
        ("{kind: wearables}", "wearables", "line 4: dataset: It must be a mapping of keys to "
         "values, but got 'wearables'."),
        ("[20, 40]", "[]", "line 17: space[0].dim.values: The list is too short, but got []."),
        ("[20, 40]", "[20, 40, 20]",
         "line 17: space[0].dim.values: `values` must be unique, but 20 is listed more than once."),
        ("kind: choice", "kind: chice", "line 17: space[0].dim.kind: No kind is called 'chice'. "
         "Did you mean 'choice'? Known: choice, float, int."),
        ("{kind: int, low: 1, high: 3}", "{kind: int, low: 1, hihg: 3}",
         "line 19: space[0].fused_layers.high: This key is missing."),
        ("{kind: int, low: 1, high: 3}", "{left: 2, right: {kind: chice, values: [1]}}",
         "line 19: space[0].fused_layers.right.kind: No kind is called 'chice'. Did you mean "
         "'choice'? Known: choice, float, int."),
        ("{kind: int, low: 1, high: 3}", "\n      left: 2\n      right: {kind: choice, value: [1]}",
         "line 21: space[0].fused_layers.right.value: No key is called 'value'. Did you mean "
         "'values'? Known: kind, values."),
        ("{kind: int, low: 1, high: 3}", "{kind: int, low: 3, high: 1}",
         "line 19: space[0].fused_layers: `low <= high` must hold, but got (low=3, high=1)."),
        ("{kind: int, low: 1, high: 3}", "{kind: int, low: 0, high: 3, log: true}",
         "line 19: space[0].fused_layers: `log: true` needs `low > 0`, but got (low=0)."),
        ("{kind: int, low: 1, high: 3}", "{kind: int, low: 1, high: 3, log: true, step: 2}",
         "line 19: space[0].fused_layers: `log: true` and `step` are mutually exclusive: remove "
         "one."),
        ("{kind: int, low: 1, high: 3}", f"{{kind: int, low: 1, high: {10**400}}}",
         "line 19: space[0].fused_layers.high: It should be less than or equal to "
         "9007199254740992, but got 100000000000000000000000000000000000000000000000000000000...."),
        ("high: 0.3, step: 0.1", "high: .inf",
         "line 18: space[0].dropout.high: It should be a finite number, but got inf."),
        ("low: 0.0, high: 0.3, step: 0.1", "low: -1e308, high: 1e308",
         "line 18: space[0].dropout: The range is too wide for a number (low=-1e+308, "
         "high=1e+308)."),
        ("high: 0.3, step: 0.1", "high: 0.3, step: 1e-300", "line 18: space[0].dropout: The range "
         "has too many steps (low=0.0, high=0.3, step=1e-300): use a larger step, or none."),
    ],
)  # fmt: skip
def test_parse_study_reports_line_key_and_fix(old: str, new: str, message: str) -> None:
    assert message in mistakes_of(changed(old, new))


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "a/b", "", "..", "a" * 65, "Upper", "-first", "a b", "a\\nb", "ü"]
)
def test_study_name_must_be_a_safe_folder_name(name: str) -> None:
    """The name becomes a folder in the runs folder, and must not lead outside of it."""
    (line,) = mistakes_of(changed("name: small", f'name: "{name}"'))
    rule = "1 to 64 lower-case letters, digits, `-` or `_`, the first a letter or digit"
    assert line.startswith(f"line 2: study.name: It must be {rule}, but got '")


def test_study_name_may_have_64_characters() -> None:
    assert mistakes_of(changed("name: small", f"name: {'a' * 64}")) == []


def test_check_names_reports_all_errors_in_the_order_of_the_file() -> None:
    """Schema errors, unknown names and wrong values are in one list."""
    text = (
        VALID.replace("name: small", "name: Small")
        .replace("kind: wearables", "kind: wearable")
        .replace("trials: 6", "tirals: 6")
        .replace("learning_rate", "learning_rat")
        .replace("kind: sft", "kind: sftt")
        .replace("high: 0.3", "high: -0.3")
    )
    with pytest.raises(StudyFileError) as caught:
        check_names(parse(text))
    numbers = [int(re.findall(r"line (\d+)", line)[0]) for line in str(caught.value).splitlines()]
    assert numbers == sorted(numbers)
    assert set(numbers) == {2, 4, 7, 9, 12, 15, 18}
    assert "Did you mean 'wearables'?" in str(caught.value)
    assert "Did you mean 'sft'?" in str(caught.value)
    assert "Did you mean 'learning_rate'?" in str(caught.value)


def test_study_file_error_shows_a_limited_number_of_errors() -> None:
    lines = mistakes_of(VALID + "".join(f"k{i}: 1\n" for i in range(500)))
    assert len(lines) == MAX_SHOWN + 1
    assert lines[-1] == f"s.yaml: and {500 - MAX_SHOWN} more errors."


def test_messages_have_no_control_characters() -> None:
    """A name from a file must not change the terminal's color or break the line."""
    (line,) = mistakes_of(VALID + '"\\e[31m\\nred": 1\n')
    assert "\\x1b[31m\\nred" in line
    assert line.isprintable()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E+3", 1000.0), (".5", 0.5), ("5.", 5.0), ("-2", -2), ("0o17", 15),
        ("0x1F", 31), ("010", 10), ("true", True), ("False", False), ("null", None), ("~", None),
        ("", None), (".inf", float("inf")), ("-.INF", float("-inf")),
        *((s, s) for s in ("yes", "no", "on", "off", "y", "12:30", "1:2:3", "2020-01-01",
                           "2020-01-01 10:00:00", "1_000", "1e", "0b1", "=", "<<", "0.1.2",
                           ".Nan", "TrUe")),
        ("'1'", "1"), ('"true"', "true"), ("!!str 12", "12"),
    ],
)  # fmt: skip
def test_parse_study_reads_yaml_1_2_scalars(text: str, value: object) -> None:
    """YAML 1.2.2, section 10.3.2 (core schema)."""
    read = parse(f"x: {text}\n").data["x"]
    assert read == value
    assert type(read) is type(value)


def test_parse_study_reads_byte_order_mark_and_windows_line_ends() -> None:
    assert parse(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode()).study.search.trials == 6


def test_find_study_file_accepts_paths_and_shipped_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_study_file("stride")
    assert shipped == find_study_file("stride.yaml") == find_study_file("search_spaces/stride.yaml")
    assert shipped.is_file()
    (tmp_path / "stride.yaml").write_text(VALID)
    assert read_study(find_study_file("stride.yaml"), parameters_of).study.study.name == "small"
    for name, message in {
        "strid": "There is no study file 'strid'. Did you mean 'stride'? Shipped studies: ",
        "other/stride.yaml": "There is no study file 'other/stride.yaml'.",
        str(tmp_path): f"'{tmp_path}' is a folder; a study file is a YAML file.",
        "x" * 5000: "There is no study file 'xxx",
        "a\0b": "There is no study file 'a\0b'",
    }.items():
        with pytest.raises(UserError) as caught:
            find_study_file(name)
        assert str(caught.value).startswith(message)


def test_read_study_reports_a_missing_file_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the study file '.*gone': No such file"):
        read_study(tmp_path / "gone", parameters_of)


# ------------------------------------------------------------------ fuzzing


def survives(content: bytes) -> None:
    """Parse and check; only a UserError with a printable message may be raised."""
    try:
        check_names(parse(content))
    except UserError as error:
        for line in str(error).splitlines():
            assert line.isprintable()


@pytest.mark.medium
@settings(max_examples=200)
@given(st.binary(max_size=2000))
def test_parse_study_survives_any_bytes(content: bytes) -> None:
    survives(content)


OLD_NAMES = """\
study: {name: old}
dataset: {kind: wearables}
objectives:
  - {metric: top1, goal: maximize}
  - {metric: gflops, direction: minimize}
search:
  trials: 4
  sampler: front
  stopping: front
  ordered: true
resources:
  keep_gb: 1
  trial_hours: 2
  larger: []
space:
  - {kind: sft}
"""


def test_parse_study_gives_new_names_of_renamed_options() -> None:
    assert mistakes_of(OLD_NAMES) == [
        "line 4: objectives[0].direction: This key is missing.",
        "line 4: objectives[0].goal: `goal` is now `direction`.",
        "line 8: search.sampler.kind: `front` is now `ehvi`.",
        "line 9: search.stopping: `stopping` is now `early_stopping`.",
        "line 10: search.ordered: `ordered` is now `deterministic`.",
        "line 12: resources.keep_gb: `keep_gb` is now `max_weights_gb`.",
        "line 13: resources.trial_hours: `trial_hours` is now `max_trial_hours`.",
        "line 14: resources.larger: `larger` is now `overrides`.",
    ]
    named = mistakes_of(OLD_NAMES.replace("stopping: front", "early_stopping: front"))
    assert "line 9: search.early_stopping.kind: `front` is now `dominated`." in named


WORDS = ["kind", "values", "low", "high", "step", "log", "choice", "int", "float", "sft", "tpe",
         "stride", "modalities", "objectives", "metric", "direction", "top1", "gflops", "maximize",
         "study", "dataset", "search", "space", "training", "wearables", "name", "trials",
         "parameters", "model_config", "__class__", "resources", "constraints"]  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63])
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(WORDS) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.medium
@settings(max_examples=200)
@given(st.data())
def test_parse_study_survives_any_replaced_value(data: st.DataObject) -> None:
    tree = parse(VALID).data
    container = tree
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        key = data.draw(st.sampled_from(keys))
        inner = container[key]
        if not isinstance(inner, dict | list) or data.draw(st.booleans()):
            break
        container = inner
    container[key] = data.draw(PLAIN)
    if isinstance(container, dict) and data.draw(st.booleans()):
        container[data.draw(st.sampled_from(WORDS))] = data.draw(PLAIN)
    survives(yaml.dump(tree, allow_unicode=True, sort_keys=False).encode(errors="replace"))


MARKS = [b"&a ", b"*a", b"- ", b"!!set ", b"{", b"]", b"\n", b"? ", b": "]


@pytest.mark.medium
@settings(max_examples=200)
@given(st.data())
def test_parse_study_survives_any_changed_bytes(data: st.DataObject) -> None:
    content = bytearray(VALID.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        put = data.draw(st.binary(max_size=3) | st.sampled_from(MARKS))
        content[at : at + data.draw(st.integers(0, 6))] = put
    survives(bytes(content))


@pytest.mark.medium
@pytest.mark.parametrize(
    "content",
    [b"x: [" + b"1," * 120_000 + b"]", b"k: 1\n" * 50_000, b"? \n" * 80_000, b'"' + b"\\" * 250_000,
     b"x: 1e" + b"9" * 250_000, b"x: a" + b"\n  a" * 60_000, b"a" * 250_000 + b": 1"],
)  # fmt: skip
def test_parse_study_reads_the_largest_files_in_seconds(content: bytes) -> None:
    assert len(content) <= MAX_BYTES
    start = time.process_time()
    survives(content)
    assert time.process_time() - start < 20
