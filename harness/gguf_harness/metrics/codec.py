"""Log-probabilities in 16 bits: square-root companding with one scale per row.

A row of logits l with maximum m is stored as codes c = round(sqrt(m - l) / s), s = sqrt(m - min l) / 65535. Decoding
gives x = -(s c)^2, the log-probability up to a constant. Steps are smallest where probability is largest:

    |x - (l - m)| <= s sqrt(m - l) + s^2 / 4

For a row that spans 30 nats, s = 8.4e-5: the top token is exact, a token 1 nat below it is off by at most 8.4e-5, one
5 nats below by 1.9e-4. Half precision would be off by 2.4e-4 and 2e-3 there, and the linear 16-bit codes of
llama-perplexity by up to 1.2e-4 everywhere, with everything more than 16 nats below the top cut off. The decoded row is
normalized again before use: of a distribution against itself the KL is then of second order in these errors (some 1e-8
nats), and against another one it is off by sum p e ln(p/q) to first order, some 1e-6 nats on real rows.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.kernels.log_softmax import shifted_exp

__all__ = ["LEVELS", "RowCodec"]

LEVELS: Final = 65535


class RowCodec:
    """Encodes and decodes rows, one at a time, in scratch memory that fits into the CPU cache.

    Args:
        vocabulary: length of a row.
    """

    def __init__(self, vocabulary: int) -> None:
        self._drop = np.empty(vocabulary, dtype=np.float32)
        self._weights = np.empty(vocabulary, dtype=np.float32)

    def encode(self, logits: NDArray[np.float32], codes: NDArray[np.uint16]) -> tuple[float, float, float, int]:
        """Write the codes of a row.

        Args:
            logits: [vocabulary] raw logits.
            codes: [vocabulary] filled here.

        Returns:
            (scale s, largest logit m, sum exp(logits - m), first most likely token).
        """
        drop, weights = self._drop, self._weights
        top, largest, total = shifted_exp(logits, drop, weights)
        span = -float(drop.min())
        scale = math.sqrt(span) / LEVELS
        np.negative(drop, out=drop)
        np.sqrt(drop, out=drop)
        if scale > 0:
            np.multiply(drop, np.float32(1 / scale), out=drop)
            np.add(drop, np.float32(0.5), out=drop)
            # 1 / scale is rounded: the smallest logit may exceed the last level slightly.
            np.minimum(drop, np.float32(LEVELS), out=drop)
        np.copyto(codes, drop, casting="unsafe")
        return scale, largest, total, top

    def decode(self, codes: NDArray[np.uint16], scale: float) -> NDArray[np.float32]:
        """[vocabulary] log-probabilities up to a constant, largest 0; overwritten by the next call."""
        row = self._drop
        np.copyto(row, codes)
        np.multiply(row, np.float32(scale), out=row)
        np.multiply(row, row, out=row)
        return np.negative(row, out=row)
