"""The ratio of two means of the same samples, and the influence of each sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ratio_of_means"]

Floats = NDArray[np.float64]


def ratio_of_means(numerator: Floats, denominator: Floats) -> tuple[float, Floats]:
    """R = mean(a) / mean(b) of paired samples, with the influence (a - R b) / mean(b) of each by the delta method.

    Cochran (1977), Sampling Techniques, section 6.4. A mean of clusters of unequal size is such a ratio too: of the
    clusters' sums to their counts.

    Args:
        numerator: samples a, of any shape.
        denominator: samples b, of the same shape, with a nonzero mean.

    Returns:
        (R, influence in the shape of the samples).
    """
    ratio = float(numerator.sum() / denominator.sum())
    return ratio, np.asarray((numerator - ratio * denominator) / denominator.mean())
