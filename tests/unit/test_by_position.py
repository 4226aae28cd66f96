"""Values by position and their slope, against closed forms, an independent regression and simulated windows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import linregress, ttest_1samp

from gguf_harness.errors import NoData
from gguf_harness.metrics.by_position import (
    SLOPE_FROM,
    bucket_name,
    buckets,
    growth_p_value,
    slope,
    slopes,
    summarize_positions,
)
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import as_estimate

POSITIONS = np.arange(1, 129)
OCTAVES = np.log2(POSITIONS)

tables = hnp.arrays(np.float64, (5, 12), elements=st.floats(-8, 8, width=32))


def _tokens(
    seed: int = 0, windows: int = 6, positions: int = 62
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """(candidate, reference) with differences of a usual size."""
    numbers = np.random.default_rng(seed)
    nll = numbers.gamma(2.0, 1.5, (windows, positions))
    candidate = {
        "nll": np.abs(nll + numbers.normal(0.02, 0.2, nll.shape)),
        "kld": numbers.gamma(0.5, 0.1, nll.shape),
        "top": numbers.integers(0, 4, nll.shape),
    }
    return candidate, {"nll": nll, "top": numbers.integers(0, 4, nll.shape)}


def _known(number: float | None) -> float:
    assert number is not None
    return number


# -- buckets ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 700))
def test_buckets_are_octaves_that_have_each_position_once(first: int, count: int) -> None:
    found = buckets(first, count)
    assert [position for bucket in found for position in bucket] == list(range(first, first + count))
    for bucket in found:
        assert {position.bit_length() for position in bucket} == {bucket.start.bit_length()}
    assert len({bucket.start.bit_length() for bucket in found}) == len(found)


def test_names_of_buckets() -> None:
    assert [bucket_name(bucket) for bucket in buckets(1, 510)] == [
        "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128-255", "256-510",
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "count"), [(0, 5), (1, 0), (-3, 9)])
def test_positions_without_octaves(first: int, count: int) -> None:
    with pytest.raises(NoData, match="have no octaves"):
        buckets(first, count)


def test_values_of_a_bucket_are_those_of_its_tokens() -> None:
    """Each of them computed token by token from the definition."""
    candidate, reference = _tokens()
    found = {(each.metric, each.place.part): each for each in summarize_positions(candidate, reference, 1)}
    assert len(found) == 4 * 6
    for name, positions in (("1", [1]), ("4-7", [4, 5, 6, 7]), ("32-62", range(32, 63))):
        at = [(window, position - 1) for window in range(6) for position in positions]
        count = len(at)

        def each(tokens: dict[str, NDArray[Any]], value: str, at: list[tuple[int, int]] = at) -> list[float]:
            return [float(tokens[value][place]) for place in at]

        kld = found["kld_by_position", name]
        assert kld.value == pytest.approx(math.fsum(each(candidate, "kld")) / count)
        assert (kld.n, kld.clusters) == (count, 6)
        means = [np.mean([candidate["kld"][window, p - 1] for p in positions]) for window in range(6)]
        assert kld.se == pytest.approx(np.std(means, ddof=1) / math.sqrt(6))
        same = [a == b for a, b in zip(each(candidate, "top"), each(reference, "top"), strict=True)]
        assert found["same_top_by_position", name].value == pytest.approx(sum(same) / count)
        losses = list(zip(each(candidate, "nll"), each(reference, "nll"), strict=True))
        ratio = math.exp(math.fsum(ours - theirs for ours, theirs in losses) / count)
        assert found["ppl_ratio_by_position", name].value == pytest.approx(ratio)
        squares = [(math.exp(-ours) - math.exp(-theirs)) ** 2 for ours, theirs in losses]
        assert found["delta_p_rms_by_position", name].value == pytest.approx(math.sqrt(math.fsum(squares) / count))


# -- the slope --------------------------------------------------------------------------------------------------------


def test_a_straight_line_is_found_exactly() -> None:
    rises = np.array([0.1, 0.3, -0.2, 0.4])
    found = slope(3.0 + rises[:, None] * OCTAVES, 1)
    assert found.value == pytest.approx(0.15)
    assert found.se == pytest.approx(np.std(rises, ddof=1) / 2)
    assert (found.n, found.clusters) == (4 * 128, 4)


@given(tables, st.integers(1, 40))
def test_the_slope_is_that_of_a_regression_of_all_tokens(values: NDArray[np.float64], first: int) -> None:
    octaves = np.log2(np.arange(first, first + 12))
    expected = linregress(np.tile(octaves, 5), values.ravel())
    found = slope(values, first)
    assert found.value == pytest.approx(expected.slope, abs=1e-9)
    by_window = [np.polyfit(octaves, window, 1)[0] for window in values]
    assert found.se == pytest.approx(np.std(by_window, ddof=1) / math.sqrt(5), rel=1e-5, abs=1e-9)


@given(tables, st.permutations(range(5)), st.floats(0.1, 9), st.floats(-9, 9))
def test_order_level_and_unit_of_windows(
    values: NDArray[np.float64], order: list[int], factor: float, level: float
) -> None:
    """The order of windows and a level of each change nothing; a unit changes the slope alike."""
    found, moved = slope(values, 1), slope(factor * values[order] + level, 1)
    assert moved.value == pytest.approx(factor * found.value, rel=1e-6, abs=1e-9)
    assert moved.se == pytest.approx(factor * _known(found.se), rel=1e-5, abs=1e-9)
    for ours, theirs in ((moved.low, found.low), (moved.high, found.high)):
        assert ours == pytest.approx(factor * _known(theirs), rel=1e-4, abs=1e-6)


def test_without_skewness_the_p_value_is_students() -> None:
    rises = np.array([-0.2, 0.0, 0.1, 0.2, 0.4])  # symmetric about their mean
    found = as_estimate("nll_slope", slope(rises[:, None] * OCTAVES, 1))
    assert growth_p_value(found) == pytest.approx(ttest_1samp(rises, 0, alternative="greater").pvalue, rel=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_p_value_is_that_of_the_interval_at_whose_lower_end_nothing_rises(sign: float) -> None:
    """Of windows that are skewed to either side, whose intervals reach farther to one than to the other."""
    rises = sign * np.array([0.01, 0.02, 0.03, 0.03, 0.05, 0.08, 0.3])
    low = _known(slope(rises[:, None] * OCTAVES, 1).low)
    shifted = as_estimate("nll_slope", slope((rises - low)[:, None] * OCTAVES, 1))
    assert shifted.low == pytest.approx(0, abs=1e-9)
    assert growth_p_value(shifted) == pytest.approx(0.025, rel=1e-3)


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_no_difference_has_no_slope_and_is_no_evidence(level: float) -> None:
    """Exactly: candidates that compute the same to the bit."""
    same = {"nll": np.full((4, 62), 2.0), "kld": np.full((4, 62), level), "top": np.ones((4, 62))}
    found = {estimate.metric: estimate for estimate in slopes(same, same, 1)}
    assert set(found) == {"nll_slope", "kld_slope"} | ({"kld_relative_slope"} if level else set())
    for estimate in found.values():
        assert estimate.value == pytest.approx(0, abs=1e-12)
        assert estimate.se == pytest.approx(0, abs=1e-12)
        assert growth_p_value(estimate) == 1


def test_slopes_leave_out_the_first_tokens_and_say_which_metric() -> None:
    candidate, reference = _tokens(positions=126)
    candidate["kld"][:, : SLOPE_FROM - 1] = 50.0  # of tokens that have hardly a cache to read
    nll, kld, relative = slopes(candidate, reference, 1)
    columns = slice(SLOPE_FROM - 1, None)
    later = candidate["kld"][:, columns]
    assert (nll.metric, kld.metric, relative.metric) == ("nll_slope", "kld_slope", "kld_relative_slope")
    assert kld.value == slope(later, SLOPE_FROM).value
    assert nll.value == slope((candidate["nll"] - reference["nll"])[:, columns], SLOPE_FROM).value
    assert relative.value == pytest.approx(kld.value / later.mean())
    assert kld.n == relative.n == later.size


def test_the_error_of_the_relative_slope_is_that_of_resampled_windows() -> None:
    candidate, reference = _tokens(windows=40)
    (relative,) = (each for each in slopes(candidate, reference, 1) if each.metric == "kld_relative_slope")
    numbers, drawn = np.random.default_rng(1), []
    for _ in range(400):
        some = numbers.integers(0, 40, 40)
        again = {name: values[some] for name, values in candidate.items()}
        found = slopes(again, {name: values[some] for name, values in reference.items()}, 1)
        drawn.append(found[-1].value)
    assert relative.se == pytest.approx(np.std(drawn), rel=0.2)


@pytest.mark.parametrize(
    ("values", "first"),
    [(np.zeros((3, 1)), 1), (np.zeros((3, 0)), 1), (np.zeros((3, 9)), 0), (np.full((2, 9), np.nan), 1)],
)
def test_what_has_no_slope(values: NDArray[np.float64], first: int) -> None:
    with pytest.raises(NoData):
        slope(values, first)


def test_windows_that_are_too_short_say_so() -> None:
    candidate, reference = _tokens(positions=16)
    with pytest.raises(NoData, match="from position 16 on, where 1 positions are scored") as caught:
        slopes(candidate, reference, 1)
    assert "--gguf-ctx" in caught.value.hint


def test_a_single_window_has_a_slope_without_an_error() -> None:
    found = as_estimate("nll_slope", slope(2.0 * OCTAVES[None], 1))
    assert found.value == pytest.approx(2.0)
    assert found.se is None
    assert growth_p_value(found) == 0.5


# -- what the intervals promise ---------------------------------------------------------------------------------------


def _simulated(numbers: np.random.Generator, windows: int, rise: float) -> NDArray[np.float64]:
    """Windows whose tokens depend on each other (AR(1)), with a level and a rise of their own, and skewed tails."""
    noise = numbers.gamma(0.5, 2.0, (windows, 128)) - 1.0
    for position in range(1, 128):
        noise[:, position] = 0.6 * noise[:, position - 1] + 0.8 * noise[:, position]
    own = numbers.normal(rise, 0.05, (windows, 1)) * OCTAVES
    return np.asarray(numbers.normal(0, 1, (windows, 1)) + own + noise)


@pytest.mark.parametrize("windows", [8, 32])
def test_intervals_cover_the_truth_and_errors_are_the_spread(windows: int) -> None:
    numbers, truth = np.random.default_rng(windows), 0.1
    found = [slope(_simulated(numbers, windows, truth), 1) for _ in range(1500)]
    covered = np.mean([_known(each.low) <= truth <= _known(each.high) for each in found])
    assert covered > 0.93
    assert np.mean([each.value for each in found]) == pytest.approx(truth, abs=0.005)
    spread = np.std([each.value for each in found])
    assert math.sqrt(np.mean([_known(each.se) ** 2 for each in found])) == pytest.approx(spread, rel=0.06)
    # Tokens taken for independent would promise too much.
    assert math.sqrt(np.mean([_known(each.se_iid) ** 2 for each in found])) < 0.8 * spread


def test_without_a_rise_one_in_twenty_is_flagged_at_most() -> None:
    numbers = np.random.default_rng(3)

    def p_value(rise: float) -> float:
        estimate: Estimate = as_estimate("nll_slope", slope(_simulated(numbers, 16, rise), 1))
        return growth_p_value(estimate)

    flags = np.mean([p_value(0.0) < 0.05 for _ in range(1500)])
    assert flags < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)
    assert np.mean([p_value(0.2) < 0.05 for _ in range(200)]) > 0.9
