"""Draw a dataset: token counts, class balance and a sample of each modality."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sftsearch.datasets.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from sftsearch.datasets.samples import Split
    from sftsearch.datasets.store import Store

_SHOWN_CLASSES = 40


def draw(store: Store, file: Path) -> None:
    """Draw the training split of a store into a PNG file; needs no display.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, split = list(store.spec.modalities), store.split("train")
    rows = len(names) + 1
    figure = Figure(figsize=(11, 2.3 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 2, squeeze=False)
    _draw_labels(grid[0][0], store, split)
    grid[0][1].axis("off")
    grid[0][1].text(0, 0.9, _describe(store), va="top", fontsize=9, family="monospace", wrap=True)
    for axes, name in zip(grid[1:], names, strict=True):
        _draw_lengths(axes[0], store, split, name)
        _draw_sample(axes[1], split, name)
    try:
        figure.savefig(file, format="png")
    except OSError as error:
        raise UserError(f"Cannot write the picture {file}: {error.strerror}.") from error


def _describe(store: Store) -> str:
    spec = store.spec
    counts = ", ".join(f"{split} {number}" for split, number in spec.num_samples.items())
    return f"{spec.name}: {spec.task}\n{counts}\nlicense: {spec.licence}".replace("$", r"\$")


def _draw_labels(axes: Axes, store: Store, split: Split) -> None:
    if store.spec.task == "regression":
        axes.hist(split.labels, bins=40, color="#4e79a7")
        axes.set_title("labels, train", loc="left", fontsize=9)
        return
    counts = store.class_counts["train"][:_SHOWN_CLASSES]
    classes = [name.replace("$", r"\$")[:18] for name in store.spec.classes[:_SHOWN_CLASSES]]
    axes.bar(range(len(counts)), counts, color="#4e79a7")
    axes.set_xticks(range(len(counts)), classes, rotation=60, ha="right", fontsize=7)
    more = store.spec.num_classes - len(counts)
    title = "samples of each class, train" + (f" (and {more} more classes)" if more > 0 else "")
    axes.set_title(title, loc="left", fontsize=9)


def _draw_lengths(axes: Axes, store: Store, split: Split, name: str) -> None:
    shape = store.spec.modalities[name]
    lengths = split.lengths.get(name)
    if lengths is None:
        lengths = np.full(len(split), shape.num_tokens)
    missing = int((lengths == 0).sum())
    limits = (-0.5, shape.num_tokens + 0.5)
    axes.hist(lengths, bins=min(40, shape.num_tokens + 1), range=limits, color="#4f9d55")
    title = f"{name}: tokens per sample, {shape.num_features} features"
    axes.set_title(
        title + (f"; missing in {missing} samples" if missing else ""), loc="left", fontsize=9
    )


def _draw_sample(axes: Axes, split: Split, name: str) -> None:
    """Draw the first sample that has the modality: lines for up to three features, else a map."""
    lengths = split.lengths.get(name)
    number = 0 if lengths is None else int(np.argmax(lengths > 0))
    count = split.modalities[name].shape[1] if lengths is None else int(lengths[number])
    x_TF = split.modalities[name][np.array([number])][0][:count]
    if x_TF.shape[1] <= 3:
        axes.plot(x_TF, linewidth=0.9)
    else:
        axes.imshow(x_TF.T, aspect="auto", origin="lower", interpolation="nearest")
    axes.set_title(f"{name}: sample {number}, feature over token", loc="left", fontsize=9)
