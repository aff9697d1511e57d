"""Golden studies, run without Ray by a toy training; their journals are kept as plain data.

Only this module calls the product; tests under `golden/` use study files, lines of journals
(`[id, time, kind, body]`, as in SQLite) and plain JSON.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import itertools
import json
import math
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sftsearch.search_spaces
from sftsearch.orchestrator.analysis.analyse import analyse
from sftsearch.orchestrator.callback import StudyCallback
from sftsearch.orchestrator.candidates.binding import definition_of
from sftsearch.orchestrator.report.formats import write_report
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.studies import read_record, read_state
from sftsearch.orchestrator.study import StudySession
from sftsearch.orchestrator.study_file import check_study, definition_hash

from journals import Journal
from toy_study import noise, uneven

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sftsearch.orchestrator.search.engine import TrialSuggestion
    from sftsearch.orchestrator.storage.event import TrialKey

Line = list[Any]
"""A stored event: `[id, time, kind, body]`."""

GOLDEN = Path(__file__).parents[1] / "golden"
FILE_NAME = "journal.sqlite"
START = 1_700_000_000.0
"""Start of golden studies, Unix seconds."""
VERSIONS = ("sftsearch", "ray", "optuna", "mlflow", "torch")
"""Facts of `created` that depend on the installation."""
TOLERANCE, LOOSE = 1e-6, 1e-4
"""Relative and absolute tolerance of floats; the looser one is for fitted hyperparameters."""


# ------------------------------------------------------------------ stored data


def load(path: Path) -> list[Line]:
    """Read the lines of a journal, compressed or not."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.decode().splitlines()]


def save(path: Path, lines: Sequence[Line]) -> None:
    """Write the lines of a journal, compressed if the name ends in `.gz`."""
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def read_journal(folder: Path) -> list[Line]:
    """Read a study's journal directly from SQLite."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        rows = connection.execute("SELECT id, time, kind, body FROM events ORDER BY id").fetchall()
    return [[number, time, kind, json.loads(body)] for number, time, kind, body in rows]


def write_journal(folder: Path, lines: Sequence[Line]) -> None:
    """Write a study's journal directly into SQLite, as if by an earlier driver."""
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        connection.execute(
            "CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, "
            "body TEXT NOT NULL)"
        )
        connection.execute("PRAGMA user_version=1")
        connection.executemany(
            "INSERT INTO events (id, time, kind, body) VALUES (?, ?, ?, ?)",
            [(number, time, kind, json.dumps(body)) for number, time, kind, body in lines],
        )


def load_json(name: str) -> dict[str, Any]:
    """Read a golden JSON file."""
    document: dict[str, Any] = json.loads((GOLDEN / name).read_text())
    return document


# ------------------------------------------------------------------ studies


@dataclass(frozen=True)
class GoldenStudy:
    """A study of `golden/studies/`, and the events to simulate."""

    name: str
    slots: int = 3
    killed_after: tuple[int, ...] = ()
    """Numbers of events after which a driver dies and another one resumes."""
    begins_with: str = ""
    """Name of the golden study that it is warm-started from."""
    is_table: bool = False
    """Whether it is recorded as a table: some configurations then get more replicates."""
    faulty: bool = True
    """Whether workers are lost, run out of memory and fail."""
    noise_sd: float = 0.02
    """Standard deviation between replicates."""
    is_confirmed: bool = False
    """Whether it is confirmed after its end."""

    @property
    def file(self) -> Path:
        return GOLDEN / "studies" / f"{self.name}.yaml"

    @property
    def journal(self) -> Path:
        """Path of its golden journal."""
        suffix = "" if self.name == "rich" else f"_{self.name}"
        return GOLDEN / f"journal{suffix}.jsonl"


STUDIES = {
    study.name: study
    for study in (
        GoldenStudy("first", slots=1, faulty=False),
        GoldenStudy("rich", killed_after=(131,), begins_with="first", is_confirmed=True),
        GoldenStudy("ordered", killed_after=(60, 61), begins_with="first"),
        GoldenStudy("carried"),
        GoldenStudy("listed", slots=2, killed_after=(101,)),
        GoldenStudy("converged", slots=1, faulty=False, noise_sd=0.003),
        GoldenStudy("table", is_table=True, faulty=False),
    )
}


def play(name: str, folder: Path) -> list[Line]:
    """Run a golden study from start to end and return its journal.

    Args:
        name: of the study.
        folder: of all studies; the warm-start study is run there too.
    """
    study = STUDIES[name]
    lines: list[Line] = []
    if study.begins_with:
        play(study.begins_with, folder)
    for number, killed_after in enumerate(study.killed_after):
        lines = _drive(study, folder, f"{name}-{number}", lines, until=killed_after)
    lines = _drive(study, folder, name if not study.is_table else "table-begun", lines)
    if study.is_table:
        lines = _drive(study, folder, name, [*lines, *_granted(lines)])
    return [*lines, _confirmed(lines)] if study.is_confirmed else lines


