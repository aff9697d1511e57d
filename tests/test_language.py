"""The project is written in plain English and in the glossary's words."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    r"dearer|dearest": "more expensive, most expensive",
    r"mend(s|ed|ing)?": "fix, repair",
    r"anew": "again, from scratch",
    r"stands? (twice|beside|for itself)": "is listed more than once; is next to",
    r"(is|are|was|were|be|been|not) told": "is given, is known, is stated",
    r"hears? (of|that|what)": "is called when, receives",
    r"data sets?": "dataset, datasets",
    r"elsewhere": "remotely, in another folder, on another machine",
    r"beliefs?|believes?|believed": "posterior, estimate",
    r"priced whole": "enumerated",
    r"licences?": "license",
    r"a first walk": "quick start",
    r"who can do what": "threat model",
    r"whither|therein|hitherto|whence|nought": "plain words",
}
"""Patterns of words, and what to write instead."""
OLD_NAMES = {
    r"begin_or_continue": "create_or_open",
    r"farthest_first": "epsilon_net",
    r"front_changes": "knowledge gradient",
    r"in_words|show_front": "describe_, format_",
    r"keep_gb": "max_weights_gb",
    r"(?<!max_)trial_hours": "max_trial_hours",
    r"LostTrial|AwayError": "StaleTokenError, RemoteUnavailableError",
    r"made_up": "synthetic_tunable",
    r"refuse_surprises": "check_resumable",
    r"FrontSampler|FrontStop": "EHVISampler, DominatedStop",
}
"""Names before the glossary, and the names now."""
ALLOWED = {
    "datasets/errors.py": {"keep_gb", "made_up", "trial_hours"},  # hints for old names
    "orchestrator/storage/events.py": {"beliefs"},  # a key of stored journals
    "tests/golden/studies/listed.yaml": {"priced whole"},  # golden files stay as recorded
    "tests/search_spaces/test_load.py": {"keep_gb", "trial_hours"},  # hints for old names
}
"""Files that need a word, and which."""
FIELDS = {"licence", "beliefs", "data set"}
"""Names of stored fields, allowed as code: `x.licence`, `licence=`, `"licence"`."""


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.yaml", "*.html", "*.js", "*.sh", "Makefile"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    names = listed or [str(path.relative_to(ROOT)) for path in ROOT.glob("*/**/*.py")]
    return [ROOT / name for name in names if name != "tests/test_language.py"]


def found_in(text: str, pattern: str, name: str) -> list[str]:
    """Return the lines with a word that is not allowed there."""
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        for match in re.finditer(rf"(?<![A-Za-z_])(?:{pattern})(?![A-Za-z_])", line, re.IGNORECASE):
            word = match[0].lower()
            is_code = word in FIELDS and re.search(rf"[.\"'`]{word}|{word}[=:\"'`\[,)]", line)
            if word not in ALLOWED.get(name, set()) and not is_code:
                lines.append(f"{name}:{number}: {line.strip()[:100]}")
    return lines


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_texts_have_no_forbidden_word(pattern: str) -> None:
    found = [
        line
        for path in files()
        for line in found_in(path.read_text(), pattern, str(path.relative_to(ROOT)))
    ]
    assert found == [], f"write instead: {FORBIDDEN[pattern]}"


@pytest.mark.parametrize("pattern", OLD_NAMES)
def test_code_has_no_old_name(pattern: str) -> None:
    found = [
        line
        for path in files()
        if path.name != "CHANGELOG.md"  # it says what was renamed
        for line in found_in(path.read_text(), pattern, str(path.relative_to(ROOT)))
    ]
    assert found == [], f"the name now: {OLD_NAMES[pattern]}"


def test_contributing_has_a_glossary() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## Glossary", 1)[1].split("\n## ", 1)[0]
    for term in ("study", "configuration", "trial", "replicate", "objective", "cost", "admission",
                 "journal", "surrogate", "front probability", "early stopping", "worker group",
                 "fencing token", "mirror", "token budget"):  # fmt: skip
        assert term in section.lower(), term


def test_found_in_sees_words_and_not_parts_of_them() -> None:
    assert found_in("It is Dearer here.", "dearer", "x")
    assert not found_in("recommended amendments", "mend(s|ed|ing)?", "x")
    assert not found_in('x.licence, licence="a"', "licences?", "x")
    assert found_in("the licence of it", "licences?", "x")
