"""The scheduler on simulated clusters: near what is possible, and nothing lost or done twice whatever fails."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement, pairwise, permutations, product
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_harness.pytest_plugin import plan_search, schedule
from gguf_harness.pytest_plugin.list_scheduling import ListScheduling
from gguf_harness.pytest_plugin.plan_search import Plan
from gguf_harness.pytest_plugin.schedule import Piece, Schedule
from tests.bench import cluster as simulated
from tests.bench.cluster import Cluster, Work, simulate
from tests.bench.lower_bounds import lower_bounds
from tests.bench.random_plans import random_plan
from tests.bench.simulate_cluster import BITS, PAGE, Family, family_work, surprising, with_tables

RANK, END = Schedule._rank, Schedule.end
PLANS = 1000
LIMIT = 1.15
DIVISIBLE = 1.1
"""Where no piece is long and loading takes little."""
MEAN = 1.02


def _reliable(cluster: Cluster) -> Cluster:
    return replace(cluster, crash_every=math.inf, preempted_every=math.inf)


def _ratio(work: Work, cluster: Cluster) -> float:
    outcome = simulate(work, _reliable(cluster))
    assert sorted(outcome.ended) == sorted(piece.name for piece in work.pieces)
    return outcome.makespan / max(lower_bounds(work, cluster).values())


def _pieces_of(seconds: dict[str, list[float]], reads: dict[str, str] | None = None) -> Work:
    pieces = [
        Piece(f"{file}/{number}", file, each, (reads or {}).get(file) and f"{(reads or {})[file]}/{number}")
        for file, durations in seconds.items()
        for number, each in enumerate(durations)
    ]
    return Work(tuple(pieces), dict.fromkeys(seconds, 10**9))


SIMPLE = Cluster(1, 1, network=1e9, disk=1e9, start=1.0)
"""A file of 10^9 bytes takes a second from the store, one from the disk, and one more to start: 3 seconds."""


def test_one_process_does_everything_in_its_time() -> None:
    work = _pieces_of({"a": [5, 4], "b": [3]})
    outcome = simulate(work, SIMPLE)
    assert outcome.makespan == outcome.held == pytest.approx(12 + 2 * 3)
    assert outcome.useful == pytest.approx(12)
    assert (outcome.moved, outcome.loads, outcome.retried, outcome.lost) == (2 * 10**9, 2, 0, 0)
    assert outcome.utilisation == pytest.approx(12 / 18)
    assert max(lower_bounds(work, SIMPLE).values()) == pytest.approx(18)


def test_candidates_wait_for_the_reference_and_its_results_are_moved_once_to_each_node() -> None:
    work = replace(_pieces_of({"r": [10], "a": [5], "b": [4]}, {"a": "r", "b": "r"}), results={"r/0": 2 * 10**9})
    cluster = replace(SIMPLE, nodes=3)
    with mock.patch.object(simulated, "Schedule", ListScheduling):
        outcome = simulate(work, cluster)
    # 13 for the reference, 2 for its results, 3 to load, 5.
    assert outcome.makespan == pytest.approx(23)
    assert outcome.moved == 3 * 10**9 + 2 * 2 * 10**9
    # A plan leaves the longer one on the node that has the results already.
    assert simulate(work, cluster).makespan == pytest.approx(13 + 2 + 3 + 4)
    # A file is fetched only when what its pieces read is there.
    assert lower_bounds(work, cluster)["reference first"] == pytest.approx(13 + 3 + 5)
    assert lower_bounds(work, cluster)["longest file"] == pytest.approx(13 + 3 + 5)


def test_processes_of_a_node_share_its_disk_and_the_store_serves_one_after_the_other() -> None:
    work = _pieces_of({"a": [50, 50], "b": [50, 50]})
    one_node = simulate(work, replace(SIMPLE, processes=4))
    assert (one_node.moved, one_node.loads) == (2 * 10**9, 4)
    # The second file is sent after the first.
    assert one_node.makespan == pytest.approx(2 + 2 + 50)
    four_nodes = simulate(work, replace(SIMPLE, nodes=4, store=1e9))
    assert four_nodes.moved == 4 * 10**9
    assert four_nodes.makespan == pytest.approx(4 + 2 + 50)


def test_the_bound_counts_what_cannot_be_divided() -> None:
    bounds = lower_bounds(_pieces_of({"a": [9, 8, 7]}), replace(SIMPLE, processes=2))
    # To the tolerance of its bisection.
    assert bounds["pieces that cannot be divided"] == pytest.approx(2 + 8 + 7, rel=1e-3)
    assert bounds["longest file"] == pytest.approx(3 + 12)
    # No two of the pieces fit into one process by then, so three load the file, one of them from the store.
    assert bounds["all work"] == pytest.approx((24 + 3 + 2 + 2) / 2, rel=1e-3)


def _is_divisible(work: Work, cluster: Cluster) -> bool:
    """Whether no piece takes more than a quarter of the bound, and loading no more than a fifth of all pieces."""
    bound = max(lower_bounds(work, cluster).values())
    seconds = [work.takes(piece.name) for piece in work.pieces]
    loading = sum(cluster.rates.seconds(size, there=False) for size in work.sizes.values())
    return max(seconds) <= bound / 4 and loading <= sum(seconds) / 5


def test_a_thousand_plans_end_within_15_percent_of_what_is_possible() -> None:
    """Of any family on any cluster, see `random_plan`."""
    assert sum(_is_divisible(*random_plan(seed)) for seed in range(PLANS)) >= 0.4 * PLANS
    ratios = _judge(PLANS, 1.0)
    assert max(ratios) <= LIMIT
    # No makespan is below its bound: bounds are right.
    assert min(ratios) >= 1 - 1e-9


def _judge(number: int, share: float = 1.0, mean: float = MEAN) -> list[float]:
    plans = [random_plan(seed) for seed in range(number)]
    ratios = [_ratio(*plan) for plan in plans]
    divisible = [ratio for ratio, plan in zip(ratios, plans, strict=True) if _is_divisible(*plan)]
    assert divisible
    assert max(divisible) <= DIVISIBLE
    assert sum(ratio <= LIMIT for ratio in ratios) >= share * number
    assert statistics.mean(ratios) <= mean
    return ratios


@cache
def _surprises() -> tuple[list[tuple[Work, Cluster]], list[float]]:
    """Plans whose pieces take half to twice what is expected of them, and the ratios that the rule alone comes to."""
    plans = [random_plan(seed) for seed in range(100)]
    surprises = [(surprising(work, seed), cluster) for seed, (work, cluster) in enumerate(plans)]
    with mock.patch.object(Schedule, "_make_plan"):
        return surprises, [_ratio(*plan) for plan in surprises]


def test_wrong_expectations_cost_no_more_than_with_the_rule_alone() -> None:
    surprises, by_rule = _surprises()
    ratios = [_ratio(*plan) for plan in surprises]
    assert statistics.mean(ratios) < min(1.08, statistics.mean(by_rule) + 0.005)
    assert max(ratios) < 1.6


def _shortest_first(schedule: Schedule, me: Any, choice: Any) -> tuple[float, bool, bool, float]:
    waste, not_own, not_read, work = RANK(schedule, me, choice)
    return waste, not_own, not_read, -work


def _never(*given: object, read: bool = False) -> None:
    """No help, no long piece, or no plan."""


def _at_once(schedule: Schedule, piece: Piece, now: float) -> float:
    return now


BY_RULE, BY_PLANS = (0.98, 1.035), (1.0, 1.027)
"""Of the first hundred plans: the share that is within the limit, and the mean."""


def test_the_rule_alone_is_nearly_as_good_as_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    _judge(100, *BY_PLANS)
    monkeypatch.setattr(Schedule, "_make_plan", _never)
    _judge(100, *BY_RULE)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("_rank", _shortest_first),
        ("_helping", _never),
        ("_ready", _at_once),
        ("_longest", _never),
    ],
    ids=["the shortest file first", "no help", "nobody knows of the reference", "long pieces put off"],
)
def test_a_worse_rule_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, broken: object) -> None:
    """Without plans, which would repair it."""
    monkeypatch.setattr(Schedule, "_make_plan", _never)
    monkeypatch.setattr(Schedule, name, broken)
    with pytest.raises(AssertionError):
        _judge(100, *BY_RULE)


def _as_it_is(plan: Plan, *_: object) -> Plan:
    return plan


def _nothing_waits(walk: Any, what: object, size: int, me: int, time: float) -> float:
    return time


@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        (schedule, "search", _as_it_is),
        (plan_search, "_change", lambda one, other, *_: (one, other)),
        (plan_search._Walk, "_there", _nothing_waits),
    ],
    ids=["nothing is looked for", "nothing is changed", "the store sends at once"],
)
def test_a_worse_plan_is_noticed(monkeypatch: pytest.MonkeyPatch, where: object, name: str, broken: object) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(AssertionError):
        _judge(100, *BY_PLANS)


def test_a_plan_that_is_followed_whatever_happens_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_SURPRISE", math.inf)
    with pytest.raises(AssertionError):
        test_wrong_expectations_cost_no_more_than_with_the_rule_alone()


def _with_fatal(seed: int) -> tuple[Work, Cluster]:
    work, cluster = random_plan(seed)
    return replace(work, fatal=frozenset(piece.name for piece in work.pieces[seed % 7 :: 41])), cluster


@pytest.mark.parametrize("seed", range(0, 200, 5))
def test_nothing_is_lost_or_done_twice_whatever_fails(seed: int) -> None:
    """Processes die after an hour on average, nodes after two; some pieces kill their process."""
    work, cluster = _with_fatal(seed)
    outcome = simulate(work, replace(cluster, crash_every=3600, preempted_every=7200), seed)
    assert sorted(outcome.ended) == sorted(piece.name for piece in work.pieces)
    assert len(set(outcome.ended)) == len(outcome.ended)
    # The reference's may die in the process of a candidate that could not wait for it.
    assert set(outcome.crashed) >= {name for name in work.fatal if not name.startswith("reference")}
    assert len(set(outcome.crashed)) == len(outcome.crashed)


def test_failures_happen_and_cost_time() -> None:
    work = family_work(Family(8e9))
    cluster = Cluster(2, 4)
    calm = simulate(work, cluster)
    rough = [simulate(work, replace(cluster, crash_every=3600, preempted_every=7200), seed) for seed in range(5)]
    assert (calm.lost, calm.retried, calm.crashed) == (0, 0, [])
    assert all(each.lost > 0 and each.retried > 0 and each.makespan > calm.makespan for each in rough)
    assert len({each.makespan for each in rough}) == 5
    assert rough[3] == simulate(work, replace(cluster, crash_every=3600, preempted_every=7200), 3)


def _forgets(schedule: Schedule, process: Hashable) -> list[str]:
    del schedule._processes[process]
    return []


def _does_again(schedule: Schedule, name: str, now: float) -> None:
    END(schedule, name, now)
    schedule._wait(schedule._pieces[name])


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [("lost", _forgets, "Nobody does"), ("end", _does_again, "was given after it had ended")],
)
def test_a_scheduler_that_loses_or_repeats_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: object, message: str
) -> None:
    monkeypatch.setattr(Schedule, name, broken)
    with pytest.raises(RuntimeError, match=message):
        simulate(family_work(Family(8e9)), Cluster(2, 4, crash_every=3600))


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=2), min_size=1, max_size=3), st.integers(1, 3))
def test_no_schedule_beats_the_bound(durations: list[list[int]], processes: int) -> None:
    """Against the best of all ways to give pieces to processes, each loading every file that it has a piece of."""
    work = _pieces_of({f"file {number}": list(map(float, each)) for number, each in enumerate(durations)})
    cluster = replace(SIMPLE, processes=processes, network=math.inf)
    load = cluster.rates.seconds(10**9, there=True)

    def takes(mine: list[Piece]) -> float:
        return sum(piece.seconds for piece in mine) + load * len({piece.file for piece in mine})

    best = min(
        max(takes([piece for piece, at in zip(work.pieces, places, strict=True) if at == one]) for one in places)
        for places in product(range(processes), repeat=len(work.pieces))
    )
    bound = max(lower_bounds(work, cluster).values())
    assert bound <= best + 1e-6
    assert simulate(work, cluster).makespan >= best - 1e-6


class _Script:
    """A scheduler that gives each process the pieces of a list."""

    lists: tuple[list[Piece], ...] = ()

    def __init__(self, *_: object) -> None:
        self._left = [list(pieces) for pieces in self.lists]

    def join(self, process: int, node: str) -> None: ...

    def end(self, name: str, now: float) -> None: ...

    def next(self, process: int, _now: float) -> Piece | None:
        return self._left[process].pop(0) if self._left[process] else None


def _every_schedule(pieces: Sequence[Piece], processes: int) -> Iterator[tuple[list[Piece], ...]]:
    for order in permutations(pieces):
        for cuts in combinations_with_replacement(range(len(pieces) + 1), processes - 1):
            ends = [0, *cuts, len(pieces)]
            yield tuple(list(order[begin:end]) for begin, end in pairwise(ends))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_schedule_beats_the_bound_where_files_are_sent_and_results_are_read(data: st.DataObject) -> None:
    """Against all orders in all processes, each simulated: a store that sends to a node or two, and a reference."""
    seconds = st.integers(1, 9).map(float)
    names = data.draw(st.sampled_from([("r", "a"), ("r", "a", "b"), ("r", "a", "b", "c")]))
    suites = 2 if len(names) == 2 else 1
    alone = data.draw(st.lists(st.booleans(), min_size=suites, max_size=suites))
    pieces = tuple(
        Piece(f"{file}/{suite}", file, data.draw(seconds), None if file == "r" or alone[suite] else f"r/{suite}")
        for file in names
        for suite in range(suites)
    )
    sizes = {file: data.draw(st.integers(1, 4)) * 10**9 for file in names}
    results = {f"r/{suite}": data.draw(st.sampled_from([0, 3 * 10**9])) for suite in range(suites)}
    work = Work(pieces, sizes, results=results)
    cluster = replace(SIMPLE, nodes=data.draw(st.integers(1, 3)), processes=data.draw(st.integers(1, 2)))
    cluster = replace(cluster, store=cluster.network * data.draw(st.integers(1, 2)))
    if cluster.width > 3:
        cluster = replace(cluster, processes=1)
    best = math.inf
    with mock.patch.object(simulated, "Schedule", _Script):
        for _Script.lists in _every_schedule(pieces, cluster.width):
            best = min(best, simulate(work, cluster).makespan)
    for reason, bound in lower_bounds(work, cluster).items():
        assert bound <= best + 1e-6, reason
    assert simulate(work, cluster).makespan >= best - 1e-6


def test_the_family_has_thirty_types_and_the_sizes_of_real_files() -> None:
    work = family_work(Family(8.03e9))
    assert len(work.sizes) == 31 == len(BITS) + 1
    assert len(work.pieces) == 31 * 7
    # Llama 3.1 8B in llama.cpp's tools/quantize/README.md: 14.96 and 4.58 GiB.
    assert work.sizes["F16"] / 2**30 == pytest.approx(14.96, rel=0.01)
    assert work.sizes["Q4_K_M"] / 2**30 == pytest.approx(4.58, rel=0.01)
    assert len(family_work(Family(1e9, candidates=65)).sizes) == 66


def test_twice_as_fast_takes_half_as_long_but_for_loading() -> None:
    slow, fast = (simulate(family_work(Family(8e9, flops=flops)), Cluster(1)) for flops in (1e12, 2e12))
    assert slow.useful / fast.useful == pytest.approx(2, rel=0.01)
    assert slow.moved == fast.moved


def test_the_page_has_the_tables_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "python -m tests.bench.simulate_cluster --docs"


def test_a_page_without_room_for_a_table_is_named() -> None:
    with pytest.raises(ValueError, match="simulated: 8B"):
        with_tables("nothing")
