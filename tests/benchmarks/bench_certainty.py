"""Measure the calibration of a search's probabilities and stops, on recorded tables.

Each study is simulated with one to five replicates. The true value of a configuration is the mean
of the recorded replicates that the study did not use, if there are at least ten; otherwise the
configuration is far from the front and the mean is over all. So the true values are noisy too, by
half a point for the best configurations.

- `front`: the probability of each tried configuration to be on the (epsilon, delta)-front: its
  Brier score, the Brier score of the mean, and the recalibration slope (1 is calibrated; below 1
  the probabilities are too extreme).
- `everywhere`: the probability that the reported front is within delta of the best tried
  configuration at every budget: its mean and how often it was true, for all studies and for those
  with at least 0.9; and the delta with probability 0.9, with how often it was enough (`coverage`).
- `stops`: how many trials that the rule `dominated` decided to stop, audited or not, would have
  ended above their threshold, with a Clopper-Pearson interval.
- `replicates`: how much worse the front is after `--share` of the training with one to five
  replicates than after all training with five each: paired differences of budget regret in points,
  with a 95 % bootstrap interval.

Run with `python -P tests/benchmarks/bench_certainty.py --tables FOLDER`, a folder of our tables
(`*.parquet`); the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` omits it
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from sftsearch.orchestrator.benchmark.simulator import simulate
from sftsearch.orchestrator.early_stopping.audits import Audit, false_stop_rate
from sftsearch.orchestrator.surrogate.fold_effects import additive_means
from sftsearch.orchestrator.surrogate.front_probability import (
    DELTA,
    front_probabilities,
    within_delta_everywhere,
)

from bench_search import WORKERS, posterior_front
from calibration import brier, recalibration_slope
from journals import raw
from search_tables import Case, own_case

if TYPE_CHECKING:
    from sftsearch.orchestrator.benchmark.simulator import Simulation
    from sftsearch.orchestrator.search.engine import Search

MIN_UNSEEN = 10
"""Unseen replicates that are enough for a true mean."""
WINDOW = 30
"""Configurations of similar mean that share an estimate of the noise."""
LEVEL = 0.9
"""Probability from which a study counts as sure."""


def judge_certainty(case: Case, repetition: int, trials: int) -> dict[str, Any]:
    """Return a study's probabilities of its front, and the true outcomes."""
    case.admission.release()
    source = case.source(
        sampler={"kind": "ehvi", "seed": repetition},
        replicates={"min": 1, "max": 5},
        trials=trials,
    )
    done = simulate(source, case.admission, case.table, workers=WORKERS, repetition=repetition)
    concluded = done.concluded
    ids = list(concluded["beliefs"])
    costs = np.array([case.table.costs["gflops"][case.row_of[i]] for i in ids])
    truth, errors = unseen_means(case, done, ids)
    draws = done.search.known.surrogate.draws(2000, seed=1)
    unsure = draws + np.random.default_rng(repetition).normal(0, errors, draws.shape)
    chosen = np.isin(ids, concluded["reported"])
    low = float(costs[chosen].min())
    deltas = [sure_delta(d, costs, chosen, low) for d in (draws, unsure)]
    enough = [
        within_delta_everywhere(truth[None], costs, chosen, low=low, delta=delta)
        for delta in deltas
    ]
    return {
        "within_delta": deltas[0],
        "within_is_enough": enough[0],
        "within_unseen_delta": deltas[1],
        "within_unseen_is_enough": enough[1],
        "probabilities": [concluded["beliefs"][i]["on_front"] for i in ids],
        "of_unseen": front_probabilities(unsure, costs).tolist(),
        "truths": front_probabilities(truth[None], costs).tolist(),
        "within": concluded["within_delta"],
        "within_unseen": within_delta_everywhere(unsure, costs, chosen, low=low),
        "is_within": within_delta_everywhere(truth[None], costs, chosen, low=low),
    }


def sure_delta(draws: np.ndarray, costs: np.ndarray, chosen: np.ndarray, low: float) -> float:
    """Return the smallest delta, to a tenth of a point, with a probability of `LEVEL`."""
    for delta in np.arange(1, 1000) / 1000:
        if within_delta_everywhere(draws, costs, chosen, low=low, delta=float(delta)) >= LEVEL:
            return float(delta)
    return 1.0


