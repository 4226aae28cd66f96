"""Survival curves against published ones, plain shares and resampled texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.survival import Survival, part_time, summarize_survival

# Weeks of remission with 6-mercaptopurine: Freireich et al. (1963), as in Klein and Moeschberger, table 4.1.
WEEKS = (6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35)
RELAPSE = (1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0)

times = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=2, max_size=30)


@pytest.mark.parametrize(
    ("week", "share", "error"),
    [
        (6, 0.857, 0.0764),
        (9, 0.807, 0.0869),
        (10, 0.753, 0.0963),
        (13, 0.690, 0.1068),
        (16, 0.627, 0.1141),
        (22, 0.538, 0.1282),
        (35, 0.448, 0.1346),
    ],
)
def test_a_published_curve(week: int, share: float, error: float) -> None:
    found = Survival.of(WEEKS, RELAPSE).at(week)
    assert found.value == pytest.approx(share, abs=5e-4)
    assert found.se == pytest.approx(error, abs=5e-5)
    assert found.n == 21


def test_a_published_interval() -> None:
    """The log-log interval of the same data at week 10, as R's survival package gives it."""
    found = Survival.of(WEEKS, RELAPSE).at(10)
    assert found.low == pytest.approx(0.503, abs=1e-3)
    assert found.high == pytest.approx(0.889, abs=1e-3)


@given(times)
def test_a_curve_falls_and_its_intervals_hold_it(texts: list[tuple[int, bool]]) -> None:
    at, parted = zip(*texts, strict=True)
    curve = Survival.of(at, parted)
    assert (np.diff(np.concatenate([[1.0], curve.share])) <= 0).all()
    assert (curve.at_risk >= curve.parted).all()
    for tokens in range(1, len(curve.share) + 1):
        found = curve.at(tokens)
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert Survival.of(at[::-1], parted[::-1]).share.tolist() == curve.share.tolist()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=30))
def test_without_censoring_it_is_a_share(at: list[int]) -> None:
    """With the usual error of one, and the mean of times that are cut at the limit."""
    curve = Survival.of(at, [True] * len(at))
    for tokens in range(1, max(at)):
        share = sum(time > tokens for time in at) / len(at)
        assert curve.at(tokens).value == pytest.approx(share)
        assert curve.at(tokens).se == pytest.approx(math.sqrt(share * (1 - share) / len(at)), abs=1e-9)
    same = [min(time - 1, 8) for time in at]
    found = curve.mean(8)
    assert found.value == pytest.approx(np.mean(same), abs=1e-9)
    assert found.se == pytest.approx(np.std(same, ddof=1) / math.sqrt(len(at)), abs=1e-9)


def test_texts_that_never_part_leave_a_doubt() -> None:
    found = Survival.of([8] * 20, [False] * 20).at(8)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    mean = Survival.of([8] * 20, [False] * 20).mean(8)
    assert (mean.value, mean.se) == (8, 0)
    none = Survival.of([1] * 20, [True] * 20).at(1)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_the_error_of_the_mean_is_that_of_resampled_texts() -> None:
    numbers = np.random.default_rng(0)
    ends, parts = numbers.integers(4, 20, 60), numbers.geometric(0.1, 60)
    at, parted = np.minimum(ends, parts), parts <= ends
    found = Survival.of(at, parted).mean(12)
    drawn = []
    for _ in range(500):
        some = numbers.integers(0, 60, 60)
        drawn.append(Survival.of(at[some], parted[some]).mean(12).value)
    assert found.se == pytest.approx(np.std(drawn), rel=0.15)


def test_shares_at_doubled_numbers_of_tokens() -> None:
    mean, *shares = summarize_survival([3, 20, 20], [True, False, False], 20)
    assert mean.metric == "tokens_until_different"
    assert [each.place.part for each in shares] == [f"{tokens} tokens" for tokens in (1, 2, 4, 8, 16, 20)]
    assert [each.value for each in shares] == pytest.approx([1, 1, 2 / 3, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ([1, 2, 3], [1, 2, 3], (3, False)),
        ([1, 2, 3], [1, 5, 3], (2, True)),
        ([5], [1, 2], (1, True)),
        ([1, 2], [1, 2, 3], (2, False)),
    ],
)
def test_where_texts_part(first: list[int], second: list[int], found: tuple[int, bool]) -> None:
    assert part_time(first, second) == part_time(second, first) == found


@pytest.mark.parametrize(("at", "parted"), [([], []), ([0], [True]), ([1, 2], [True])])
def test_what_has_no_curve(at: list[int], parted: list[bool]) -> None:
    with pytest.raises(NoData):
        Survival.of(at, parted)
