"""Mean and spread of rows, and centred rows: in float64, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData

__all__ = ["centred_blocks", "moments"]

Floats = NDArray[np.float64]

_BLOCK: Final = 1024


def moments(rows: NDArray[np.floating[Any]], what: str) -> tuple[Floats, float]:
    """([d] mean row, sum of squared deviations from it).

    Args:
        rows: [n, d].
        what: named in errors.

    Raises:
        NoData: fewer than two rows, numbers that are not finite, or rows that do not vary.
    """
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] == 0:
        raise NoData(f"{what}: rows of shape {rows.shape}, expected at least two of one dimension.")
    mean = rows.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise NoData(f"{what}: the rows hold numbers that are not finite.")
    # Identical rows leave only rounding errors of their mean.
    square = float(sum((part * part).sum() for part in centred_blocks(rows, mean)))
    if square <= 1e-24 * len(rows) * max(float(mean @ mean), np.finfo(np.float64).tiny):
        raise NoData(f"{what}: the rows do not vary.")
    return mean, square


def centred_blocks(rows: NDArray[np.floating[Any]], mean: Floats) -> Iterator[Floats]:
    """Rows [n, d] less their mean [d], 1024 at a time."""
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK] - mean
