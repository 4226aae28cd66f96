"""Trade-offs against brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.metrics.tradeoff import dominated_by, pareto_frontier, smallest_passing

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
    found = smallest_passing(costs, passing)
    eligible = [costs[name] for name in passing & set(costs)]
    assert (found is None) == (not eligible)
    assert found is None or (found in passing and costs[found] == min(eligible))
