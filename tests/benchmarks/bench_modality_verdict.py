"""Measure how often the verdict on a modality is right, on sets where the truth is known.

Each study is a real one: the search proposes configurations, tiny models are trained on invented
samples, early stopping stops some, and the analysis reads the journal. In the set `noise` a
modality has no information, but as many numbers as the others together, so small models overfit
it: it should be left out. In the set `needed` one of two bits of the class is shown by one modality
alone: it should be kept. Samples, splits and search differ by seed.

Run with `python -P tests/benchmarks/bench_modality_verdict.py`, about ten seconds of one core per
study; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from sftsearch.datasets.catalog import describe, open_dataset
from sftsearch.datasets.samples import Split
from sftsearch.datasets.spec import SPLITS, DatasetSpec, ModalitySpec
from sftsearch.datasets.writer import write_store
from sftsearch.orchestrator.analysis.analyse import analyse
from sftsearch.orchestrator.candidates.admission import Admission
from sftsearch.orchestrator.candidates.binding import bind, parameter_names
from sftsearch.orchestrator.search.engine import Search
from sftsearch.orchestrator.search.state import StudyState, record_of
from sftsearch.orchestrator.storage.events import Created, Opened
from sftsearch.orchestrator.storage.journal import MemoryJournal
from sftsearch.search_spaces.load import parse_study
from sftsearch.trainables.catalog import build_model
from sftsearch.trainables.fit import Fit

if TYPE_CHECKING:
    from sftsearch.orchestrator.analysis.modalities import ModalityVerdict
    from sftsearch.orchestrator.search.engine import TrialSuggestion
    from sftsearch.orchestrator.storage.study_record import StudyRecord

JUDGED = "depth"
"""The modality whose verdict is known."""
TRUTH = {"noise": "leave out", "needed": "keep"}
MODALITIES = {
    "wrist": ModalitySpec(num_tokens=6, num_features=4),
    "chest": ModalitySpec(num_tokens=6, num_features=4),
    JUDGED: ModalitySpec(num_tokens=24, num_features=16),
}
SIZES = {"train": 80, "validation": 320, "test": 8}
NUM_SUBJECTS = {"train": 4, "validation": 4, "test": 1}
AMPLITUDE = 0.6
"""Mean of a number that shows a bit; its noise has standard deviation 1."""
STUDY: dict[str, Any] = {
    "search": {
        "trials": 28,
        "sampler": {"kind": "ehvi"},
        "early_stopping": {"kind": "dominated"},
    },
    "training": {"epochs": 10, "batch_size": 27},
    "space": {
        "shared": {
            "modalities": {
                "kind": "choice",
                "values": [
                    ["wrist", "chest", JUDGED], ["wrist", "chest"], ["wrist", JUDGED],
                    ["chest", JUDGED], ["wrist"], [JUDGED],
                ],
            },
            "num_heads": 2,
            "dim": {"kind": "choice", "values": [8, 16]},
            "num_layers": {"kind": "choice", "values": [1, 2]},
            "learning_rate": {"kind": "choice", "values": [0.01, 0.02]},
        },
        "models": [{"kind": "concat"}, {"kind": "late_fusion"}],
    },
}  # fmt: skip


def write_dataset(folder: Path, name: str, seed: int) -> None:
    """Write the store of a set, `noise` or `needed`."""
    random = np.random.default_rng([seed, len(name)])
    spec = DatasetSpec(
        name=name,
        modalities=MODALITIES,
        classes=("a", "b", "c", "d"),
        num_samples=SIZES,
        subjects={s: tuple(f"{s}{i}" for i in range(n)) for s, n in NUM_SUBJECTS.items()},
        licence="Apache-2.0",
        attribution="Generated for a benchmark.",
        source="tests/benchmarks/bench_modality_verdict.py",
        description="Invented samples.",
        fingerprint=f"{seed:062x}{len(name):02x}",
    )
    splits = {split: _draw(split, name, random) for split in SPLITS}
    write_store(folder / name, spec, splits)


def _draw(split: str, name: str, random: np.random.Generator) -> Split:
    """Draw samples: the first bit is in `wrist`, the second in `chest`, or in the judged one."""
    size = SIZES[split]
    bits_NB = random.integers(2, size=(size, 2))
    subjects = np.sort(np.arange(size) % NUM_SUBJECTS[split])
    shown = {"wrist": 0, "chest": 0, JUDGED: 1} if name == "needed" else {"wrist": 0, "chest": 1}
    modalities = {}
    for number, (modality, shape) in enumerate(MODALITIES.items()):
        x_NTF = random.normal(size=(size, shape.num_tokens, shape.num_features))
        # People differ: every number of a modality is shifted by the same amounts for a person.
        x_NTF += random.normal(0, 0.3, (NUM_SUBJECTS[split], 1, shape.num_features))[subjects]
        if modality in shown:
            signs_N = 2 * bits_NB[:, shown[modality]] - 1
            x_NTF[..., number % 2] += AMPLITUDE * signs_N[:, None]
        modalities[modality] = x_NTF.astype(np.float32)
    labels = 2 * bits_NB[:, 0] + bits_NB[:, 1]
    return Split(split, modalities, labels, subjects.astype(np.int64))


class RealTraining:
    """Runs the trials of a study in this process, one after another."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        study = {"study": {"name": name}, "dataset": {"kind": name, "root": str(folder)}, **STUDY}
        study["search"] = {**study["search"], "sampler": {"kind": "ehvi", "seed": seed}}
        text = yaml.safe_dump(study, sort_keys=False).encode()
        self._source = parse_study(text, parameter_names)
        self._spec = describe(name, root=str(folder))
        self._admission = Admission(self._source, self._spec)
        self._store = open_dataset(name, root=str(folder))
        self._journal = MemoryJournal(clock=time.time)
        self._journal.append(
            Created(
                name=name,
                description="",
                dataset=name,
                root=str(folder),
                num_seeds=1,
                objectives=[["top1", "maximize"], ["gflops", "minimize"]],
                facts={"fingerprint": self._spec.fingerprint},
            )
        )

    def run(self) -> StudyRecord:
        """Run the study to its end and return its record."""
        plan = self._source.study
        self._journal.append(Opened(plan.search.trials, 1))
        search = Search(plan, self._journal, self._admission, max_concurrent_trials=1)
        while (suggestion := search.propose()) is not None:
            self._train(search, suggestion)
        search.conclude()
        search.close()
        return record_of(StudyState.of(self._journal.entries()))

    def _train(self, search: Search, suggestion: TrialSuggestion) -> None:
        training = self._source.study.training
        bound = bind(suggestion.model, suggestion.parameters, training, self._spec)
        model = build_model(suggestion.model, self._spec, bound.model_config, suggestion.seed)
        fit = Fit(model, self._store, bound.train_config, seed=suggestion.seed)
        while not fit.done:
            metrics = fit.run_epoch()
            if not search.report(suggestion.key, metrics, is_last=fit.done):
                return
        search.finish(suggestion.key, fit.result() | suggestion.cost, fit.groups())


def judge(name: str, seed: int) -> tuple[dict[str, ModalityVerdict], StudyRecord]:
    """Run a study of a set and return the verdicts by modality."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), name, seed)
        record = RealTraining(name, Path(folder), seed).run()
        return {one.modality: one for one in analyse(record).modalities}, record


def main() -> None:
    """Judge both sets with every seed; print each verdict and how many are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--sets", nargs="*", choices=[*TRUTH], default=[*TRUTH])
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    found: dict[str, Any] = {}
    for name in options.sets:
        advice: Counter[str] = Counter()
        for seed in range(options.first, options.first + options.seeds):
            verdicts, record = judge(name, seed)
            own = verdicts.get(JUDGED)
            advice[own.advice if own else "none"] += 1
            stopped = sum(t.status == "stopped" for t in record.trials)
            shown = "no verdict"
            if own:
                low, high = own.interval
                shown = f"{own.advice}: {100 * own.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            print(f"{name} {seed}: {shown}; {stopped} stopped", flush=True)
        found[name] = {"right": advice[TRUTH[name]], "of": options.seeds, **advice}
    number = len(options.sets) * options.seeds
    found["cpu_seconds_per_study"] = round((time.process_time() - start) / number, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
