"""What the view `attention` draws of a model."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["first_shares", "pattern_data", "side_of"]


def pattern_data(heads: list[list[int]], weights: NDArray[np.floating[Any]], side: int) -> dict[str, Any]:
    """{heads, side, weights, first}, see views/src/attention.js.

    Args:
        heads: layer and head of each.
        weights: [head, pos, key].
        side: tokens that are shown, the first ones.
    """
    side = min(side, weights.shape[1])
    rows, columns = np.tril_indices(side)
    codes = np.round(255 * np.sqrt(np.clip(weights[:, rows, columns].astype(np.float32), 0, 1))).astype(np.uint8)
    return {
        "heads": heads,
        "side": side,
        "weights": base64.b64encode(codes.tobytes()).decode(),
        "first": np.round(first_shares(weights), 3).tolist(),
    }


def first_shares(weights: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Of each head: the weight that the tokens after the first put on it, [head]."""
    if weights.shape[1] < 2:
        return np.ones(len(weights))
    return np.asarray(weights[:, 1:, 0].astype(np.float64).mean(axis=1))


def side_of(cells: float) -> int:
    """Tokens whose lower triangle has at most so many cells; two at least."""
    return max(2, int(((8 * cells + 1) ** 0.5 - 1) / 2))
