"""Points as inputs of tasks: an array, or a .npy file that is read in pieces; checked before use."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import AnalyticsError, NoData
from gguf_harness.metrics.kernels.directions import directions
from gguf_harness.store.arrays import map_array

__all__ = ["Metric", "Points", "count_distinct", "load_points", "open_points", "read_rows"]

Float = TypeVar("Float", bound=np.floating[Any])

Points = NDArray[np.generic] | Path
"""Points [n, d]: an array, or the path of a .npy file with one."""

Metric = Literal["euclidean", "cosine"]
"""Cosine: points are scaled to length one first; their Euclidean distances decrease with the cosine."""


def open_points(points: Points) -> NDArray[np.generic]:
    """The points; a file is memory-mapped instead of read.

    Returns:
        [n, d] of integers or floating-point numbers, n and d at least 1.

    Raises:
        AnalyticsError: not a .npy file, or not a matrix of numbers.
        NoData: no points, or no features.
    """
    array = points if isinstance(points, np.ndarray) else _map(points)
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise AnalyticsError(
            f"Points of shape {array.shape} and type {array.dtype}: expected a matrix of numbers, a row per point.",
            "Reshape or convert them.",
        )
    if array.size == 0:
        raise NoData(f"There are no points: their array has shape {array.shape}.")
    return array


def _map(path: Path) -> NDArray[np.generic]:
    try:
        return map_array(path)
    except (OSError, ValueError, EOFError) as error:
        raise AnalyticsError(
            f"{path} cannot be read as points: {error}.", "Give a .npy file with one array of numbers."
        ) from error


def read_rows(points: Points, start: int, stop: int, metric: Metric) -> NDArray[np.floating]:
    """A copy of some points, checked; a file is mapped only during the call.

    Args:
        points: [n, d].
        start: first row.
        stop: row after the last.
        metric: with cosine, rows are scaled to length one.

    Returns:
        [stop - start, d], float64 for float64 and integers, otherwise float32.

    Raises:
        NoData: numbers that are not finite; with cosine, points that are zero.
    """
    rows = open_points(points)[start:stop]
    wide = rows.dtype.kind in "iu" or rows.dtype.itemsize > 4
    block: NDArray[np.floating] = np.array(rows, dtype=np.float64 if wide else np.float32, order="C")
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        raise NoData(
            f"{_count(bad)} not finite, the first of them in row {start + int(np.argmax(bad))}.",
            "Leave out values that could not be measured.",
        )
    return _directions(block, start) if metric == "cosine" else block


def load_points(points: Points, metric: Metric) -> NDArray[np.float64]:
    """All points in float64, centered: distances are not affected, and large means cost no precision.

    Takes 8 n d bytes, temporarily twice that.

    Args:
        points: [n, d].
        metric: with cosine, points are scaled to length one (before they are centered).

    Raises:
        NoData: no points, numbers that are not finite; with cosine, points that are zero.
    """
    n = len(open_points(points))
    values = np.asarray(read_rows(points, 0, n, "euclidean"), dtype=np.float64)
    if metric == "cosine":
        values = _directions(values, 0)
    values -= values.mean(axis=0)
    return values


def _directions(block: NDArray[Float], start: int) -> NDArray[Float]:
    """Rows scaled to length one; `start` is the number of the first one."""
    # Cosines of neighbors are nearly 1: squares in float64 keep the digits in which they differ.
    units, valid = directions(block, sums=np.float64)
    if not valid.all():
        bad = ~valid
        raise NoData(
            f"{_count(bad)} zero, the first of them in row {start + int(np.argmax(bad))}: they have no direction.",
            "Leave them out, or use Euclidean distances.",
        )
    return units


def _count(bad: NDArray[np.bool_]) -> str:
    return f"{int(bad.sum())} of {len(bad)} points {'is' if bad.sum() == 1 else 'are'}"


def count_distinct(points: NDArray[np.float64], enough: int) -> int:
    """Number of distinct points; counting stops at `enough`.

    Args:
        points: [n, d].
        enough: when to stop.
    """
    seen: set[bytes] = set()
    for row in points:
        # Positive and negative zero are equal; rows are hashed since they are long.
        seen.add(hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest())
        if len(seen) >= enough:
            break
    return len(seen)
