"""Expected hypervolume improvement (EHVI): accuracy is uncertain, costs are known exactly.

The front is stored as a staircase: the best value (higher is better) affordable at each cost
vector. Each cost is log-scaled to u in [0, 1], so that equal ratios count equally.

Shapes: N points of a front, M candidates, C costs, J steps of a staircase along one cost.
Numpy and scipy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr  # type: ignore[import-untyped]

from sftsearch.orchestrator.pareto import non_dominated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]


_BLOCK = 4096  # candidates per block, so that the arrays fit in a core's cache


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Staircase:
    """The best value affordable at each cost vector of [0, 1]^C."""

    edges: tuple[Floats, ...]
    """Step bounds of each cost, ascending from 0 to 1, (J_c + 1,)."""
    levels: Floats
    """The best value on each cell of the grid, (J_1, ..., J_C)."""


def staircase(u_NC: ArrayLike, values_N: ArrayLike, *, floor: float) -> Staircase:
    """Return the best value affordable at each cost vector, or `floor` where nothing is affordable.

    Args:
        u_NC: scaled costs, (N, C), or (N,) for one cost; points that cost 1 or more are ignored.
        values_N: higher is better, (N,); dominated and duplicate points change nothing.
        floor: the value without any model, such as chance.

    Raises:
        ValueError: a value is NaN.
    """
    u_NC = _to_columns(u_NC).clip(min=0.0)
    values_N = np.asarray(values_N, dtype=float)
    directions = ["minimize"] * u_NC.shape[1] + ["maximize"]
    useful_N = np.all(u_NC < 1, axis=1) & ~(values_N <= floor)
    points = np.column_stack([u_NC, values_N])[useful_N]
    points = points[non_dominated(points, directions)]
    edges = tuple(np.unique([0.0, *u_N, 1.0]) for u_N in points[:, :-1].T)
    levels = np.full([len(each) - 1 for each in edges], float(floor))
    for *u_C, value in points:
        affordable = tuple(
            slice(int(np.searchsorted(each, u)), None) for each, u in zip(edges, u_C, strict=True)
        )
        np.maximum(levels[affordable], value, out=levels[affordable])
    return Staircase(edges=edges, levels=levels)


def expected_improvement(
    u_MC: ArrayLike, mu_M: ArrayLike, sd_M: ArrayLike, stairs: Staircase
) -> Floats:
    """Return the hypervolume that each candidate is expected to add to the staircase, (M,).

    This is the integral, over the cost vectors in [0, 1]^C that afford the candidate, of the
    expected excess of its value over the best affordable one. For one cost it is

        sum_j max(0, u_{j+1} - max(u_j, u)) [(mu - v_j) Phi(z_j) + sd phi(z_j)],
        z_j = (mu - v_j) / sd,

    summed over the steps of height v_j on [u_j, u_{j+1}). With sd 0 it is the exact gain in
    hypervolume.

    Args:
        u_MC: scaled costs, (M, C), or (M,) for one cost; values below 0 count as 0.
        mu_M: expected value, (M,) or a scalar.
        sd_M: its standard deviation, (M,) or a scalar; may be 0.
        stairs: from `staircase`.

    Source: Emmerich, Giannakoglou and Naujoks 2006, "Single- and multiobjective evolutionary
    optimization assisted by Gaussian random field metamodels", with all costs exact.
    """
    u_MC = _to_columns(u_MC)
    mu_M, sd_M = (np.broadcast_to(np.asarray(v, dtype=float), len(u_MC)) for v in (mu_M, sd_M))
    if u_MC.shape[1] == 1 and np.all(sd_M > 0):
        return _one_cost(u_MC.clip(min=0.0), mu_M, sd_M, stairs)
    index_KM, weight_KM = _corners(u_MC, stairs.edges)
    gain_M = np.zeros(len(u_MC))
    for level, volume in _tails(stairs):
        for i in range(0, len(u_MC), _BLOCK):
            block = slice(i, i + _BLOCK)
            volume_M = np.sum(weight_KM[:, block] * volume[index_KM[:, block]], axis=0)
            (met,) = np.nonzero(volume_M)
            excess_M = expected_excess(mu_M[block][met] - level, sd_M[block][met])
            gain_M[i + met] += volume_M[met] * excess_M
    return gain_M


def _one_cost(u_M1: Floats, mu_M: Floats, sd_M: Floats, stairs: Staircase) -> Floats:
    """Return `expected_improvement` for one cost and sd > 0, vectorized over all steps."""
    (edges,), gain_M = stairs.edges, np.empty(len(u_M1))
    for i in range(0, len(u_M1), _BLOCK):
        block = slice(i, i + _BLOCK)
        width_MJ = (edges[1:] - np.maximum(edges[:-1], u_M1[block])).clip(min=0.0)
        z_MJ = (mu_M[block, None] - stairs.levels) / sd_M[block, None]
        excess_MJ = np.exp(-0.5 * z_MJ**2) / math.sqrt(2 * math.pi) + z_MJ * ndtr(z_MJ)
        # For z far below 0 the two terms cancel to a rounding error of either sign.
        gain_M[block] = sd_M[block] * np.sum(width_MJ * excess_MJ.clip(min=0.0), axis=1)
    return gain_M


def expected_excess(lead: Floats, sd: Floats) -> Floats:
    """Return E max(0, Y) elementwise for Y normal with mean `lead`; exact for sd 0."""
    certain = sd < 1e-100  # a smaller sd would overflow the squared ratio
    z = np.maximum(lead / np.where(certain, 1.0, sd), -1e8)  # finite even if `lead` is -inf
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    # Far below 0 the terms cancel only by a factor of z^2, which is under 1500 until both are 0:
    # the result is never negative.
    return np.where(certain, np.maximum(lead, 0.0), sd * (density + z * ndtr(z)))


def _tails(stairs: Staircase) -> Iterator[tuple[float, Floats]]:
    """Yield each level and, for each corner of the grid, the volume of that level beyond it.

    The volumes are a flat array of shape (J_1 + 1, ..., J_C + 1) in C order with every axis
    reversed. The next level overwrites them.
    """
    tails = np.zeros([len(each) for each in stairs.edges])
    inner = tails[(slice(1, None),) * tails.ndim]
    sizes = np.ones(())
    for each in stairs.edges:
        sizes = np.multiply.outer(sizes, np.diff(each)[::-1])
    levels = np.flip(stairs.levels)
    for level in np.unique(levels):
        np.multiply(sizes, levels == level, out=inner)
        for axis in range(inner.ndim):
            np.cumsum(inner, axis=axis, out=inner)
        yield float(level), tails.ravel()


def _corners(u_MC: Floats, edges: tuple[Floats, ...]) -> tuple[Indices, Floats]:
    """Return index in `_tails` and weight of each corner of a candidate's cell, each (2^C, M).

    Within a cell the volume of a level beyond u is linear in each cost. Interpolating between the
    2^C corners is therefore exact, and its time does not depend on the number of steps.
    """
    indices, weights = np.zeros((1, len(u_MC)), dtype=np.intp), np.ones((1, len(u_MC)))
    for u_M, each in zip(u_MC.clip(0.0, 1.0).T, edges, strict=True):
        num_steps = len(each) - 1
        cell_M = (np.searchsorted(each, u_M, side="right") - 1).clip(max=num_steps - 1)
        share_M = (u_M - each[cell_M]) / np.diff(each)[cell_M]
        behind_M = indices * (num_steps + 1) + num_steps - cell_M
        indices = np.concatenate([behind_M, behind_M - 1])
        weights = np.concatenate([weights * (1 - share_M), weights * share_M])
    return indices, weights


def _to_columns(u_NC: ArrayLike) -> Floats:
    """Return scaled costs as (N, C); a vector holds one cost."""
    u_NC = np.asarray(u_NC, dtype=float)
    return u_NC[:, None] if u_NC.ndim == 1 else u_NC
