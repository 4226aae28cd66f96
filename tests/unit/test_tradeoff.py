"""Trade-offs against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.tradeoff import dominated_by, frontier_steps, halvings, pareto_frontier, smallest_passing

points = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=10
)


def _beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and (a[0] < b[0] or a[1] < b[1])


@given(points)
def test_frontier_is_what_nothing_beats(table: dict[str, tuple[int, int]]) -> None:
    expected = {name for name, point in table.items() if not any(_beats(other, point) for other in table.values())}
    frontier = pareto_frontier(table)
    assert set(frontier) == expected
    assert [table[name] for name in frontier] == sorted(table[name] for name in frontier)


@given(points)
def test_the_one_named_really_dominates(table: dict[str, tuple[int, int]]) -> None:
    beaten = dominated_by(table)
    assert set(beaten) == set(table) - set(pareto_frontier(table))
    assert all(_beats(table[winner], table[name]) for name, winner in beaten.items())


@given(points, st.sets(st.text("abcdefgh", min_size=1, max_size=3)))
def test_smallest_passing_is_the_cheapest(table: dict[str, tuple[int, int]], passing: set[str]) -> None:
    costs = {name: float(point[0]) for name, point in table.items()}
    smallest = smallest_passing(costs, passing)
    eligible = [costs[name] for name in passing & set(costs)]
    assert (smallest is None) == (not eligible)
    assert smallest is None or (smallest in passing and costs[smallest] == min(eligible))


def test_prices_of_steps_by_hand() -> None:
    points = {"F16": (16.0, 0.0), "Q8": (8.0, 0.01), "bad": (6.0, 0.9), "Q4": (4.0, 0.06), "Q2": (1.0, 0.66)}
    steps = frontier_steps(points)
    assert [(step.start, step.end, step.halvings) for step in steps] == [
        ("F16", "Q8", 1.0), ("Q8", "Q4", 1.0), ("Q4", "Q2", 2.0),
    ]  # fmt: skip
    assert [step.price for step in steps] == pytest.approx([0.01, 0.05, 0.3])


@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=3), st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=10
    )
)
def test_steps_lead_down_the_whole_frontier(table: dict[str, tuple[int, int]]) -> None:
    steps = frontier_steps(table)
    frontier = pareto_frontier(table)
    assert len(steps) == max(len({table[name] for name in frontier}) - 1, 0)
    # Each step saves and costs: otherwise one of both points would be dominated.
    assert all(step.halvings > 0 and step.price > 0 for step in steps)
    if steps:
        ends = table[steps[0].start], table[steps[-1].end]
        assert math.fsum(step.halvings for step in steps) == pytest.approx(math.log2(ends[0][0] / ends[1][0]))
        assert math.fsum(step.halvings * step.price for step in steps) == pytest.approx(ends[1][1] - ends[0][1])


@given(st.floats(1e-3, 1e3), st.floats(1.001, 1e3), st.floats(1e-3, 1e12))
def test_halvings_do_not_depend_on_the_unit(small: float, times: float, unit: float) -> None:
    assert halvings(small * times, small) == pytest.approx(math.log(times) / math.log(2), rel=1e-6)
    assert halvings(unit * small * times, unit * small) == pytest.approx(halvings(small * times, small), rel=1e-6)


@pytest.mark.parametrize(("bigger", "smaller"), [(1.0, 1.0), (1.0, 2.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.nan)])
def test_nothing_saved_has_no_price(bigger: float, smaller: float) -> None:
    with pytest.raises(NoData, match="nothing is saved"):
        halvings(bigger, smaller)
