"""The steps of attention from queries and keys to weights, and what of them explains the weights of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXPLAINED", "Explanation", "explain", "seen_keys", "softmax_of"]

EXPLAINED: Final = 0.01
"""Weights that scale and mask explain are this near to those of the forward pass.

Queries, keys and weights are stored in half precision, which has 11 bits: a product of 128 numbers of size 1 is then
wrong by about 0.01 before the scale, and a weight of 0.5 by 0.0005 after it. llama.cpp itself multiplies queries and
keys of an F16 cache in that precision, so most of the time the difference is far smaller.
"""

_LEAST_WEIGHT: Final = 1e-3

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a head gets from products of queries and keys to its weights.

    Attributes:
        scale: what the products are multiplied by.
        deviation: largest difference between the weights that follow and those of the forward pass.
    """

    scale: float
    deviation: float


def seen_keys(n: int, *, causal: bool, window: int | None = None) -> NDArray[np.bool_]:
    """[query, key] which keys the mask leaves."""
    seen = np.tri(n, dtype=np.bool_) if causal else np.ones((n, n), dtype=np.bool_)
    return seen & ~np.tri(n, k=-window, dtype=np.bool_) if window else seen


def softmax_of(products: Floats, seen: NDArray[np.bool_], scale: float, softcap: float | None = None) -> Floats:
    """[query, key] weights of the keys that are seen."""
    scores = scale * products
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def explain(
    products: NDArray[np.floating[Any]],
    pattern: NDArray[np.floating[Any]],
    scales: Sequence[float],
    *,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
) -> Explanation:
    """The scale that a head uses: the first of these that explains its weights, else the one that does so best.

    Architectures scale differently, some already the queries: what fits the weights is what was computed. Weights are
    compared as shares of those shown: attention sinks take the others.

    Args:
        products: [query, key] queries times keys.
        pattern: [query, key] weights of the forward pass.
        scales: those to expect.
        causal: whether later keys are masked.
        window: keys that a query sees, in layers with a sliding window: some layers may have none.
        softcap: limit of scores, if they are soft-capped.
    """
    x: Floats = products.astype(np.float64)
    n = len(x)
    total = pattern.astype(np.float64).sum(axis=-1, keepdims=True)
    shares: Floats = pattern / np.where(total > 0, total, 1)
    seen = seen_keys(n, causal=causal, window=window)
    if window and (pattern[~seen & seen_keys(n, causal=causal)] > 0).any():
        seen = seen_keys(n, causal=causal)
    tried = []
    for scale in (*scales, *_fitted(x, shares, seen)):
        deviation = float(np.abs(softmax_of(x, seen, scale, softcap) - shares)[total[:, 0] > 0].max(initial=0))
        tried.append(Explanation(scale, deviation))
        if deviation <= EXPLAINED:
            return tried[-1]
    return min(tried, key=lambda each: each.deviation)


def _fitted(products: Floats, pattern: Floats, seen: NDArray[np.bool_]) -> list[float]:
    """The slope of log weights over products, within each query; nothing if all its products are the same."""
    used = seen & (pattern >= _LEAST_WEIGHT)
    above = below = 0.0
    for x, y, chosen in zip(products, pattern, used, strict=True):
        if np.count_nonzero(chosen) > 1:
            a, b = x[chosen] - x[chosen].mean(), np.log(y[chosen]) - np.log(y[chosen]).mean()
            above, below = above + float(a @ b), below + float(a @ a)
    return [above / below] if below > 0 else []
