"""Standard errors by resampling, for statistics without a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData

__all__ = ["RESAMPLES", "bootstrap_se"]

RESAMPLES: Final = 1000
"""Enough: the standard error is itself known to 1 / sqrt(2 * 1000), about 2 %."""


def bootstrap_se(
    statistic: Callable[[NDArray[np.int64]], float], samples: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> float | None:
    """Standard deviation of a statistic over resamples with replacement; the same seed gives the same number.

    Efron and Tibshirani (1993), An Introduction to the Bootstrap, algorithm 6.1. Of a mean it is sqrt((n - 1) / n)
    times the usual standard error.

    Args:
        statistic: takes [samples] indices of the samples drawn and returns a finite value.
        samples: how many independent samples there are.
        resamples: how often they are drawn.
        seed: of the generator.

    Returns:
        None for a single sample.

    Raises:
        NoData: for no samples.
    """
    if samples < 1:
        raise NoData("bootstrap: no samples.")
    if samples == 1:
        return None
    drawn = np.random.default_rng(seed).integers(samples, size=(resamples, samples))
    return float(np.std([statistic(indices) for indices in drawn], ddof=1))
