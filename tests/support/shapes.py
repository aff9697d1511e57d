"""Dataset specs of given shapes, without samples, and the fields of small models."""

from __future__ import annotations

from dataclasses import replace

from sftsearch.datasets.catalog import describe
from sftsearch.datasets.spec import DatasetSpec, ModalitySpec


def dataset_spec(num_classes: int, **shapes: tuple[int, int]) -> DatasetSpec:
    """Return the spec of a dataset whose modalities have these (tokens, features)."""
    modalities = {
        name: ModalitySpec(num_tokens=tokens, num_features=features)
        for name, (tokens, features) in shapes.items()
    }
    classes = tuple(f"class_{index}" for index in range(num_classes))
    return replace(describe("synthetic"), modalities=modalities, classes=classes)


VGGS = dataset_spec(100, rgb=(38, 1024), spec=(1200, 128), flow=(38, 1024))
MOSEI = dataset_spec(7, vision=(500, 35), audio=(500, 74), text=(50, 300))
VGGS_STRIDES = {"rgb": 3, "spec": 60, "flow": 3}
MOSEI_STRIDES = {"vision": 50, "audio": 50, "text": 2}
SMALL = {
    "num_layers": 2,
    "fusion_layer": 1,
    "unimodal_layers": 1,
    "fused_layers": 2,
    "crossmodal_layers": 2,
    "memory_layers": 1,
    "experts": ({"kind": "concat", "num_layers": 1}, {"kind": "late_fusion", "num_layers": 2}),
    "window": 4,  # of eight tokens, so that the pattern is sparse
}
"""Fields that make any model small; each takes the ones it has."""
OF_MSAF = {"segments": 2}
"""Further ones of models of MSAF; in other models `segments` is the number of tokens."""
