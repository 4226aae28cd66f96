"""Holm's correction against a brute-force closed test, and its properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.multiple import holm

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def _closed_bonferroni(p_values: list[float]) -> list[float]:
    """Marcus, Peritz and Gabriel (1976): a hypothesis is rejected when every intersection with it is.

    With Bonferroni's test of each intersection this is Holm's procedure; all subsets are written out here.
    """
    adjusted = []
    for index in range(len(p_values)):
        others = [other for other in range(len(p_values)) if other != index]
        subsets = itertools.chain.from_iterable(itertools.combinations(others, size) for size in range(len(others) + 1))
        adjusted.append(max(
            min(1.0, (1 + len(subset)) * min([p_values[index], *(p_values[other] for other in subset)]))
            for subset in subsets
        ))  # fmt: skip
    return adjusted


@given(p_values)
def test_holm_is_the_closed_bonferroni_test(values: list[float]) -> None:
    assert holm(values) == pytest.approx(_closed_bonferroni(values))


@given(p_values)
def test_adjusted_values_lie_between_raw_and_bonferroni_in_the_same_order(values: list[float]) -> None:
    adjusted = holm(values)
    for raw, corrected in zip(values, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, len(values) * raw)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(adjusted[first] <= adjusted[second] for first, second in itertools.pairwise(order))


def test_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_chance_of_any_false_finding_stays_at_its_level() -> None:
    """Ten true hypotheses with strongly correlated statistics: any rejection is false."""
    random = np.random.default_rng(5)
    z = 0.6 * random.standard_normal((2000, 1)) + 0.8 * random.standard_normal((2000, 10))
    false_raw = false_holm = 0
    for row in z:
        p = [0.5 * math.erfc(value / math.sqrt(2)) for value in row]
        false_raw += min(p) <= 0.05
        false_holm += min(holm(p)) <= 0.05
    assert false_raw / 2000 > 0.25
    assert false_holm / 2000 < 0.05


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_p_value_is_refused(bad: float) -> None:
    with pytest.raises(NoData, match="not a p-value"):
        holm([0.5, bad])
