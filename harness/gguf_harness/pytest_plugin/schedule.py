"""Which piece of work a process gets next: what a plan says, as long as a plan is better than the rule.

The rule of `list_scheduling.py` sees one process at a time, and what it wastes now. What that leads to is known before:
when work begins, the whole schedule is gone through as expected, by the rule and with the reference divided among more
processes than the rule takes. `plan_search.py` then looks for a better plan. It is followed if it ends clearly earlier
than the rule would, otherwise the rule decides.

It is done again when a process comes or is lost, when pieces together took so much more or less time than expected that
the plan is no longer worth much, and before a process is released that the plan has nothing for.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Final

from gguf_harness.pytest_plugin.list_scheduling import ListScheduling
from gguf_harness.pytest_plugin.pieces import LOCAL, Piece, Rates
from gguf_harness.pytest_plugin.plan_search import Plan, Seat, Situation, least_time, plan_ends, search

__all__ = ["LOCAL", "Piece", "Rates", "Schedule"]

_GAIN: Final = 0.02
"""A plan is followed that takes so much less of the time that is left than the rule."""
_ENOUGH: Final = 0.05
"""Nothing better is looked for if the rule ends so near to what is possible."""
_SURPRISE: Final = 0.1
"""A plan is made again when the expected ends were wrong by so much of the work that was left, in all."""
_STEPS: Final = 1_000_000
_AGAIN: Final = 100_000
"""Pieces that a search goes through, times the share of the time that could be gained: at the beginning, and when a
plan is made again. 100,000 take about half a second."""
_STEPS_PER_SECOND: Final = 10_000
"""And for each second that could be gained at most: looking for them takes a twentieth of them."""


class Schedule(ListScheduling):
    """Gives pieces of work to processes, each once until it has ended.

    Args:
        pieces: all of them, in the order in which equals are given.
        sizes: bytes of each file.
        rates: of loading.
    """

    def __init__(self, pieces: Iterable[Piece], sizes: Mapping[str, int], rates: Rates = LOCAL) -> None:
        super().__init__(pieces, sizes, rates)
        self._plan: dict[Hashable, list[Piece]] | None = None
        self._is_planned = False
        self._steps = _STEPS
        self._takes: dict[str, float] = {}
        self._left = self._wrong = 0.0

    def join(self, process: Hashable, node: Hashable = None) -> None:
        """Add a process that is free; see `WorkState.join`."""
        super().join(process, node)
        self._is_planned = False

    def lost(self, process: Hashable) -> list[str]:
        """Take a process away. What it had and has not ended waits again; see `WorkState.lost`."""
        self._is_planned = False
        return super().lost(process)

    def release(self, process: Hashable) -> None:
        """Note that a process takes nothing more. What it has, it will still do."""
        if not self._processes[process].released:
            self._is_planned = False
        super().release(process)

    def end(self, name: str, now: float) -> None:
        """Note that a piece that was given has ended; see `WorkState.end`."""
        self._wrong += abs(now - self._expected.get(name, now))
        super().end(name, now)

    def next(self, process: Hashable, now: float) -> Piece | None:
        """Give a process its next piece, see `ListScheduling.next`."""
        me = self._processes[process]
        if me.released:
            return None
        me.free_at = max(me.free_at, now)
        has_nothing = self._plan is not None and not self._plan.get(process)
        if not self._is_planned or self._wrong > (_SURPRISE**2 if has_nothing else _SURPRISE) * self._left:
            self._make_plan(now)
        if self._plan is None:
            return super().next(process, now)
        if not self._plan[process]:
            me.released = True
            return None
        piece = self._plan[process].pop(0)
        self._give(process, piece, now, self._takes[piece.name])
        return piece

    # -- plans ---------------------------------------------------------------------------------------------------------

    def _make_plan(self, now: float) -> None:
        """Make a plan, or leave it to the rule."""
        waiting = [piece for pieces in self._waiting.values() for piece in pieces.values()]
        before = self._plan
        self._plan, self._is_planned, self._wrong = None, True, 0.0
        self._left = sum(piece.seconds for piece in waiting)
        names = [name for name, process in self._processes.items() if not process.released]
        if len(names) < 2 or len(waiting) < 2:
            return
        situation = self._situation(names, now)
        rule = self._forecast(names, now)
        enough = now + (1 + _ENOUGH) * (least_time(rule, situation) - now)
        by_rule = max(plan_ends(rule, situation))
        if by_rule <= enough:
            return
        plans = [rule]
        first = sum(piece.name in self._read for piece in waiting) if self._steps == _STEPS else 0
        plans += [self._forecast(names, now, among) for among in range(1, min(first, len(names)) + 1)]
        if before is not None and sum(len(pieces) for pieces in before.values()) == len(waiting):
            plans.append([before.get(name, []) for name in names])
        steps = min(self._steps * (by_rule - enough) / (enough - now), _STEPS_PER_SECOND * (by_rule - enough))
        plan = search(plans, situation, int(steps) // len(waiting), enough)
        self._steps = _AGAIN
        if max(plan_ends(plan, situation)) - now < (1 - _GAIN) * (by_rule - now):
            self._plan = {name: list(pieces) for name, pieces in zip(names, plan, strict=True)}
            self._takes = _takes(plan, situation)

    def _situation(self, names: list[Hashable], now: float) -> Situation:
        seats = [self._processes[name] for name in names]
        on_disk = {node: dict(has) for node, has in self._on_disk.items()}
        return Situation(
            now,
            [Seat(max(seat.free_at, now), seat.node, seat.loaded) for seat in seats],
            self._sizes,
            self._rates,
            on_disk,
            self._sending,
            {name: piece for name, piece in self._pieces.items() if name in self._read},
            dict.fromkeys(self._ended, now) | {name: max(end, now) for name, end in self._expected.items()},
        )

    def _forecast(self, names: list[Hashable], now: float, among: int = 0) -> Plan:
        """What the rule will do if all goes as expected.

        Args:
            names: of the processes that get something.
            now: the time.
            among: so many processes begin with what others read, whatever the rule says about that.
        """
        then = self.copied()
        vars(then).update(_plan=None, _is_planned=True, _left=math.inf)
        return then.run_to_the_end(names, now, among)

    def run_to_the_end(self, names: list[Hashable], now: float, among: int) -> Plan:
        """Give all that waits, as if all went as expected; see `_forecast`."""
        plan: dict[Hashable, list[Piece]] = {name: [] for name in names}
        first = [piece for pieces in self._waiting.values() for piece in pieces.values() if piece.name in self._read]
        for piece in sorted(first, key=lambda piece: -piece.seconds) if among else ():
            name = min(names[:among], key=lambda name: self._processes[name].free_at)
            self._give(name, piece, now)
            plan[name].append(piece)
        events = [(max(self._processes[name].free_at, now), index) for index, name in enumerate(names)]
        heapq.heapify(events)
        while events:
            time, index = heapq.heappop(events)
            given = self.next(names[index], time)
            if given is not None:
                plan[names[index]].append(given)
                heapq.heappush(events, (self._processes[names[index]].free_at, index))
        return list(plan.values())


def _takes(plan: Plan, situation: Situation) -> dict[str, float]:
    """Seconds of each piece, with loading and waiting."""
    ends: dict[str, float] = {}
    plan_ends(plan, situation, ends)
    takes = {}
    for pieces, seat in zip(plan, situation.seats, strict=True):
        begin = seat.free_at
        for piece in pieces:
            takes[piece.name] = ends[piece.name] - begin
            begin = ends[piece.name]
    return takes