def unseen_means(case: Case, done: Simulation, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the replicates that a study did not use, and their errors, each (C,)."""
    recorded_NR = case.table.values("top1")
    values_NR = recorded_NR.copy()
    for key, replicate in done.replicates.items():
        values_NR[case.row_of[key.rpartition("-")[0]], replicate] = np.nan
    few = np.isfinite(values_NR).sum(axis=1) < MIN_UNSEEN
    values_NR[few] = recorded_NR[few]
    folds_R = np.arange(values_NR.shape[1]) % (case.table.num_folds or 1)
    fit = additive_means(values_NR, folds_R)
    rows = [case.row_of[i] for i in ids]
    errors_N = replicate_deviations(case, folds_R) / np.sqrt(fit.counts)
    return fit.means[rows], errors_N[rows]


def replicate_deviations(case: Case, folds_R: np.ndarray) -> np.ndarray:
    """Return the sd of each configuration's replicates, pooled over those of similar mean, (N,)."""
    values_NR = case.table.values("top1")
    fit = additive_means(values_NR, folds_R)
    squares_N = np.nansum((values_NR - fit.means[:, None] - fit.effects[folds_R]) ** 2, axis=1)
    order = np.argsort(fit.means)
    window = np.ones(WINDOW)
    squares = np.convolve(squares_N[order], window, mode="same")
    dof = np.convolve(fit.counts[order] - 1, window, mode="same")
    found = np.empty(len(order))
    found[order] = np.sqrt(squares / dof)
    return found


def judge_stops(case: Case, repetition: int, trials: int) -> dict[str, Any]:
    """Return the number of stops that a study decided, and of wrong ones."""
    case.admission.release()
    source = case.source(
        sampler={"kind": "ehvi", "seed": repetition},
        early_stopping={"kind": "dominated"},
        trials=trials,
    )
    done = simulate(source, case.admission, case.table, workers=WORKERS, repetition=repetition)
    values_NR = case.table.values("top1")
    decided = [
        Audit(
            event.body["trial"],
            event.body["epoch"],
            event.body["probability"],
            event.body["threshold"],
            final=float(
                values_NR[
                    case.row_of[event.body["trial"].rpartition("-")[0]],
                    done.replicates[event.body["trial"]],
                ]
            ),
        )
        for event in map(raw, done.journal.entries())
        if event.kind == "stopped" or (event.kind == "judged" and event.body["audit"])
    ]
    return {"decided": len(decided), "wrong": sum(audit.is_false for audit in decided)}


def judge_replicates(case: Case, repetition: int, trials: int, share: float) -> dict[str, Any]:
    """Return the regrets with five replicates, and with one to five after a share of the time."""
    fixed = regrets(case, repetition, trials - trials % 5, 5)
    seconds = share * fixed[-1][0]
    adaptive = regrets(case, repetition, trials, {"min": 1, "max": 5})
    before = [b for s, b in adaptive if s <= seconds]
    return {"fixed": fixed[-1][1], "adaptive": before[-1], "end": adaptive[-1]}


def regrets(
    case: Case, repetition: int, trials: int, replicates: int | dict[str, int]
) -> list[tuple[float, float]]:
    """Return the seconds of training and the regret in points after each trial of a study."""
    case.admission.release()
    source = case.source(
        sampler={"kind": "ehvi", "seed": repetition}, replicates=replicates, trials=trials
    )
    found: list[tuple[float, float]] = []

    def note(search: Search, now: float) -> None:
        front = posterior_front(case, search) if search.known.past.has_values else []
        found.append((WORKERS * now, 100 * case.regret(front)))

    simulate(
        source, case.admission, case.table, workers=WORKERS, repetition=repetition, on_end=note
    )
    return found


_CASES: dict[str, Case] = {}


def run_one(task: tuple[str, str, int, int, float]) -> dict[str, Any]:
    """Evaluate one study on one table; runs in a worker process."""
    path, part, repetition, trials, share = task
    if path not in _CASES:
        _CASES[path] = own_case(Path(path))
    if part == "certainty":
        return judge_certainty(_CASES[path], repetition, trials)
    if part == "stops":
        return judge_stops(_CASES[path], repetition, trials)
    return judge_replicates(_CASES[path], repetition, trials, share)


def sum_up(part: str, found: list[dict[str, Any]], share: float) -> dict[str, Any]:
    """Return the summary of one part for one table."""
    if part == "certainty":
        return {
            "front": _front(found, "probabilities"),
            "front_of_unseen": _front(found, "of_unseen"),
            "everywhere": _everywhere(found, "within"),
            "everywhere_of_unseen": _everywhere(found, "within_unseen"),
        }
    if part == "stops":
        decided, wrong = (sum(f[name] for f in found) for name in ("decided", "wrong"))
        audits = [Audit("", 1, None, 0.5, final=float(i < wrong)) for i in range(decided)]
        rate = false_stop_rate(audits)
        return {"stops": {**rate._asdict(), "wrong": wrong}}
    differences = np.array([f["adaptive"] - f["fixed"] for f in found])
    random = np.random.default_rng(0)
    draws = random.choice(differences, (4000, len(differences))).mean(axis=1)
    return {
        "replicates": {
            "share_of_training": share,
            "fixed": float(np.mean([f["fixed"] for f in found])),
            "adaptive": float(np.mean([f["adaptive"] for f in found])),
            "difference": float(differences.mean()),
            "interval": np.percentile(draws, [2.5, 97.5]).tolist(),
        }
    }


def _front(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    probabilities = np.concatenate([f[name] for f in found])
    truths = np.concatenate([f["truths"] for f in found]) > 0.5
    random, slopes = np.random.default_rng(0), []
    for _ in range(200):
        picks = [found[i] for i in random.integers(len(found), size=len(found))]
        slopes.append(
            recalibration_slope(
                np.concatenate([f[name] for f in picks]),
                np.concatenate([f["truths"] for f in picks]) > 0.5,
            )
        )
    return {
        "configurations": len(truths),
        "share_on_front": float(truths.mean()),
        "mean_probability": float(probabilities.mean()),
        "brier": brier(probabilities, truths),
        "brier_of_the_mean": float(truths.mean() * (1 - truths.mean())),
        "slope": recalibration_slope(probabilities, truths),
        "slope_interval": np.percentile(slopes, [2.5, 97.5]).tolist(),
        "bins": _bins(probabilities, truths),
    }


def _bins(probabilities: np.ndarray, truths: np.ndarray) -> list[list[float]]:
    """Return [mean probability, share of true cases, number] for ten bins of the probability."""
    tenth = np.minimum((10 * probabilities).astype(int), 9)
    return [
        [
            round(float(probabilities[tenth == t].mean()), 3),
            round(float(truths[tenth == t].mean()), 3),
            int((tenth == t).sum()),
        ]
        for t in range(10)
        if (tenth == t).any()
    ]


def _everywhere(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    probabilities = np.array([f[name] for f in found])
    true = np.array([f["is_within"] for f in found]) > 0.5
    sure = probabilities >= LEVEL
    return {
        "delta": DELTA,
        "mean_probability": float(probabilities.mean()),
        "share_true": float(true.mean()),
        "said_sure": int(sure.sum()),
        "true_of_sure": int(true[sure].sum()),
        "delta_of_level": float(np.mean([f[f"{name}_delta"] for f in found])),
        "coverage": float(np.mean([f[f"{name}_is_enough"] for f in found])),
    }


def main() -> None:
    """Evaluate studies on every table and print the summaries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of tables")
    parser.add_argument("--parts", nargs="*", default=["certainty", "stops", "replicates"])
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    start, result = time.perf_counter(), {}
    for file in sorted(options.tables.glob("*.parquet")):
        result[file.stem] = {}
        for part in options.parts:
            tasks = [
                (str(file), part, repetition, options.trials, options.share)
                for repetition in range(options.studies)
            ]
            with multiprocessing.get_context("fork").Pool(options.processes) as pool:
                found = sum_up(part, pool.map(run_one, tasks), options.share)
            result[file.stem] |= found
            print(file.stem, json.dumps(found, indent=1), flush=True)
    print(
        json.dumps(
            {"studies": options.studies, "trials": options.trials, **result}
            | {"wall_seconds": round(time.perf_counter() - start)}
        )
    )


if __name__ == "__main__":
    main()
