"""Every pair of candidates: the difference of their means over the same windows, and whether it is more than chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.kernels.standard_errors import clustered_se
from gguf_harness.metrics.multiple import holm
from gguf_harness.metrics.stats import exceedance_p_value

__all__ = ["LEAST_WINDOWS", "Pair", "compare_pairs"]

LEAST_WINDOWS = 2


@dataclass(frozen=True, slots=True)
class Pair:
    """Two candidates on the windows that both have.

    Attributes:
        first, second: their names.
        difference: mean of the first less that of the second.
        se: its standard error over windows; the same text is in both, so most of its spread cancels.
        windows: how many.
        p_value: two-sided, of the t-test that the difference is 0.
        p_adjusted: the same after Holm's correction over all pairs.
    """

    first: str
    second: str
    difference: float
    se: float
    windows: int
    p_value: float
    p_adjusted: float


def compare_pairs(means: Mapping[str, Mapping[int, float]]) -> list[Pair]:
    """Paired t-tests of all pairs, Holm-corrected; pairs with fewer than two common windows are left out.

    Student (1908), The Probable Error of a Mean, Biometrika 6(1); Holm (1979), see `gguf_harness.metrics.multiple`.

    Args:
        means: for each candidate, its mean in each window of the text; windows have equal numbers of tokens.
    """
    pairs = []
    for first, second in itertools.combinations(means, 2):
        common = sorted(means[first].keys() & means[second].keys())
        if len(common) < LEAST_WINDOWS:
            continue
        differences: NDArray[np.float64] = np.array([means[first][at] - means[second][at] for at in common])
        value, se = float(differences.mean()), clustered_se(differences[:, None]) or 0.0
        # Windows that all differ by the same, or not at all, leave no error to test with.
        p_value = 1.0 if value == 0 else min(1.0, 2 * exceedance_p_value(abs(value), se, len(common), 0.0))
        pairs.append(Pair(first, second, value, se, len(common), p_value, p_value))
    adjusted = holm([pair.p_value for pair in pairs])
    return [replace(pair, p_adjusted=p) for pair, p in zip(pairs, adjusted, strict=True)]
