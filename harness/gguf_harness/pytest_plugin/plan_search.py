"""Better plans of who does what in which order, found by trying.

A plan is a list of pieces for each process. How long it takes is found by going through it, event by event, with all
that is known: loading, the store of the files that sends to a few nodes at once, results of the reference that must be
there first. A search changes a plan a little again and again: pieces go from a process that ends
late to another, or change places with what another does. What does not end later stays.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Hashable, Mapping, Sequence
from itertools import count
from typing import Final

from gguf_harness.pytest_plugin.work_state import Piece, Rates

__all__ = ["Plan", "Planning", "search"]

Plan = Sequence[Sequence[int]]
"""Places of the pieces of each process in `Planning.pieces`, in the order in which it does them."""

_EVEN: Final = 0.05
_POWER: Final = 8
"""Of plans that end at the same time that one is better whose processes end earlier, the late ones above all: a
twentieth of their mean in this power counts."""


class Planning:
    """All that is known before anything is given.

    Args:
        pieces: all that there is to do.
        nodes: of each process.
        sizes: bytes of each file.
        rates: of loading.
    """

    def __init__(
        self, pieces: Sequence[Piece], nodes: Sequence[Hashable], sizes: Mapping[str, int], rates: Rates
    ) -> None:
        self.pieces = pieces
        self.nodes = nodes
        self.sizes = sizes
        self.rates = rates
        places = {piece.name: place for place, piece in enumerate(pieces)}
        self.after = [None if piece.after is None else places.get(piece.after) for piece in pieces]
        self.is_read = [False] * len(pieces)
        for place in self.after:
            if place is not None:
                self.is_read[place] = True
        self.files = [piece.file for piece in pieces]
        # Of pieces that others read, somebody else may take this time.
        self.own = [0.0 if read else piece.seconds for piece, read in zip(pieces, self.is_read, strict=True)]
        self.loading = {file: rates.seconds(sizes[file], there=True) for file in {*self.files} if file is not None}

    def ends(self, plan: Plan, limit: float = math.inf, pieces_end: dict[str, float] | None = None) -> list[float]:
        """When each process ends, in seconds from now.

        A process whose piece reads what nobody has begun to measure does that itself. If somebody has, it waits.

        Args:
            plan: of all pieces.
            limit: of a plan that ends later nobody needs to know more than that.
            pieces_end: takes the end of each piece.
        """
        return _Walk(self, plan, {} if pieces_end is None else pieces_end).ends(limit)

    def least(self) -> float:
        """Seconds in which no plan ends, or hardly: what can be said at once.

        All work and loading, shared by all processes; from the first results on all that reads results; and the longest
        piece, after what it reads.
        """
        pieces, width = self.pieces, len(self.nodes)
        late = [piece.seconds for piece, first in zip(pieces, self.after, strict=True) if first is not None]
        begins = {
            first: self.loading.get(self.files[first] or "", 0.0) + pieces[first].seconds
            for first in self.after
            if first is not None
        }
        longest = max(
            (0.0 if first is None else begins[first]) + piece.seconds
            for piece, first in zip(pieces, self.after, strict=True)
        )
        work = sum(piece.seconds for piece in pieces) + sum(self.loading.values())
        return max(work / width, min(begins.values(), default=0.0) + sum(late) / width, longest)


class _Walk:
    """Goes through a plan, event by event: a process asks for what it needs next, and goes on when that is there."""

    def __init__(self, planning: Planning, plan: Plan, pieces_end: dict[str, float]) -> None:
        self._planning = planning
        self._plan = plan
        self._pieces_end = pieces_end
        disks: dict[Hashable, dict[str | int, float]] = {node: {} for node in planning.nodes}
        self._disks = [disks[node] for node in planning.nodes]
        self._sending = [0.0] * (planning.rates.at_once or 1)
        self._loaded: list[str | None] = [None] * len(plan)
        self._done = [0] * len(plan)
        self._left = [sum([planning.own[piece] for piece in mine]) for mine in plan]
        self._measured: dict[int, float] = {}
        self._at_it: dict[int, int] = {}
        self._waiting: dict[int, list[int]] = {}
        # Of those that ask at the same time the one that came first gets it first.
        self._order = count(len(plan))
        self._events = [(0.0, index, index) for index in range(len(plan))]

    def ends(self, limit: float) -> list[float]:
        """When each process ends; if one ends later than the limit, only a time before its end that is later, too."""
        ends = [0.0] * len(self._plan)
        while self._events:
            time, _, me = heapq.heappop(self._events)
            if time + self._left[me] > limit:
                return [time + self._left[me]]
            ends[me] = time
            if self._done[me] < len(self._plan[me]):
                self._goes_on(time, me, self._plan[me][self._done[me]])
        return ends

    def _at(self, time: float, me: int) -> None:
        heapq.heappush(self._events, (time, next(self._order), me))

    def _goes_on(self, time: float, me: int, mine: int) -> None:
        """One process, as far as it comes with its next piece without waiting."""
        planning, measured = self._planning, self._measured
        now, first = mine, planning.after[mine]
        if first is not None:
            if first not in measured:
                now = first
            else:
                ready = measured[first]
                if ready <= time and planning.pieces[first].results:
                    ready = self._there(first, planning.pieces[first].results, me, time)
                if ready > time:
                    self._at(ready, me)
                    return
        end = max(measured[now], time) if now in measured else self._measures(now, me, time)
        if end is None:
            return
        if now == mine:
            self._done[me] += 1
            self._left[me] -= planning.own[mine]
            self._pieces_end[planning.pieces[mine].name] = end
        self._at(end, me)

    def _measures(self, piece: int, me: int, time: float) -> float | None:
        """When a process has measured a piece that nobody has measured; None if it waits first, and asks again."""
        planning = self._planning
        if planning.is_read[piece] and self._at_it.setdefault(piece, me) != me:
            self._waiting.setdefault(piece, []).append(me)
            return None
        file = planning.files[piece]
        if file is not None and file != self._loaded[me]:
            ready = self._there(file, planning.sizes[file], me, time)
            if ready > time:
                self._at(ready, me)
                return None
            self._loaded[me] = file
            time += planning.loading[file]
        end = time + planning.pieces[piece].seconds
        if planning.is_read[piece]:
            self._measured[piece] = self._disks[me][piece] = end
            for other in self._waiting.pop(piece, ()):
                self._at(end, other)
        return end

    def _there(self, what: str | int, size: int, me: int, time: float) -> float:
        """When the node of a process has a file, or the results of a piece, that the process asks for."""
        disk, rates = self._disks[me], self._planning.rates
        if what not in disk:
            disk[what] = time
            if size and rates.network is not None:
                disk[what] = max(time, self._sending[0]) + size / rates.network
                if rates.at_once is not None:
                    heapq.heapreplace(self._sending, disk[what])
        return disk[what]


def search(plan: Plan, planning: Planning, enough: float, trials: int) -> Plan:
    """Look for a plan that ends earlier.

    Args:
        plan: to begin with.
        planning: what it is of.
        enough: seconds in which a plan ends that is good enough.
        trials: changes that are tried at most.

    Returns:
        A plan of the same pieces. It costs no more than the first one, see `_cost`; the same for the same arguments.
    """
    draw = random.Random(0)  # noqa: S311 - no secret
    here, ends = plan, planning.ends(plan)
    cost = _cost(ends)
    for _ in range(trials):
        if max(ends) <= enough:
            break
        late = sorted(range(len(ends)), key=lambda index: -ends[index])
        one, other = late[min(int(draw.expovariate(1.0)), len(late) - 1)], draw.randrange(len(late))
        if one == other or not here[one]:
            continue
        changed = list(here)
        changed[one], changed[other] = _change(here[one], here[other], planning.files, draw)
        tried = planning.ends(changed, cost)
        tried_cost = _cost(tried)
        if tried_cost <= cost:
            here, ends, cost = changed, tried, tried_cost
    return here


def _cost(ends: Sequence[float]) -> float:
    """What a search makes smaller."""
    longest = max(ends)
    if longest <= 0:
        return longest
    shares = sum((end / longest) ** _POWER for end in ends) / len(ends)
    return longest * float(1 + _EVEN * shares ** (1 / _POWER))


def _change(
    one: Sequence[int], other: Sequence[int], files: Sequence[str | None], draw: random.Random
) -> tuple[list[int], list[int]]:
    """Let two processes exchange what they do from some piece on, or one piece; or move a piece, or all of its file."""
    mine, theirs = list(one), list(other)
    place = draw.randrange(len(mine))
    piece = mine[place]
    kind = draw.random()
    if kind < 0.25:
        at = draw.randint(0, len(theirs)) if place else 0
        mine, theirs = mine[:place] + theirs[at:], theirs[:at] + mine[place:]
    elif kind < 0.4:
        at = draw.randint(0, len(theirs))
        theirs[at:at] = [each for each in mine if files[each] == files[piece]]
        mine = [each for each in mine if files[each] != files[piece]]
    elif kind < 0.65 and theirs:
        at = draw.randrange(len(theirs))
        back = theirs.pop(at)
        del mine[place]
        _insert(theirs, piece, at, files, draw)
        _insert(mine, back, place, files, draw)
    else:
        del mine[place]
        _insert(theirs, piece, draw.choice([len(theirs), draw.randint(0, len(theirs))]), files, draw)
    return mine, theirs


def _insert(pieces: list[int], piece: int, place: int, files: Sequence[str | None], draw: random.Random) -> None:
    """Put a piece behind one of its file, or at a place."""
    same = [index + 1 for index, each in enumerate(pieces) if files[each] == files[piece]]
    pieces.insert(draw.choice(same) if same and draw.random() < 0.7 else place, piece)
