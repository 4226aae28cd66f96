"""Speed from repeated timings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.errors import NoData
from harness.records import Estimate

__all__ = ["summarize_repetitions"]


def summarize_repetitions(metric: str, values: Sequence[float]) -> Estimate:
    """Mean over repetitions, with the standard error of the mean; none for a single repetition.

    llama-bench prints the mean and the sample standard deviation; the latter is `se * sqrt(n)`.
    """
    if not values:
        raise NoData(f"{metric}: no repetitions.")
    array = np.asarray(values, dtype=np.float64)
    se = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else None
    # Repetitions are as good as independent: each is a cluster of its own.
    return Estimate(metric, float(array.mean()), len(array), se, se, len(array) if se is not None else None)
