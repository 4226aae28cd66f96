"""Work dealt out to lanes: order, progress, early ends, errors; no model is needed for that."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from gguf_harness.engine.lanes import Lanes


class Lane(contextlib.AbstractContextManager["Lane"]):
    """Knows whether it is open, and whether two threads use it at once."""

    def __init__(self, opened: list[Lane]) -> None:
        self.is_open = True
        self.busy = threading.Lock()
        opened.append(self)

    def __exit__(self, *_: object) -> None:
        assert not self.busy.locked()
        self.is_open = False


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_results_come_in_order_and_no_lane_serves_two_at_once(count: int) -> None:
    opened: list[Lane] = []
    seen: list[tuple[int, int]] = []
    used: set[int] = set()

    def work(lane: Lane, item: int) -> int:
        assert lane.is_open
        assert lane.busy.acquire(blocking=False)
        time.sleep(0.002 * (item % 3))
        used.add(id(lane))
        lane.busy.release()
        return item * item

    with Lanes(count, lambda: Lane(opened)) as lanes:
        for _ in range(2):
            assert list(lanes.map(work, range(20))) == [item * item for item in range(20)]
        assert list(lanes.map(work, [3], lambda *now: seen.append(now))) == [9]
        assert list(lanes.map(work, [])) == []
        assert len(opened) == count
    assert len(used) == count
    assert not any(lane.is_open for lane in opened)
    assert seen == [(0, 1), (1, 1)]


def test_what_nobody_asks_for_does_not_begin() -> None:
    opened: list[Lane] = []
    begun: list[int] = []

    def work(_: Lane, item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    with Lanes(2, lambda: Lane(opened)) as lanes:
        for result in lanes.map(work, range(100)):
            if result == 3:
                break
    assert len(begun) < 20
    assert begun == sorted(begun)


def test_an_error_comes_in_its_place_and_ends_the_work() -> None:
    opened: list[Lane] = []
    begun: list[int] = []

    def work(_: Lane, item: int) -> int:
        begun.append(item)
        if item == 5:
            raise ValueError("five")
        time.sleep(0.01)
        return item

    results: list[int] = []
    with Lanes(3, lambda: Lane(opened)) as lanes:
        with pytest.raises(ValueError, match="five"):
            results.extend(lanes.map(work, range(100)))
        # And they can be used again.
        assert list(lanes.map(work, [1, 2])) == [1, 2]
    assert results == [0, 1, 2, 3, 4]
    assert len(begun) < 20


def test_an_error_of_the_one_who_asks_ends_the_work_as_well() -> None:
    opened: list[Lane] = []
    begun: list[int] = []

    def work(_: Lane, item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        return item

    def consume() -> None:
        with Lanes(2, lambda: Lane(opened)) as lanes:
            for _ in lanes.map(work, range(100)):
                raise KeyError("full disk")

    with pytest.raises(KeyError, match="full disk"):
        consume()
    assert len(begun) < 10
    assert not any(lane.is_open for lane in opened)


def test_where_a_lane_cannot_be_opened_the_others_are_closed() -> None:
    opened: list[Lane] = []

    def open_lane() -> Lane:
        if len(opened) == 2:
            raise MemoryError("no room")
        return Lane(opened)

    with pytest.raises(MemoryError, match="no room"):
        Lanes(3, open_lane)
    assert [lane.is_open for lane in opened] == [False, False]
