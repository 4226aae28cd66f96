"""Which piece of work a free process gets next: one of the file that it has loaded, otherwise the longest file first.

The rule is list scheduling: a process never waits while it could do something useful. Longest first (LPT) is within
4/3 - 1/(3m) of the best makespan for work of one piece per file that depends on nothing (R. L. Graham, "Bounds on
multiprocessing timing anomalies", SIAM J. Appl. Math. 17, 1969). Here a process has to load a file before it works on
it, and candidates read what the reference's pieces leave behind, so a choice is first judged by what it wastes:

- seconds that a process waits for the reference,
- the loading of a file that another process has loaded already,
- the loading once more of a file that a process leaves unfinished.

Without waste it goes on with its own file, then comes the reference, then the file with most work left. A piece that
takes more than half of the time that is left goes before shorter ones of any file. When every file has a process, a
free one helps where the work ends last, if it would end a piece, loading included, before the others come to the end
without it. Pieces of a process that is lost wait again.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from gguf_harness.pytest_plugin.work_state import Piece, Process, WorkState

__all__ = ["ListScheduling"]

_LONG: Final = 0.5
"""A piece is long if it takes more than this share of the time that is left: it cannot be put off much further."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """A piece for a process, and what this costs.

    Attributes:
        load: seconds of loading before it begins.
        waste: seconds that nobody would spend if all pieces of each file ran in one process without a break.
    """

    piece: Piece
    load: float
    waste: float = 0.0


class ListScheduling(WorkState):
    """Gives a process a piece by the rule of this module."""

    _held: dict[str, list[Process]]
    """Processes that will go on with a file, by its name; as long as one is asked for."""
    _alone: dict[str, dict[str, float]]
    """When the pieces of a file will end; as long as one is asked for."""
    _last: float | None
    """When the last results that others read will be there; as long as one is asked for."""

    def next(self, process: Hashable, now: float) -> Piece | None:
        """Give a process its next piece; it may still be busy with earlier ones.

        Args:
            process: that has joined.
            now: seconds, on a clock that all calls share.

        Returns:
            The piece; None if nothing is left that is worth doing there. The process is then released: it gets nothing
            more, even if work comes back later.
        """
        me = self._processes[process]
        me.free_at = max(me.free_at, now)
        self._held, self._alone, self._last = {}, {}, None
        for other in self._processes.values():
            if not other.released and other.loaded is not None:
                self._held.setdefault(other.loaded, []).append(other)
        best = None if me.released else self._best(me, now)
        if best is None:
            me.released = True
            return None
        self._give(process, best.piece, now)
        return best.piece

    def run_to_the_end(self, names: list[Hashable], now: float, among: int) -> list[list[Piece]]:
        """Give all that waits, as if all went as expected.

        Args:
            names: of the processes that get something.
            now: the time.
            among: so many processes begin with what others read, whatever the rule says about that.

        Returns:
            The pieces of each process.
        """
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

    def _rank(self, me: Process, choice: _Choice) -> tuple[float, bool, bool, float]:
        """The least comes first: least waste, own file, what others read, most work less what it costs here."""
        file = choice.piece.file
        work = 0.0
        if file is not None:
            somewhere = any(file in files for files in self._on_disk.values())
            load = self._rates.seconds(self._sizes[file], there=somewhere)
            work = sum(piece.seconds for piece in self._waiting[file].values()) + 2 * load - choice.load
        own = file is not None and file == me.loaded
        # To the millisecond: sums of the same seconds differ in the last bits.
        return round(choice.waste, 3), not own, choice.piece.name not in self._read, -work

    # -- what there is to choose from ----------------------------------------------------------------------------------

    def _choices(self, me: Process, now: float) -> list[_Choice]:
        """A piece of each file that nobody has, of the process' own, and of those whose results others read."""
        leaving = self._leaving(me)
        choices = []
        for file in self._waiting:
            if file is None:
                # Tests without a model, in the order in which they were collected.
                choices.append(_Choice(next(iter(self._waiting[None].values())), 0.0, leaving))
            elif file == me.loaded or not self._holders(file, me):
                load = self._load(me, file)
                piece, idle = self._begin(file, me.free_at, load, now)
                choices.append(_Choice(piece, load, idle + (0.0 if file == me.loaded else leaving)))
            elif (help_ := self._helping(me, file, now, read=True)) is not None:
                choices.append(_Choice(help_[1], help_[2], help_[2] + leaving))
        return choices

    def _best(self, me: Process, now: float) -> _Choice | None:
        """What a process does next; None if nothing is worth it."""
        choices = self._choices(me, now)
        if not choices:
            return self._help(me, now)
        best = min(choices, key=lambda choice: self._rank(me, choice))
        start = max(me.free_at, self._ready(best.piece, now))
        longest = self._longest(me, best.piece.seconds, start, now)
        if longest is not None:
            gained = longest.piece.seconds - best.piece.seconds - longest.load - self._leaving(me)
            if gained > 0 and longest.load + longest.piece.seconds > _LONG * (self._horizon(now) - now):
                return longest
        return best

    def _help(self, me: Process, now: float) -> _Choice | None:
        """A piece of the file whose work ends last, of those where help is worth a loading."""
        found = [help_ for file in self._waiting if file is not None if (help_ := self._helping(me, file, now))]
        if not found:
            return None
        _, piece, load = max(found, key=lambda help_: help_[0])
        return _Choice(piece, load)

    def _longest(self, me: Process, seconds: float, start: float, now: float) -> _Choice | None:
        """The longest piece of another file that could begin at a time, if it takes more than some seconds."""
        longest = None
        for file, pieces in self._waiting.items():
            for piece in pieces.values() if file is not None and file != me.loaded else ():
                if piece.seconds > seconds and piece.name not in self._read and self._ready(piece, now) <= start:
                    longest, seconds = piece, piece.seconds
        return None if longest is None else _Choice(longest, self._load(me, str(longest.file)))

    def _horizon(self, now: float) -> float:
        """When all work would end if it could be divided at will."""
        there = [other for other in self._processes.values() if not other.released]
        left = sum(piece.seconds for pieces in self._waiting.values() for piece in pieces.values())
        return now + (left + sum(max(other.free_at - now, 0.0) for other in there)) / len(there)

    def _helping(self, me: Process, file: str, now: float, *, read: bool = False) -> tuple[float, Piece, float] | None:
        """How a process can help those that have a file.

        Args:
            me: the process.
            file: with waiting pieces.
            now: the time.
            read: only with pieces that others read, even if loading takes longer than its share of them.

        Returns:
            When they would end without it, the piece with which it helps most, and the seconds of loading; None if it
            would not have ended any by then, or its share of what is left takes less than loading.
        """
        waiting = [piece for piece in self._waiting[file].values() if not read or piece.name in self._read]
        if not waiting:
            return None
        load = self._load(me, file)
        share = sum(piece.seconds for piece in waiting) / (len(self._holders(file)) + 1)
        if share < load and not read:
            return None
        without = max(self._ends(file, now).values())
        best: tuple[float, Piece] | None = None
        for piece in waiting:
            idle = max(self._ready(piece, now) - me.free_at, 0.0)
            end = me.free_at + idle + load + piece.seconds
            if end < without:
                together = max([end, *self._ends(file, now, but=piece.name).values()])
                if best is None or together + idle < best[0]:
                    best = together + idle, piece
        return None if best is None else (without, best[1], load)

    def _begin(self, file: str, free_at: float, load: float, now: float) -> tuple[Piece, float]:
        """The piece to begin a file with, and how long its process will wait for others until the file is done.

        A measurement waits for what it reads before it loads its own file.
        """
        pieces = self._in_order(file)
        if self._latest(now) <= free_at:
            return pieces[0], 0.0
        ready = [(self._ready(piece, now), piece) for piece in pieces]
        first = min(ready, key=lambda one: max(one[0], free_at))[1]
        clock, idle = free_at, 0.0
        for time, piece in sorted(ready, key=lambda one: one[0]):
            idle += max(time - clock, 0.0)
            clock = max(clock, time) + load + piece.seconds
            load = 0.0
        return first, idle

    def _latest(self, now: float) -> float:
        """When the last results that others read will be there."""
        if self._last is None:
            self._last = max([self._ready(piece, now) for piece in self._readers.values()], default=now)
        return self._last

    def _leaving(self, me: Process) -> float:
        """What leaving its file costs: another loading, unless nothing of it is left or others go on with it."""
        file = me.loaded
        if file not in self._waiting or file is None or self._holders(file, me):
            return 0.0
        return self._rates.seconds(self._sizes[file], there=True)

    # -- what is expected ----------------------------------------------------------------------------------------------

    def _load(self, me: Process, file: str) -> float:
        if file == me.loaded:
            return 0.0
        return self._rates.seconds(self._sizes[file], there=file in self._on_disk.get(me.node, ()))

    def _holders(self, file: str, me: Process | None = None) -> list[Process]:
        """Processes that have a file and will go on with it, but for one."""
        return [other for other in self._held.get(file, ()) if other is not me]

    def _ready(self, piece: Piece, now: float) -> float:
        """When what a piece reads will be there."""
        if piece.after is None or piece.after in self._ended or piece.after not in self._pieces:
            return now
        expected = self._expected.get(piece.after)
        if expected is None:
            file = self._pieces[piece.after].file
            if file is not None and file not in self._alone:
                self._alone[file] = self._ends(file, now)
            expected = now if file is None else self._alone[file][piece.after]
        return max(expected, now)

    def _ends(self, file: str, now: float, but: str = "") -> dict[str, float]:
        """When each waiting piece of a file will end if only those work on it that do so now.

        Args:
            file: with waiting pieces.
            now: the time.
            but: name of a piece that somebody else does.
        """
        holders = self._holders(file)
        # One that nobody has begun could be begun now.
        alone = now + self._rates.seconds(self._sizes[file], there=False)
        free = [max(holder.free_at, now) for holder in holders] or [alone]
        heapq.heapify(free)
        ends = {}
        for piece in self._in_order(file):
            if piece.name != but:
                ends[piece.name] = free[0] + piece.seconds
                heapq.heapreplace(free, ends[piece.name])
        return ends

    def _in_order(self, file: str) -> list[Piece]:
        """The waiting pieces of a file: first what others read, the shortest first; then the longest first."""
        if file not in self._order:
            self._order[file] = sorted(
                self._waiting[file].values(),
                key=lambda piece: (False, piece.seconds) if piece.name in self._read else (True, -piece.seconds),
            )
        return self._order[file]
