"""Nearest neighbours by cosine, exact and in blocks; how many of them two spaces share; intrinsic dimension.

Memory for q queries of d numbers against keys that come in blocks of b rows: 4 (2 q d + 5 b d + 5 q b) bytes, and some
20 q k for k neighbours, whatever the number of keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import iid_se

__all__ = [
    "Block",
    "Neighbours",
    "directions",
    "estimate_intrinsic_dimension",
    "nearest_by_cosine",
    "neighbour_recall",
    "row_blocks",
]

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

Block = tuple[int, Float32]
"""(index of the first row, [rows, d]): consecutive rows of a matrix."""

_SAME_ROW: Final = 1e-3
"""Chords below this are rounding: cosines in float32 tell them apart from 1 no better than to 1e-7."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of each query, nearest first.

    Attributes:
        rows: [queries, k] indices of rows.
        cosines: [queries, k] float32.
    """

    rows: Ints
    cosines: Float32


def row_blocks(matrix: Float32, size: int = 4096) -> Iterator[Block]:
    """A matrix in memory as blocks of rows."""
    for start in range(0, len(matrix), size):
        yield start, matrix[start : start + size]


def directions(rows: Float32) -> tuple[Float32, NDArray[np.bool_]]:
    """Rows scaled to unit length, and which of them have a direction at all: neither zero nor without a number.

    Args:
        rows: [n, d].

    Returns:
        ([n, d] float32, zero where there is no direction; [n]).
    """
    # Of each row its own scale first: squares neither overflow nor vanish.
    with np.errstate(invalid="ignore"):
        largest = np.abs(rows).max(axis=1, keepdims=True) if rows.shape[1] else np.zeros((len(rows), 1), np.float32)
        valid = np.asarray(np.isfinite(largest) & (largest > 0))
        scaled = np.where(valid, rows / np.where(valid, largest, 1), 0).astype(np.float32, copy=False)
    norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    return np.divide(scaled, np.where(norms > 0, norms, 1), dtype=np.float32), valid[:, 0]


def nearest_by_cosine(queries: Float32, keys: Iterable[Block], k: int, own: Ints | None = None) -> Neighbours:
    """The k keys of greatest cosine for each query: exact, but for rounding in float32.

    Which of several equally near keys comes in is not defined, but is the same for the same keys in the same blocks.
    Keys without a direction (zero rows, which vocabularies have for tokens that nobody uses) are nobody's neighbours.

    Args:
        queries: [q, d] float32.
        keys: blocks of [rows, d]; each is let go before the next one is asked for.
        k: neighbours to find.
        own: [q] row of each query among the keys, which is not its own neighbour; None where queries are not keys.

    Raises:
        NoData: no queries, a query without a direction, or fewer than k neighbours for some query.
    """
    units, valid = directions(queries)
    if not len(queries) or not valid.all():
        raise NoData(f"Neighbours: {len(queries)} queries, {int((~valid).sum())} of them without a direction.")
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for start, block in keys:
        cosines, exists = _cosines(units, block)
        cosines[:, ~exists] = -np.inf
        if own is not None:
            inside = (own >= start) & (own < start + len(block))
            cosines[inside, own[inside] - start] = -np.inf
        best, rows = _merge(best, rows, cosines, start, k)
    if not np.isfinite(best).all():
        raise NoData(f"Neighbours: some query has fewer than {k} neighbours.", "Ask for fewer.")
    return Neighbours(rows, np.clip(best, -1, 1))


def _cosines(units: Float32, block: Float32) -> tuple[Float32, NDArray[np.bool_]]:
    keys, exists = directions(block)
    return units @ keys.T, exists


def _merge(best: Float32, rows: Ints, cosines: Float32, start: int, k: int) -> tuple[Float32, Ints]:
    """The best k of those so far and of a block, in falling order."""
    near = np.argpartition(-cosines, k - 1, axis=1)[:, :k] if cosines.shape[1] > k else None
    found = np.take_along_axis(cosines, near, axis=1) if near is not None else cosines
    where = (near if near is not None else np.broadcast_to(np.arange(cosines.shape[1]), cosines.shape)) + start
    both, both_rows = np.concatenate([best, found], axis=1), np.concatenate([rows, where], axis=1)
    # Stable in the row: of equals the first row comes first.
    order = np.lexsort((both_rows, -both), axis=1)[:, :k]
    return np.take_along_axis(both, order, axis=1), np.take_along_axis(both_rows, order, axis=1)


def neighbour_recall(candidate: Ints, reference: Ints, metric: str = "neighbour_recall") -> Estimate:
    """Recall@k: the share of a query's k nearest rows in the reference that are among its k nearest in the candidate.

    Averaged over queries, which are a random sample: their standard error says how well all queries are known. It is
    symmetric, since both sides have k; Jégou et al. (2011), Product Quantization for Nearest Neighbor Search, measure
    quantized vectors by a recall like this one.

    Args:
        candidate: [queries, k] rows.
        reference: [queries, k] rows, for the same queries.
        metric: name of the estimate.

    Raises:
        NoData: no queries or no neighbours.
    """
    if candidate.shape != reference.shape:
        raise ValueError(f"Neighbours of different shape: {candidate.shape} and {reference.shape}")
    if candidate.size == 0:
        raise NoData(f"{metric}: there are no neighbours to compare.")
    shared = (candidate[:, :, None] == reference[:, None, :]).any(axis=2).mean(axis=1)
    return Estimate(metric, float(shared.mean()), len(shared), iid_se(shared[None, :]))


def estimate_intrinsic_dimension(cosines: Float32, metric: str = "embedding_intrinsic_dimension") -> Estimate:
    """Intrinsic dimension by TwoNN, of directions: rows scaled to unit length.

    Facco et al. (2017), Estimating the intrinsic dimension of datasets by a minimal neighborhood information: where
    density is constant out to the second neighbour, the ratio mu of the distances to the second and first neighbour
    has the density d mu^-(d+1), whatever the density is. We take the unbiased form of its maximum likelihood,
    d = (n - 1) / sum(ln mu), whose standard error is d / sqrt(n - 2): ln mu is exponential and their sum is a Gamma
    variable (Denti et al., 2022, The generalized ratios intrinsic dimension estimator). Facco et al. fit a line to the
    same distribution instead. Distances are chords, sqrt(2 - 2 cos). Queries whose nearest neighbour is the same row
    once more say nothing and are left out. In many dimensions it is biased downwards where rows are few.

    Args:
        cosines: [queries, at least 2] of each query's nearest rows, nearest first.
        metric: name of the estimate.

    Raises:
        NoData: fewer than three queries with neighbours of their own.
    """
    chords = np.sqrt(np.maximum(0, 2 - 2 * cosines[:, :2].astype(np.float64)))
    chords = chords[chords[:, 0] > _SAME_ROW]
    total = float(np.log(chords[:, 1] / chords[:, 0]).sum())
    if len(chords) < 3 or not total > 0:
        raise NoData(f"{metric}: {len(chords)} rows have two neighbours of their own, expected at least 3.")
    value = (len(chords) - 1) / total
    return Estimate(metric, value, len(chords), value / math.sqrt(len(chords) - 2))
