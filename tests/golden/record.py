"""Rewrite the golden files: `python -P tests/golden/record.py [journals] [record] [studies]`.

Run it by hand, only if behavior changes on purpose. Output depends on the code alone: clocks are
simulated, and every draw has a seed. Steps:

- `journals`: `journal*.jsonl` of the studies in `studies/`, and in `continuations/` the events
  after a resume from each cut;
- `record`: `record.json`, `states.json` and `report.json` of those journals;
- `studies`: `studies.json`, the configurations of the shipped study files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).parents[1] / "support")
)  # `python -P` does not add the folder of the script
import golden_study as golden


def record_journals(folder: Path) -> None:
    """Run every golden study, and resume it from every cut."""
    for name, study in golden.STUDIES.items():
        lines = golden.play(name, folder / name)
        golden.save(study.journal, lines)
        for i, between in enumerate(golden.CUTS.get(name, ())):
            kept = lines[: golden.find_cut(lines, between)]
            more = golden.resume(name, kept, folder / f"{name}-{i}")
            golden.save(golden.continuation(name, between), more)


def record_results(folder: Path) -> None:
    """Write records, states and the report of the golden journals."""
    journals = {name: golden.load(study.journal) for name, study in golden.STUDIES.items()}
    records = {name: golden.record_of(lines, folder / name) for name, lines in journals.items()}
    _write("record.json", records)
    _write("states.json", golden.states(folder / "states"))
    _write("report.json", golden.report_of(journals["rich"], folder / "report"))


def record_study_files(folder: Path) -> None:
    """Write the configurations of the shipped study files."""
    files = golden.study_files()
    _write("studies.json", {n: golden.space_of(file, folder / n) for n, file in files.items()})


def _write(name: str, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (golden.GOLDEN / name).write_text(text + "\n")


STEPS = {
    "journals": record_journals,
    "record": record_results,
    "studies": record_study_files,
}


def main() -> None:
    """Run the given steps, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}")
    for step in parser.parse_args().steps or STEPS:
        with tempfile.TemporaryDirectory() as folder:
            STEPS[step](Path(folder))


if __name__ == "__main__":
    main()
