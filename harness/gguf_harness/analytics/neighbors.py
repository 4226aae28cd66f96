"""Nearest neighbors of every point, in blocks: memory is bounded for any number of points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.analytics.points import Metric, Points, open_points, read_rows
from gguf_harness.errors import AnalyticsError, NoData
from gguf_harness.metrics.kernels.nearest import Nearest

__all__ = ["BlockPlan", "find_neighbors", "plan_blocks"]

_CHUNK: Final = 256
"""Rows that each thread of scikit-learn processes at a time, as float64
(sklearn.metrics._pairwise_distances_reduction).
"""

_LEAST_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Number of rows in memory at a time, and the most memory they take.

    Attributes:
        rows: of a block; two blocks are in memory, one of queries and one of candidates.
        bytes: most additional memory of the search.
    """

    rows: int
    bytes: int


def plan_blocks(queries: int, d: int, k: int, itemsize: int, threads: int, limit: int) -> BlockPlan:
    """Blocks within a memory limit, or the smallest ones if that is not possible.

    With r rows in a block, s bytes in a number and t threads:

        4 r d s          two blocks, the mapped pages that the second is copied from, and memory for scaling
        8 r d            checks for NaN, and scikit-learn's norms
        t (4096 d + 2^19)   scikit-learn's chunks of 256 rows: both sides as float64, and their distances
        64 r (k + 1)     candidates of a block and of those before it, during sorting
        48 q k           indices and distances of all q queries, three times: stored, packed and sent

    Args:
        queries: points whose neighbors are sought.
        d: features.
        k: neighbors.
        itemsize: bytes of a number.
        threads: most threads.
        limit: bytes.
    """
    fixed = threads * (16 * _CHUNK * d + 8 * _CHUNK * _CHUNK) + 48 * queries * k
    per_row = 4 * d * itemsize + 8 * d + 64 * (k + 1)
    rows = max(_LEAST_ROWS, (limit - fixed) // per_row)
    return BlockPlan(rows, fixed + rows * per_row)


def find_neighbors(
    points: Points,
    rows: NDArray[np.int64],
    k: int,
    metric: Metric,
    plan: BlockPlan,
    step: Callable[[int, int], None],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest other points of some points, by brute force.

    Args:
        points: [n, d].
        rows: [m], the query points.
        k: neighbors, less than n.
        metric: cosine distances are 1 - cos, from 0 to 2.
        plan: from `plan_blocks`.
        step: told (done, total).

    Returns:
        (indices [m, k], distances [m, k]), nearest first, ties by row.

    Raises:
        AnalyticsError: more neighbors than points, or invalid rows.
        NoData: a single point; points that are not finite; with cosine, points that are zero.
    """
    n = len(open_points(points))
    if n == 1:
        raise NoData("A single point has no neighbors.", "Give more points.")
    if not 1 <= k < n:
        raise AnalyticsError(f"{n} points do not have {k} neighbors each.", f"Give from 1 to {n - 1}.")
    if rows.ndim != 1 or len(rows) == 0 or rows.min() < 0 or rows.max() >= n:
        raise AnalyticsError(f"Rows of {n} points must be a list of numbers from 0 to {n - 1}.", "Give those.")
    indices = np.empty((len(rows), k), dtype=np.int64)
    distances = np.empty((len(rows), k))
    starts = range(0, len(rows), plan.rows)
    blocks = -(-n // plan.rows)
    for number, start in enumerate(starts):
        own = rows[start : start + plan.rows]
        nearest = Nearest(len(own), k, np.float64)
        queries = np.concatenate([read_rows(points, a, b, metric) for a, b in _runs(own)])
        for block in range(blocks):
            step(number * blocks + block, len(starts) * blocks)
            first = block * plan.rows
            near, far = _search(queries, read_rows(points, first, min(n, first + plan.rows), metric), k + 1)
            # A point is not its own neighbor, even with ties.
            nearest.add(near + first, np.where(near + first == own[:, None], np.inf, far))
        indices[start : start + plan.rows], distances[start : start + plan.rows] = nearest.rows, nearest.distances
    if not np.isfinite(distances).all():
        raise NoData("Distances of these points are not finite: their numbers are too large.", "Scale them.")
    # For unit vectors: |a - b|^2 = 2 (1 - cos).
    return indices, distances**2 / 2 if metric == "cosine" else distances


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive rows, as (first, row after the last), each read at once."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    for run in np.split(rows, ends):
        yield int(run[0]), int(run[-1]) + 1


def _search(
    queries: NDArray[np.floating], block: NDArray[np.floating], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(k, len(block)), algorithm="brute", metric="euclidean").fit(block)
    distances, indices = search.kneighbors(queries)
    return np.asarray(indices, dtype=np.int64), np.asarray(distances, dtype=np.float64)
