"""A small space of two models, and a parameter that makes it too large to enumerate."""

from __future__ import annotations

SPACE = """\
space:
  - kind: sft
    patch: 8
    num_heads: 4
    dim: {kind: choice, values: [8, 16]}
    stride: {kind: choice, values: [1, 4, 16]}
    fused_layers: {kind: int, low: 1, high: 2}
  - kind: late_fusion
    patch: 8
    num_heads: 2
    num_layers: {kind: int, low: 1, high: 4}
    dim: 8
"""
LARGE = "    learning_rate: {kind: float, low: 1e-4, high: 1e-2, log: true}\n"
