"""Places of further points in a layout that was made without them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.kernels.nearest import nearest_by_cosine, row_blocks

__all__ = ["place_among"]

_NEIGHBOURS = 6
_SAME = 1e-9


def place_among(vectors: NDArray[Any], known: NDArray[Any], layout: NDArray[Any]) -> NDArray[np.float64]:
    """Put vectors into the layout of others: each at the mean of its six nearest, weighted by 1 / distance^2.

    Shepard (1968), "A two-dimensional interpolation function for irregularly-spaced data"; the distance is that of unit
    vectors, whose square is 2 - 2 cos. A vector that is one of the known is at the place of that one, whatever method
    made the layout: so a layout is made once, and more models come into it without moving anything.

    Args:
        vectors: [n, d], none of them zero.
        known: [m, d], none of them zero.
        layout: [m, dimensions] places of the known.

    Returns:
        [n, dimensions].
    """
    vectors, known = np.asarray(vectors, dtype=np.float32), np.asarray(known, dtype=np.float32)
    near = nearest_by_cosine(vectors, row_blocks(known), min(_NEIGHBOURS, len(known)))
    weights = 1 / np.maximum(2 - 2 * near.cosines.astype(np.float64), _SAME)
    weights /= weights.sum(axis=1, keepdims=True)
    placed: NDArray[np.float64] = np.einsum("nk,nkd->nd", weights, np.asarray(layout, dtype=np.float64)[near.rows])
    return placed
