"""Nearest neighbours, exact and in blocks.

Memory of `nearest_by_cosine` for q queries of d numbers against keys that come in blocks of b rows: 4 (2 q d + 5 b d +
5 q b) bytes, and some 20 q k for k neighbours, whatever the number of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.directions import directions

__all__ = ["Block", "Nearest", "Neighbours", "nearest_by_cosine", "row_blocks"]

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Float = TypeVar("Float", bound=np.floating[Any])

Block = tuple[int, Float32]
"""(index of the first row, [rows, d]): consecutive rows of a matrix."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of each query, nearest first.

    Attributes:
        rows: [queries, k] indices of rows.
        cosines: [queries, k] float32.
    """

    rows: Ints
    cosines: Float32


class Nearest(Generic[Float]):
    """The k nearest of the candidates so far, nearest first, ties by row.

    Args:
        queries: how many.
        k: number kept for each query; fewer while there are fewer candidates.
        dtype: of distances.

    Attributes:
        rows: [queries, up to k].
        distances: [queries, up to k].
    """

    def __init__(self, queries: int, k: int, dtype: type[Float]) -> None:
        self._k = k
        self.rows: Ints = np.empty((queries, 0), dtype=np.int64)
        self.distances: NDArray[Float] = np.empty((queries, 0), dtype=dtype)

    def add(self, rows: Ints, distances: NDArray[Float]) -> None:
        """Take candidates, [queries, c] each."""
        rows = np.concatenate([self.rows, rows], axis=1)
        distances = np.concatenate([self.distances, distances], axis=1)
        order = np.lexsort((rows, distances), axis=1)[:, : self._k]
        self.rows = np.take_along_axis(rows, order, axis=1)
        self.distances = np.take_along_axis(distances, order, axis=1)


def row_blocks(matrix: Float32, size: int = 4096) -> Iterator[Block]:
    """Yield a matrix in memory as blocks of rows."""
    for start in range(0, len(matrix), size):
        yield start, matrix[start : start + size]


def nearest_by_cosine(queries: Float32, keys: Iterable[Block], k: int, own: Ints | None = None) -> Neighbours:
    """The k keys of greatest cosine for each query: exact up to float32 rounding.

    Which of several equally near keys is chosen is not defined, but is the same for the same keys in the same blocks.
    Zero keys, such as those of unused tokens, are never neighbours.

    Args:
        queries: [q, d] float32.
        keys: blocks of [rows, d]; each is released before the next one is requested.
        k: neighbours to find.
        own: [q] row of each query among the keys, which is not its own neighbour; None if queries are not keys.

    Raises:
        NoData: no queries, a zero query, or fewer than k neighbours for some query.
    """
    units, valid = directions(queries)
    if not len(queries) or not valid.all():
        raise NoData(f"Neighbours: {len(queries)} queries, {int((~valid).sum())} of them without a direction.")
    nearest = Nearest(len(queries), k, np.float32)
    for start, block in keys:
        opposites = _opposites(units, block)
        if own is not None:
            inside = (own >= start) & (own < start + len(block))
            opposites[inside, own[inside] - start] = np.inf
        nearest.add(*_first(opposites, start, k))
    if nearest.rows.shape[1] < k or not np.isfinite(nearest.distances).all():
        raise NoData(f"Neighbours: some query has fewer than {k} neighbours.", "Ask for fewer.")
    return Neighbours(nearest.rows, np.clip(-nearest.distances, -1, 1))


def _opposites(units: Float32, block: Float32) -> Float32:
    """[q, rows] -cos, which grows with the distance; infinite for keys without a direction."""
    keys, exists = directions(block)
    opposites: Float32 = units @ keys.T
    np.negative(opposites, out=opposites)
    opposites[:, ~exists] = np.inf
    return opposites


def _first(distances: Float32, start: int, k: int) -> tuple[Ints, Float32]:
    """(rows, distances) of the k nearest of a block, in any order; of all of a smaller block."""
    if distances.shape[1] <= k:
        return np.broadcast_to(np.arange(distances.shape[1]), distances.shape) + start, distances
    near = np.argpartition(distances, k - 1, axis=1)[:, :k]
    return near + start, np.take_along_axis(distances, near, axis=1)