def resume(name: str, lines: Sequence[Line], folder: Path) -> list[Line]:
    """Resume a study from its first events; return the new events."""
    return _drive(STUDIES[name], folder, name, lines)[len(lines) :]


def _drive(
    study: GoldenStudy, folder: Path, name: str, lines: Sequence[Line], until: int | None = None
) -> list[Line]:
    """Run a study to its end, or until a number of events, and return its journal."""
    where = folder / study.name
    shutil.rmtree(where, ignore_errors=True)
    if lines:
        write_journal(where, lines)
    _Driver(study, where, until, lines[-1][1] if lines else START).run()
    return read_journal(where)[:until]


def _granted(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield `replicated` events of two configurations, as a table gets them near its front."""
    admitted = [body["configuration_id"] for _, _, kind, body in lines if kind == "admitted"]
    for number, identity in enumerate(admitted[:2], start=len(lines) + 1):
        yield [number, lines[-1][1], "replicated", {"configuration_id": identity, "seeds": [2, 3]}]


class _Driver:
    """A driver with its own clock and workers that train nothing."""

    def __init__(self, study: GoldenStudy, folder: Path, until: int | None, now: float) -> None:
        self.study, self.folder, self.until, self.now = study, folder, until, now
        self.order = itertools.count()
        self.running: list[tuple[float, int, TrialSuggestion, int]] = []
        """When an epoch ends, a tie-break, the trial, the epoch."""
        self.faults: set[tuple[str, str]] = set()
        """Trials and their faults; each fault happens once per study."""

    def run(self) -> None:
        runs = self.folder.parent
        session = StudySession(self.study.file, runs, StudyCallback(), {"resume": True})
        study = session.study
        self.epochs: int = study.training["epochs"]
        self.folds = study.dataset.folds or 1
        with Journal(self.folder, clock=lambda: self.now) as journal:
            if self.study.is_table and not journal.last_id:
                journal.append("recorded")
            session.create_or_open(journal)
            for event in read_journal(self.folder):
                self._note_fault(event)
            journal.append("opened", trials=study.search.trials, slots=self.study.slots)
            self.search = Search(
                study, journal, session.admission, max_concurrent_trials=self.study.slots
            )
            self.search.finish_what_was_begun()
            while not self.search.exhausted:
                if self.until is not None and journal.last_id >= self.until:
                    return
                self._fill()
                self._step()
            self.search.conclude()
            self.search.close()

    def _fill(self) -> None:
        while len(self.running) < self.study.slots:
            assignment = self.search.propose()
            if assignment is None:
                return
            # A checkpoint may be an epoch older than what was reported.
            self._schedule(assignment, max(1, assignment.num_journalled))

    def _schedule(self, assignment: TrialSuggestion, epoch: int) -> None:
        then = self.now + _seconds(assignment.key)
        heapq.heappush(self.running, (then, next(self.order), assignment, epoch))

    def _step(self) -> None:
        """Finish the next epoch, or simulate a fault of its trial."""
        if not self.running:
            assert self.search.exhausted, "no trial runs, and none is proposed"
            return
        self.now, _, assignment, epoch = heapq.heappop(self.running)
        key = assignment.key
        if self.study.faulty and self._fault(key, epoch):
            return
        if not self.search.report(key, self._metrics(assignment, epoch)):
            return
        if epoch < self.epochs:
            self._schedule(assignment, epoch + 1)
            return
        metrics = self._metrics(assignment, epoch)
        del metrics["epoch"]
        values = {**metrics, **assignment.cost, "seconds": self.epochs * metrics["seconds"]}
        fold = assignment.seed % self.folds
        groups = _groups(key, metrics["top1"], range(3 * fold, 3 * fold + 3))
        self.search.finish(key, values, groups, {"device": "cpu", "threads": 1})

    def _metrics(self, assignment: TrialSuggestion, epoch: int) -> dict[str, float]:
        """Return the report of an epoch; about a third of the configurations are bad."""
        key = assignment.key
        is_bad = noise(f"{key.configuration_id} hopeless") > 0.3
        sd = self.study.noise_sd
        final = uneven(assignment) - 0.25 * is_bad + sd * noise(key)
        top1 = final * (0.6 + 0.4 * epoch / self.epochs) + 0.2 * sd * noise(key, epoch)
        return {"epoch": float(epoch), "top1": top1, "loss": 1 - top1, "seconds": _seconds(key)}

    def _fault(self, key: TrialKey, epoch: int) -> bool:
        """Report a fault of a trial to the search, if there is one."""
        if epoch == 1 and self._is_hit(key, "memory", 1.2):
            self.search.on_out_of_memory(key, "out of memory: asked for 2 GiB")
        elif epoch == 2 and self._is_hit(key, "lost", 1.0):
            self.search.on_worker_lost(key, "the process was killed by signal 9")
        elif epoch == 3 and self._is_hit(key, "failed", 1.5):
            self.search.on_failure(key, "ValueError: expected more samples")
        elif epoch == 3 and self._is_hit(key, "infinite", 1.6):
            self.search.report(key, {"epoch": 3.0, "top1": math.nan})
        else:
            return False
        return True

    def _is_hit(self, key: TrialKey, fault: str, level: float) -> bool:
        if (str(key), fault) in self.faults or noise(f"{key} {fault}") < level:
            return False
        self.faults.add((str(key), fault))
        return True

    def _note_fault(self, line: Line) -> None:
        _, _, kind, body = line
        if kind == "retried":
            self.faults.add((body["trial"], "memory" if body["alone"] else "lost"))


def _seconds(key: TrialKey) -> float:
    """Return the duration of an epoch of a trial."""
    return round(10 + 2 * noise(f"{key} seconds"), 3)


def _groups(key: TrialKey | str, top1: float, subjects: Sequence[int]) -> dict[str, list[float]]:
    """Return counts of correct and all samples by subject."""
    return {f"s{n:02}": [float(round(100 * top1 + noise(key, n))), 100.0 + n] for n in subjects}


def _confirmed(lines: Sequence[Line]) -> Line:
    """Return a `confirmed` event for a finished study."""
    concluded = next(body for _, _, kind, body in reversed(lines) if kind == "concluded")
    chosen = [
        body["trial"]
        for _, _, kind, body in lines
        if kind == "finished" and body["trial"].rpartition("-")[0] in concluded["reported"]
    ]
    results = {}
    for key in chosen:
        top1 = 0.7 + 0.02 * noise(f"{key} test")
        values = {"top1": top1, "loss": 1 - top1}
        results[key] = {"values": values, "groups": _groups(key, top1, range(20, 24))}
    return [len(lines) + 1, lines[-1][1] + 60, "confirmed", {"trials": results}]


# ------------------------------------------------------------------ cuts to resume from

CUTS = {
    "rich": (
        "proposed admitted",
        "started epoch",
        "epoch epoch",
        "epoch judged",
        "epoch stopped",
        "epoch finished",
        "judged retried",
        "retried started",
        "finished told",
        "stopped told",
        "told fitted",
        "fitted expected",
        "expected proposed",
        "replicated started",
        "fitted frozen",
        "frozen started",
        "finished concluded",
        "concluded ended",
    ),
    "ordered": (
        "proposed refused",
        "refused proposed",
        "proposed admitted",
        "epoch failed",
        "finished told",
        "told proposed",
    ),
    "carried": ("proposed admitted", "epoch fitted", "epoch stopped", "stopped told"),
    "listed": ("epoch judged", "retried started", "finished replicated"),
    "converged": ("fitted expected", "expected concluded"),
    "table": ("finished concluded", "proposed admitted"),
}
"""By study, pairs of successive event kinds; the study is resumed between the two."""


def find_cut(lines: Sequence[Line], between: str) -> int:
    """Return the number of events before a cut: three quarters through all matching pairs."""
    pairs = itertools.pairwise(kind for _, _, kind, _ in lines)
    found = [number for number, pair in enumerate(pairs, start=1) if " ".join(pair) == between]
    return found[3 * len(found) // 4]


def continuation(name: str, between: str) -> Path:
    """Return the path of the golden continuation after a cut."""
    return GOLDEN / "continuations" / f"{name}_{between.replace(' ', '_')}.jsonl.gz"


# ------------------------------------------------------------------ records and reports


def record_of(lines: Sequence[Line], folder: Path) -> dict[str, Any]:
    """Return the record of a journal as plain JSON values."""
    write_journal(folder, lines)
    record: dict[str, Any] = json.loads(json.dumps(asdict(read_record(folder))))
    return record


def state_of(lines: Sequence[Line], folder: Path) -> dict[str, Any]:
    """Return the state of a journal, without the state of MLflow."""
    write_journal(folder, lines)
    state = read_state(folder)
    return {"state": state.state, "trials": state.trials}


def report_of(lines: Sequence[Line], folder: Path) -> dict[str, Any]:
    """Return the JSON report of a journal."""
    write_journal(folder, lines)
    (file,) = write_report(analyse(read_record(folder)), ["json"], folder / "report")
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def states(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the states of golden studies after some of their events."""
    rich, table = load(STUDIES["rich"].journal), load(STUDIES["table"].journal)
    kinds = [kind for _, _, kind, _ in rich]
    begun, ended = kinds.index("opened") + 1, kinds.index("ended") + 1
    interrupted = [201, rich[199][1], "ended", {"reason": "interrupted", "complete": False}]
    cases = {
        "created": rich[:1],
        "imported": rich[: begun - 1],
        "opened": rich[:begun],
        "killed": rich[:200],
        "interrupted": [*rich[:200], interrupted],
        "resumed": [*rich[:200], interrupted, [202, rich[199][1], "opened", rich[begun - 1][3]]],
        "frozen": rich[: kinds.index("frozen") + 1],
        "concluded": rich[: ended - 1],
        "ended": rich[:ended],
        "confirmed": rich,
        "recorded": table[:1],
        "table": table,
    }
    return {name: state_of(lines, folder / name) for name, lines in cases.items()}


# ------------------------------------------------------------------ study files


def study_files() -> dict[str, Path]:
    """Return the shipped study files by name; for `stride` an old copy."""
    shipped = sorted(Path(next(iter(sftsearch.search_spaces.__path__))).glob("*.yaml"))
    return {file.stem: file for file in shipped} | {"stride": GOLDEN / "stride.yaml"}


def space_of(file: Path, folder: Path) -> dict[str, Any]:
    """Return the admissible configurations of a study file and the hash of its definition.

    All ids of an enumerated space are hashed; of another space the first draws are listed.

    Args:
        file: of the study.
        folder: an empty one.
    """
    source, spec, admission = check_study(file)
    definition = definition_hash(definition_of(source, spec))
    if admission.table is not None:
        found = sorted(admission.table.values(), key=lambda candidate: candidate.id)
        ids = "\n".join(candidate.id for candidate in found)
        counted = {"num": len(found), "sha256": hashlib.sha256(ids.encode()).hexdigest()}
    else:
        random_ = random.Random(0)
        drawn = [admission.draw(random_) for _ in range(20)]
        found = [candidate for candidate in drawn if candidate is not None]
        counted = {"drawn": [candidate.id for candidate in found]}
    some = [
        {
            "id": candidate.id,
            "model": candidate.configuration.model,
            "parameters": candidate.configuration.parameters,
            "cost": candidate.cost.as_dict(),
        }
        for candidate in found[:5]
    ]
    whole = {"definition": definition, "refused": admission.num_refused, **counted, "some": some}
    plain: dict[str, Any] = json.loads(json.dumps(whole))
    return plain


# ------------------------------------------------------------------ comparing


def differences(
    found: Any, expected: Any, *, tolerance: float = TOLERANCE, at: str = ""
) -> list[str]:
    """Return the differences of two JSON values; floats may differ within a tolerance."""
    numbers = isinstance(found, float | int) and isinstance(expected, float | int)
    if numbers and (isinstance(found, float) or isinstance(expected, float)):
        is_near = math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
        return [] if is_near else [f"{at}: {found!r}, but was {expected!r}"]
    if isinstance(found, dict) and isinstance(expected, dict):
        if list(found) != list(expected):
            return [f"{at}: keys {list(found)}, but were {list(expected)}"]
        pairs = [(name, found[name], expected[name]) for name in found]
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{at}: {len(found)} items, but were {len(expected)}"]
        pairs = [(str(i), *both) for i, both in enumerate(zip(found, expected, strict=True))]
    else:
        is_same = type(found) is type(expected) and found == expected
        return [] if is_same else [f"{at}: {found!r}, but was {expected!r}"]
    return [
        line
        for name, one, other in pairs
        for line in differences(one, other, tolerance=tolerance, at=f"{at}.{name}")
    ]


def journal_differences(found: Sequence[Line], expected: Sequence[Line]) -> list[str]:
    """Return the first differences of two journals, and differing numbers of events.

    `fitted` events are compared separately, because their position and so the ids may change.
    """
    different: list[str] = []
    for name, tolerance in (("fitted", LOOSE), ("others", TOLERANCE)):
        ours, theirs = (_part(lines, fitted=name == "fitted") for lines in (found, expected))
        for i, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            differ = differences(one, other, tolerance=tolerance, at=f"{name} {i} ({other[-2]})")
            different += differ
            if differ:
                break
        if len(ours) != len(theirs):
            different.append(f"{name}: {len(ours)} events, but were {len(theirs)}")
    return different


def _part(lines: Sequence[Line], *, fitted: bool) -> list[Line]:
    """Return the `fitted` events without their times, or all others."""
    if fitted:
        return [[kind, body] for _, _, kind, body in lines if kind == "fitted"]
    return [
        [time, kind, _without_versions(body) if kind == "created" else body]
        for _, time, kind, body in lines
        if kind != "fitted"
    ]


def _without_versions(body: dict[str, Any]) -> dict[str, Any]:
    facts = {name: value for name, value in body["facts"].items() if name not in VERSIONS}
    return {**body, "facts": facts}
