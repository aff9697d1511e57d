"""Predict the samples of an .npz file with an exported model: `python predict.py sample.npz`.

Needs numpy and onnxruntime alone.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Model = dict[str, Any]  # the content of `model.json`


def read_model(folder: Path) -> Model:
    """Compare the checksums of all files, and return `model.json`."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split("  ", 1)
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise SystemExit(f"{name} is not the exported file: its checksum differs.")
    model: Model = json.loads((folder / "model.json").read_text())
    return model


def open_graphs(folder: Path) -> Callable[[str, dict[str, Array]], Array]:
    """Return a function that runs a graph, by name, on inputs by name."""
    from onnxruntime import InferenceSession

    open_graph = cache(lambda name: InferenceSession(folder / f"{name}.onnx"))

    def run(name: str, inputs: dict[str, Array]) -> Array:
        used = [one.name for one in open_graph(name).get_inputs()]
        outputs: list[Array] = open_graph(name).run(None, {one: inputs[one] for one in used})
        return outputs[0]

    return run


def predict(
    model: Model, run: Callable[[str, dict[str, Array]], Array], inputs: dict[str, Array]
) -> Array:
    """Return the scores of samples, (B, C): each runs through its own route of each member."""
    found = []
    size = len(inputs[model["inputs"][0]["name"]])
    for member in model["members"]:
        routes = run(member["gate"], inputs) if member["gate"] else np.zeros(size, np.int64)
        scores = np.empty((size, model["num_outputs"]), np.float32)
        for route in np.unique(routes):
            rows = routes == route
            scores[rows] = run(member["routes"][route], {k: x[rows] for k, x in inputs.items()})
        found.append(scores)
    mean: Array = np.mean(found, axis=0)
    return mean


def describe(model: Model, scores: Array) -> str:
    """Return the prediction of one sample from its scores, (C,)."""
    if model["task"] == "regression":
        return f"{scores[0]:.6g}"
    likely = np.flatnonzero(scores >= 0.5).tolist()
    best = [int(scores.argmax())] if model["task"] == "classification" else likely
    return ", ".join(f"{model['classes'][i]} {scores[i]:.3f}" for i in best) or "(no label)"


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "sample.npz")
    model = read_model(here)
    samples = dict(np.load(file if file.exists() else here / file))
    for number, scores in enumerate(predict(model, open_graphs(here), samples)):
        print(number, describe(model, scores), sep="\t")
