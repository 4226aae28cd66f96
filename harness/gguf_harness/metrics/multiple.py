"""Multiple tests: p-values that control the probability of any false rejection."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gguf_harness.errors import NoData

__all__ = ["holm"]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure, in the order given.

    With p(1) <= ... <= p(m): the adjusted p(i) is the largest of (m - j + 1) p(j) over j <= i, at most 1. Rejecting
    those at most alpha keeps the probability of any false rejection at alpha, for any dependence of the tests. Holm
    (1979), A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 6(2).

    Raises:
        NoData: a p-value that is not a number in [0, 1].
    """
    bad = [p for p in p_values if not (math.isfinite(p) and 0 <= p <= 1)]
    if bad:
        raise NoData(f"Holm's correction: {bad[0]} is not a p-value, expected a number from 0 to 1.")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
