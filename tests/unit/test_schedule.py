"""Which piece of work a process gets next: files stay where they are, long work comes first, nothing is lost.

What is said about the order is about the rule; what must never happen is said about plans as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.pytest_plugin.list_scheduling import ListScheduling
from gguf_harness.pytest_plugin.schedule import Piece, Rates, Schedule

BOTH = pytest.mark.parametrize("kind", [ListScheduling, Schedule], ids=["rule", "plans"])

FREE = Rates(start=0.0, disk=1e30)
"""Loading takes no time."""


def _pieces(seconds: Mapping[str, Sequence[float]], reference: str | None = None) -> list[Piece]:
    """Pieces `file/0`, `file/1` and so on; those of candidates after the reference's of the same number."""
    return [
        Piece(f"{file}/{number}", file, each, None if reference in {None, file} else f"{reference}/{number}")
        for file, durations in seconds.items()
        for number, each in enumerate(durations)
    ]


def _schedule(
    seconds: Mapping[str, Sequence[float]],
    processes: int,
    rates: Rates = FREE,
    reference: str | None = None,
    kind: type[ListScheduling] = ListScheduling,
) -> ListScheduling:
    schedule = kind(_pieces(seconds, reference), dict.fromkeys(seconds, 0), rates)
    for process in range(processes):
        schedule.join(process, f"node {process}")
    return schedule


def _name(schedule: ListScheduling, process: Hashable, now: float = 0.0) -> str | None:
    piece = schedule.next(process, now)
    return None if piece is None else piece.name


def _makespan(schedule: ListScheduling, processes: int) -> float:
    """Of pieces that depend on nothing and load for free."""
    free = dict.fromkeys(range(processes), 0.0)
    has: dict[int, str] = {}
    while free:
        process = min(free, key=free.__getitem__)
        now = free[process]
        if process in has:
            schedule.end(has.pop(process), now)
        piece = schedule.next(process, now)
        if piece is None:
            del free[process]
        else:
            has[process] = piece.name
            free[process] += piece.seconds
            last = max(free.values())
    return last


@BOTH
@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_independent_work_is_within_grahams_bound(
    kind: type[ListScheduling], seconds: list[int], processes: int
) -> None:
    """4/3 - 1/(3m) of the best makespan, found by trying all."""
    best = min(
        max(sum(each for each, at in zip(seconds, places, strict=True) if at == one) for one in range(processes))
        for places in product(range(processes), repeat=len(seconds))
    )
    schedule = _schedule({f"file {number}": [each] for number, each in enumerate(seconds)}, processes, kind=kind)
    assert _makespan(schedule, processes) <= (4 / 3 - 1 / (3 * processes)) * best + 1e-9


def test_the_longest_file_comes_first_and_a_process_keeps_its_file() -> None:
    schedule = _schedule({"short": [1, 1], "long": [5, 4], "middle": [3, 3]}, 2, Rates(start=1.0))
    assert [_name(schedule, 0), _name(schedule, 1)] == ["long/0", "middle/0"]
    schedule.end("middle/0", 4.0)
    assert _name(schedule, 1, 4.0) == "middle/1"
    schedule.end("long/0", 6.0)
    assert _name(schedule, 0, 6.0) == "long/1"
    schedule.end("middle/1", 7.0)
    assert _name(schedule, 1, 7.0) == "short/0"


def test_the_reference_comes_first_and_what_others_need_soonest_of_it() -> None:
    schedule = _schedule({"long": [9, 9], "reference": [3, 2]}, 1, reference="reference")
    order = []
    for now in range(4):
        name = _name(schedule, 0, now)
        assert name is not None
        order.append(name)
        schedule.end(name, now)
    assert order == ["reference/1", "reference/0", "long/0", "long/1"]


@pytest.mark.parametrize("start", [1.0, 200.0])
def test_a_process_helps_with_the_reference_rather_than_wait_for_it(start: float) -> None:
    """It would wait for as long as loading the reference takes, and the shorter suite."""
    schedule = _schedule({"candidate": [10, 40], "reference": [10, 40]}, 2, Rates(start=start), "reference")
    assert [_name(schedule, 0), _name(schedule, 1)] == ["reference/0", "reference/1"]


