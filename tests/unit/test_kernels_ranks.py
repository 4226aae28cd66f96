"""Ranks and their correlation against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.ranks import largest, mean_ranks, spearman

Array = NDArray[np.float64]


_TIED = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-300, 2, np.inf])


@given(hnp.arrays(np.float64, st.integers(0, 20), elements=_TIED))
def test_ranks_are_scipys(values: Array) -> None:
    assert (mean_ranks(values) == scipy_stats.rankdata(values)).all()


@given(hnp.arrays(np.float64, st.integers(0, 20), elements=_TIED), st.integers(1, 22))
def test_the_largest_are_the_first_of_a_stable_sort(values: Array, most: int) -> None:
    assert largest(values, most).tolist() == np.argsort(-values, kind="stable")[:most].tolist()


@given(
    hnp.arrays(np.float64, 7, elements=st.integers(-5, 5).map(float)),
    hnp.arrays(np.float64, 7, elements=st.integers(-5, 5).map(float)),
)
def test_rank_correlation_is_scipys(a: Array, b: Array) -> None:
    if len(set(a)) == 1 or len(set(b)) == 1:
        with pytest.raises(NoData, match="are equal"):
            spearman(a, b)
        return
    correlation = spearman(a, b)
    assert correlation == pytest.approx(scipy_stats.spearmanr(a, b)[0])
    assert -1 <= correlation <= 1
    assert spearman(b, a) == pytest.approx(correlation)
    assert spearman(np.exp(a), b) == pytest.approx(correlation)


def test_what_has_no_rank_correlation() -> None:
    for first, second in (([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.0, 2.0, 3.0])):
        with pytest.raises(NoData, match="two pairs"):
            spearman(np.array(first), np.array(second))
    for bad in (np.nan, np.inf):
        with pytest.raises(NoData, match="not finite"):
            spearman(np.array([1.0, bad, 2.0]), np.arange(3.0))
