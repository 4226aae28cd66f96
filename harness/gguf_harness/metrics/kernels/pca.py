"""Principal components. Jolliffe (2002), "Principal Component Analysis"."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.kernels.moments import centred_blocks, moments

__all__ = ["axis_signs", "principal_axes", "principal_subspace"]

Floats = NDArray[np.float64]


def axis_signs(axes: NDArray[np.floating[Any]]) -> Floats:
    """[count] 1 or -1 for each axis of [count, d]: the sign that makes its largest entry positive.

    The signs of principal axes are arbitrary. With this choice, equal rows give equal charts.
    """
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    return np.where(largest < 0, -1.0, 1.0)


def principal_axes(rows: NDArray[np.floating[Any]], count: int) -> tuple[Floats, Floats, Floats]:
    """The first principal components of a few rows: of their Gram matrix, in float64, signs by `axis_signs`.

    Args:
        rows: [n, d]; memory is 8 n (n + d) bytes.
        count: how many; axes beyond the rank are zero.

    Returns:
        ([d] mean, [d, count] axes, [count] share of the variance along each, falling).

    Raises:
        NoData: fewer than two rows, numbers that are not finite, or rows that do not vary.
    """
    from scipy.linalg import eigh

    mean, square = moments(rows, "principal axes")
    centred = rows - mean
    known = min(count, len(rows))
    values, left = eigh(centred @ centred.T, subset_by_index=[len(rows) - known, len(rows) - 1])
    values, left = values[::-1], left[:, ::-1]
    # Squares of singular values below this are rounding errors.
    values, left = values[values > 1e-12 * values[0]], left[:, values > 1e-12 * values[0]]
    axes, shares = np.zeros((rows.shape[1], count)), np.zeros(count)
    axes[:, : len(values)] = centred.T @ left / np.sqrt(values)
    shares[: len(values)] = values / square
    return mean, axes * axis_signs(axes.T), shares


def principal_subspace(rows: NDArray[np.floating[Any]], mean: Floats, count: int) -> Floats:
    """[d, count] orthonormal axes of the first principal components of many rows: of their covariance, block by block.

    Args:
        rows: [n, d]; memory beside them is 8 (2 d^2 + 2048 d) bytes.
        mean: [d] of the rows.
        count: how many, all d of them at most.
    """
    from scipy.linalg import eigh

    d = rows.shape[1]
    covariance = np.zeros((d, d))
    for part in centred_blocks(rows, mean):
        covariance += part.T @ part
    _, axes = eigh(covariance, subset_by_index=[d - min(count, d), d - 1])
    return np.asarray(axes)