def test_what_needs_no_reference_is_done_before_helping_with_it() -> None:
    pieces = [*_pieces({"candidate": [10, 40], "reference": [10, 40]}, "reference"), Piece("free", "candidate", 5.0)]
    schedule = ListScheduling(pieces, {"candidate": 0, "reference": 0}, Rates(start=200.0))
    schedule.join(0)
    schedule.join(1)
    assert [_name(schedule, 0), _name(schedule, 1)] == ["reference/0", "free"]


@pytest.mark.parametrize(("start", "name"), [(1.0, "only/1"), (5.0, "only/1"), (6.0, None), (60.0, None)])
def test_a_file_is_loaded_twice_where_that_is_worth_it(start: float, name: str | None) -> None:
    """Half of the ten seconds that the first process still has not begun take as long as loading, or longer."""
    schedule = _schedule({"only": [20, 10]}, 2, Rates(start=start))
    assert _name(schedule, 0) == "only/0"
    assert _name(schedule, 1, start) == name


def test_a_file_is_not_loaded_twice_for_what_would_end_later() -> None:
    """The second process would end the short piece at 8, after the first, which would end it at 6."""
    schedule = _schedule({"only": [1, 4]}, 2, Rates(start=1.0))
    assert _name(schedule, 0) == "only/1"
    assert _name(schedule, 1, 4.5) is None


def test_help_goes_to_the_file_that_ends_last() -> None:
    schedule = _schedule({"a": [10, 10, 10], "b": [10, 9]}, 3, Rates(start=1.0))
    assert [_name(schedule, 0), _name(schedule, 1), _name(schedule, 2)] == ["a/0", "b/0", "a/1"]


def test_a_file_on_a_nodes_disk_comes_before_another_of_the_same_length() -> None:
    """Process 0 dies: its file is on the disk of its node, and no other waiting file is."""
    sizes = {"a": 10**9, "b": 10**9, "c": 10**9}
    schedule = ListScheduling(_pieces({file: [100.0] for file in sizes}), sizes, Rates(network=1e9))
    schedule.join(0, "left")
    schedule.join(1, "right")
    assert [_name(schedule, 0), _name(schedule, 1)] == ["a/0", "b/0"]
    assert schedule.lost(0) == ["a/0"]
    for process, node in enumerate(("left", "right"), start=2):
        schedule.join(process, node)
    # On the other node the one that must be fetched anyway.
    assert [_name(schedule, 3, 1.0), _name(schedule, 2, 1.0)] == ["c/0", "a/0"]


def test_a_long_piece_is_not_put_off_to_the_end() -> None:
    """Both processes have a short piece of their own left; the long one of a third file cannot wait for that."""
    schedule = _schedule({"a": [50, 1], "b": [49, 1], "c": [40]}, 2, Rates(start=0.1))
    assert [_name(schedule, 0), _name(schedule, 1)] == ["a/0", "b/0"]
    schedule.end("b/0", 49.0)
    assert _name(schedule, 1, 49.0) == "c/0"


def test_a_test_without_a_model_comes_when_no_model_waits_in_the_order_of_collection() -> None:
    plain = [Piece(name, None, 0.0) for name in ("z", "a", "m")]
    schedule = ListScheduling([*plain, *_pieces({"file": [1, 1]})], {"file": 0})
    schedule.join("gw0")
    names = []
    while (piece := schedule.next("gw0", 0.0)) is not None:
        names.append(piece.name)
    assert names == ["file/0", "file/1", "z", "a", "m"]


def test_what_a_lost_process_had_waits_again_but_not_what_it_ended() -> None:
    schedule = _schedule({"a": [3, 2, 1]}, 1)
    assert [_name(schedule, 0), _name(schedule, 0)] == ["a/0", "a/1"]
    schedule.end("a/0", 3.0)
    assert schedule.lost(0) == ["a/1"]
    assert schedule.waiting == {"a/1", "a/2"}
    assert not schedule.knows(0)
    with pytest.raises(ValueError, match="'a/0' ended, but had done so before"):
        schedule.end("a/0", 4.0)
    with pytest.raises(ValueError, match="'a/1' ended, but nobody had it"):
        schedule.end("a/1", 4.0)


def test_a_late_piece_makes_the_next_one_late_once() -> None:
    """At 57, process 0 can load the other file for a piece that would begin at 72 without it; from 62 on it cannot."""
    schedule = _schedule({"a": [20, 20], "b": [60, 30]}, 2, Rates(start=12.0))
    assert [_name(schedule, 1), _name(schedule, 0), _name(schedule, 0)] == ["b/0", "a/0", "a/1"]
    schedule.end("a/0", 37.0)
    schedule.end("a/1", 57.0)
    assert _name(schedule, 0, 57.0) == "b/1"


