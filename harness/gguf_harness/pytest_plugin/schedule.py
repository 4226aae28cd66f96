"""Which piece of work a process gets next: what a plan says while all goes as planned, otherwise what the rule says.

The rule of `list_scheduling.py` sees one process at a time, and what it wastes now. What that leads to can be known
before anything is given: the whole schedule is gone through by the rule, as expected. Where it ends clearly later than
what seems possible, `plan_search.py` looks for a better plan for a moment, and one that gains enough is followed.

A plan is right for what was expected. It is made once, and dropped for good when a piece is late, or a process comes or
goes: then the rule decides, which only needs to know what is so now. Wrong expectations cost no more than by the rule.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Final

from gguf_harness.pytest_plugin.list_scheduling import ListScheduling
from gguf_harness.pytest_plugin.plan_search import Plan, Planning, search
from gguf_harness.pytest_plugin.work_state import LOCAL, Piece, Rates

__all__ = ["LOCAL", "Piece", "Rates", "Schedule"]

_ENOUGH: Final = 0.08
"""Nothing better is looked for if the rule ends so near to what seems possible."""
_GAIN: Final = 0.03
"""A plan is followed if it takes so much less time than the rule."""
_SURPRISE: Final = 0.02
"""A plan is dropped when a piece ends later than planned by so much of the plan's time."""
_PIECES: Final = 200_000
"""Pieces that a search goes through at most, in all plans that it tries: half a second, or two for 64 processes."""
_WORTH: Final = 3.0
"""Seconds that could be gained at least: short sessions wait for no plan, and load no file twice for nothing."""


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
        self._has_begun = False
        self._ends_planned: dict[str, float] = {}
        self._tolerance = 0.0

    def join(self, process: Hashable, node: Hashable = None) -> None:
        """Add a process that is free; see `WorkState.join`."""
        super().join(process, node)
        self._plan = None

    def lost(self, process: Hashable) -> list[str]:
        """Take a process away. What it had and has not ended waits again; see `WorkState.lost`."""
        self._plan = None
        return super().lost(process)

    def release(self, process: Hashable) -> None:
        """Note that a process takes nothing more. What it has, it will still do."""
        if not self._processes[process].released:
            self._plan = None
        super().release(process)

    def end(self, name: str, now: float) -> None:
        """Note that a piece that was given has ended; see `WorkState.end`."""
        super().end(name, now)
        if self._is_late(name, now):
            self._plan = None

    def next(self, process: Hashable, now: float) -> Piece | None:
        """Give a process its next piece, see `ListScheduling.next`."""
        if not self._has_begun:
            self._has_begun = True
            self._make_plan(now)
        # What is late may not have ended.
        if self._plan is not None and any(self._is_late(name, now) for name in self._owner):
            self._plan = None
        if self._plan is None:
            return super().next(process, now)
        if not self._plan[process]:
            self._processes[process].released = True
            return None
        piece = self._plan[process].pop(0)
        self._give(process, piece, now)
        return piece

    def _is_late(self, name: str, now: float) -> bool:
        return now > self._ends_planned.get(name, now) + self._tolerance

    # -- plans ---------------------------------------------------------------------------------------------------------

    def _make_plan(self, now: float) -> None:
        """Make a plan, or leave it to the rule."""
        waiting = [piece for pieces in self._waiting.values() for piece in pieces.values()]
        names = [name for name, process in self._processes.items() if not process.released]
        if len(names) < 2 or len(waiting) < 2:
            return
        planning = Planning(waiting, [self._processes[name].node for name in names], self._sizes, self._rates)
        rule = self._forecast(planning, names, now)
        by_rule = max(planning.ends(rule))
        enough = (1 + _ENOUGH) * planning.least()
        if by_rule < enough + _WORTH:
            return
        first = sum(piece.name in self._read for piece in waiting)
        plans = [rule, *(self._forecast(planning, names, now, among) for among in range(1, min(first, len(names)) + 1))]
        best = min(plans, key=lambda plan: max(planning.ends(plan)))
        plan = search(best, planning, enough, _PIECES // len(waiting))
        ends: dict[str, float] = {}
        takes = max(planning.ends(plan, pieces_end=ends))
        if takes < (1 - _GAIN) * by_rule:
            self._plan = {name: [waiting[each] for each in mine] for name, mine in zip(names, plan, strict=True)}
            self._ends_planned = {name: now + end for name, end in ends.items()}
            self._tolerance = _SURPRISE * takes

    def _forecast(self, planning: Planning, names: list[Hashable], now: float, among: int = 0) -> Plan:
        """What the rule will do if all goes as expected.

        Args:
            planning: of all pieces.
            names: of the processes that get something.
            now: the time.
            among: so many processes begin with what others read, whatever the rule says about that.
        """
        places = {piece.name: place for place, piece in enumerate(planning.pieces)}
        plan = self.copied().run_to_the_end(names, now, among)
        return [[places[piece.name] for piece in mine] for mine in plan]
