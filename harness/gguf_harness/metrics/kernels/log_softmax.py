"""Log-softmax: for rows in float64, for a row in scratch memory, and for rows in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RunningSoftmax", "log_softmax", "shifted_exp"]

Floats = NDArray[np.float64]


def log_softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """[..., vocabulary] log-probabilities in float64, by scipy; rows with NaN or infinity give NaN."""
    from scipy import special

    with np.errstate(invalid="ignore"):
        return np.asarray(special.log_softmax(logits.astype(np.float64), axis=-1))


def shifted_exp(
    logits: NDArray[np.float32], shifted: NDArray[np.float32], weights: NDArray[np.float32]
) -> tuple[int, float, float]:
    """The parts of a softmax of one row, in float32 and scratch memory: ln p = shifted - ln sum(weights).

    Args:
        logits: [vocabulary].
        shifted: [vocabulary] filled with the logits less the largest of them.
        weights: [vocabulary] filled with exp(shifted).

    Returns:
        (first largest entry, its logit, sum of the weights).
    """
    top = int(logits.argmax())
    largest = logits[top]
    np.subtract(logits, largest, out=shifted)
    np.exp(shifted, out=weights)
    return top, float(largest), float(weights.sum())


class RunningSoftmax:
    """Log-sum-exp, entropy and largest entry of rows of logits given in blocks (Milakov and Gimelshein 2018).

    Args:
        n: rows.

    Attributes:
        largest: [n] largest logit so far.
        top: [n] its first place.
    """

    def __init__(self, n: int) -> None:
        self.largest = np.full(n, -np.inf)
        self.top = np.zeros(n, dtype=np.int64)
        self._sum = np.zeros(n)
        self._weighted = np.zeros(n)

    def add(self, logits: NDArray[np.float32], start: int) -> None:
        """Take [n, block] logits of the tokens from `start` on."""
        best = logits.argmax(axis=1)
        value = logits[np.arange(len(logits)), best].astype(np.float64)
        larger = value > self.largest
        self.top[larger] = best[larger] + start
        new = np.maximum(self.largest, value)
        with np.errstate(invalid="ignore"):
            fade = np.where(np.isinf(self.largest), 0.0, np.exp(self.largest - new))
        # float32 inside a block, float64 across blocks.
        weights = np.exp(logits - new.astype(np.float32)[:, None])
        self._sum = self._sum * fade + weights.sum(axis=1, dtype=np.float64)
        self._weighted = self._weighted * fade + np.einsum("nv,nv->n", weights, logits)
        self.largest = new

    @property
    def log_sum(self) -> Floats:
        """[n] ln of the sum of exp(logit)."""
        return np.asarray(self.largest + np.log(self._sum))

    @property
    def entropy(self) -> Floats:
        """[n] log Z - mean logit, in nats; rounding may leave it below 0."""
        return np.asarray(np.maximum(0.0, self.log_sum - self._weighted / self._sum))