GRAHAM = {"a": [30], "b": [30], "c": [20], "d": [20], "e": [20]}
"""The longest first takes 70 on two processes, since it parts the long ones; 60 is possible."""


def test_a_plan_that_ends_earlier_than_the_rule_is_followed() -> None:
    assert _makespan(_schedule(GRAHAM, 2), 2) == 70
    assert _makespan(_schedule(GRAHAM, 2, kind=Schedule), 2) == 60


@pytest.mark.parametrize("is_late", [False, True])
def test_a_plan_is_dropped_when_a_piece_is_late(is_late: bool) -> None:
    """At 60, when the process with the long pieces is done, the other's first one, of 20 seconds, has not ended."""
    schedule = _schedule(GRAHAM, 2, kind=Schedule)
    begun = {process: str(_name(schedule, process)) for process in range(2)}
    (long,) = (process for process, name in begun.items() if name in {"a/0", "b/0"})
    short = 1 - long
    if not is_late:
        schedule.end(begun[short], 20.0)
        begun[short] = str(_name(schedule, short, 20.0))
    schedule.end(begun[long], 30.0)
    begun[long] = str(_name(schedule, long, 30.0))
    if not is_late:
        schedule.end(begun[short], 40.0)
        assert _name(schedule, short, 40.0) is not None
    schedule.end(begun[long], 60.0)
    assert (_name(schedule, long, 60.0) is not None) == is_late


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_plan_is_dropped_when_a_process_comes_or_goes(is_lost: bool) -> None:
    schedule = _schedule(GRAHAM, 2, kind=Schedule)
    begun = {process: str(_name(schedule, process)) for process in range(2)}
    (long,) = (process for process, name in begun.items() if name in {"a/0", "b/0"})
    if is_lost:
        schedule.lost(1 - long)
    schedule.join("another")
    # By the rule the longest comes first.
    assert _name(schedule, "another", 0.5) in {"a/0", "b/0"}


def test_a_released_process_gets_nothing_and_does_not_keep_others_from_its_file() -> None:
    schedule = _schedule({"a": [1, 1]}, 2, Rates(start=60.0))
    assert _name(schedule, 0) == "a/0"
    assert _name(schedule, 1) is None
    schedule.release(0)
    assert _name(schedule, 0) is None
    schedule.join(2)
    assert _name(schedule, 2, 1.0) == "a/1"
    with pytest.raises(ValueError, match="joined twice"):
        schedule.join(2)


@BOTH
@given(st.data())
def test_nothing_is_lost_or_done_twice_whoever_dies_when(kind: type[ListScheduling], data: st.DataObject) -> None:
    files = data.draw(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.floats(0, 9), min_size=1, max_size=3)))
    reference = data.draw(st.sampled_from([None, *files]))
    rates = Rates(start=data.draw(st.sampled_from([0.0, 1.0, 50.0])))
    schedule = _schedule(files, 0, rates, reference, kind)
    everything = schedule.waiting
    has: dict[int, list[str]] = {}
    now, joined = 0.0, 0
    done: list[str] = []
    while len(done) < len(everything):
        now += data.draw(st.sampled_from([0.0, 1.0]))
        if len(has) < 3:
            schedule.join(joined)
            has[joined] = []
            joined += 1
        process = data.draw(st.sampled_from(sorted(has)))
        event = data.draw(st.sampled_from(["next", "end", "next", "end", "dies"])) if joined < 40 else "next"
        if event == "next" or (event == "end" and not has[process]):
            piece = schedule.next(process, now)
            assert (
                schedule.waiting
                | set(done)
                | {name for names in has.values() for name in names}
                | ({piece.name} if piece else set())
                == everything
            )
            if piece is not None:
                assert piece.name not in done
                assert all(piece.name not in names for names in has.values())
                has[process].append(piece.name)
            if joined >= 40 or piece is None:
                for name in has.pop(process):
                    schedule.end(name, now)
                    done.append(name)
                schedule.lost(process)
        elif event == "end":
            done.append(has[process].pop(0))
            schedule.end(done[-1], now)
        else:
            assert schedule.lost(process) == has.pop(process)
    assert sorted(done) == sorted(everything) == sorted(schedule.ended)
