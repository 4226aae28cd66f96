"""Next-token distributions of some windows, kept in memory to be compared with those of a changed model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NOT_FINITE_HINT, EngineError
from gguf_harness.metrics.divergence import DivergenceKernel
from gguf_harness.metrics.kernels.log_softmax import shifted_exp

if TYPE_CHECKING:
    from gguf_harness.engine.model import Tokens

__all__ = ["Distributions", "Values"]

Values = NDArray[np.float32]

_FIRST: Final = 16
"""Positions before this one are not scored: heads have too little context there. All later ones are scored, not only
the second half as in a pass, since a model is compared with itself on the same tokens.
"""


class Distributions:
    """Next-token distributions of all scored positions, in memory, for comparisons.

    Args:
        windows: [windows, n_ctx] tokens.
        vocabulary: length of a row.
        logs: [windows, scored, vocabulary] log-probabilities up to a constant, the largest 0; empty if not given.
    """

    def __init__(self, windows: Tokens, vocabulary: int, logs: Values | None = None) -> None:
        self.windows = windows
        self.first = min(_FIRST, windows.shape[1] // 2)
        self.shape = (len(windows), windows.shape[1] - 1 - self.first)
        self.logs = np.empty((*self.shape, vocabulary), dtype=np.float32) if logs is None else logs

    def keep(self, window: int, logits: Values) -> None:
        """Keep the distributions of a window, [scored, vocabulary] logits."""
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=self.logs[window])

    def compare(self, window: int, logits: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(negative log-likelihood of the tokens that follow, KL(kept || these)), each [scored], in nats."""
        kernel = DivergenceKernel(logits.shape[1])
        targets = self.windows[window, self.first + 1 :]
        nll, kld = np.empty(self.shape[1]), np.empty(self.shape[1])
        for row, (kept, row_logits, target) in enumerate(zip(self.logs[window], logits, targets, strict=True)):
            compared = kernel(kept, row_logits)
            kld[row] = compared.values[0]
            nll[row] = compared.log_normalizer - float(row_logits[target])
        _check_finite(window, nll, kld)
        return nll, kld

    def losses(self, window: int, logits: Values) -> NDArray[np.float64]:
        """Negative log-likelihood of the tokens that follow, [scored], in nats: the same as `compare` finds."""
        shifted, weights = np.empty((2, logits.shape[1]), dtype=np.float32)
        nll = np.empty(self.shape[1])
        for row, target in enumerate(self.windows[window, self.first + 1 :].tolist()):
            _, largest, total = shifted_exp(logits[row], shifted, weights)
            nll[row] = largest + math.log(total) - float(logits[row, target])
        _check_finite(window, nll)
        return nll


def _check_finite(window: int, *values: NDArray[np.float64]) -> None:
    if not all(np.isfinite(each).all() for each in values):
        raise EngineError(
            f"The logits of window {window} are not finite: the model computes NaN or infinity there.",
            NOT_FINITE_HINT,
        )
