"""Better plans of who does what in which order, found by trying.

A plan is a list of pieces for each process. How long it takes is found by going through it, event by event, with all
that is known: loading, the store of the files that sends to a few nodes at once, results of the reference that must be
there first. A search begins with the best of some plans, and changes it a little again and again: pieces go from a
process that ends late to another, or change places with what another does. What does not end later stays.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from gguf_harness.pytest_plugin.pieces import Piece, Rates
from gguf_harness.pytest_plugin.work_state import results_of

__all__ = ["Plan", "Seat", "Situation", "least_time", "plan_ends", "search"]

Plan = Sequence[Sequence[Piece]]
"""The pieces of each process, in their order; processes as in the situation."""

_EVEN: Final = 0.05
_POWER: Final = 8
"""Of plans that end at the same time that one is better whose processes end earlier, the late ones above all: a
twentieth of their mean in this power counts."""
_PATIENCE: Final = 200
"""So many changes in vain, and a search begins elsewhere: with the next plan, or with the best one after some changes
whatever they cost (H. R. Lourenço, O. C. Martin, T. Stützle, "Iterated local search", 2003)."""
_LITTLE: Final = 1e-4
"""What makes a plan better by less counts as in vain."""
_KICKS: Final = 3
"""How many changes that are."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What a process can begin with: from when on, on which node, and the file that it has loaded then."""

    free_at: float
    node: Hashable
    loaded: str | None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that is known when a plan is made.

    Attributes:
        now: seconds.
        seats: one for each process.
        sizes: bytes of each file.
        rates: of loading.
        on_disk: when what is there on each node.
        sending: when the store can send again, for each of the nodes that it sends to at once.
        read: the pieces that others read, by their names.
        measured: when the results of those that are given or have ended are there, on the node that has them.
    """

    now: float
    seats: Sequence[Seat]
    sizes: Mapping[str, int]
    rates: Rates
    on_disk: Mapping[Hashable, Mapping[str, float]]
    sending: Sequence[float]
    read: Mapping[str, Piece]
    measured: Mapping[str, float]


def plan_ends(plan: Plan, situation: Situation, pieces_end: dict[str, float] | None = None) -> list[float]:
    """When each process ends.

    A process whose piece reads what nobody has begun to measure does that itself. If somebody has, it waits.

    Args:
        plan: that is tried.
        situation: in which it begins.
        pieces_end: takes the end of each piece.
    """
    return _Run(plan, situation, {} if pieces_end is None else pieces_end).ends()


class _Run:
    """Goes through a plan, event by event: a process asks for what it needs next, and goes on when that is there."""

    def __init__(self, plan: Plan, situation: Situation, pieces_end: dict[str, float]) -> None:
        seats = situation.seats
        self._plan = plan
        self._pieces_end = pieces_end
        self._sizes, self._rates, self._read = situation.sizes, situation.rates, situation.read
        self._measured = dict(situation.measured)
        disks: dict[Hashable, dict[str, float]] = {}
        for seat in seats:
            if seat.node not in disks:
                disks[seat.node] = dict(situation.on_disk.get(seat.node, {}))
        self._disks = [disks[seat.node] for seat in seats]
        self._sending = list(situation.sending)
        self._loaded = [seat.loaded for seat in seats]
        self._ends = [seat.free_at for seat in seats]
        self._place = [0] * len(seats)
        self._at_it: dict[str, int] = {}
        self._waiting: dict[str, list[int]] = {}
        self._events: list[tuple[float, int, int]] = []
        self._order = count()

    def ends(self) -> list[float]:
        """When each process ends."""
        for index, end in enumerate(self._ends):
            self._at(end, index)
        while self._events:
            time, _, index = heapq.heappop(self._events)
            self._ends[index] = time
            if self._place[index] < len(self._plan[index]):
                self._goes_on(time, index, self._plan[index][self._place[index]])
        return self._ends

    def _at(self, time: float, index: int) -> None:
        # Of those that ask at the same time the one that came first gets it first.
        heapq.heappush(self._events, (time, next(self._order), index))

    def _goes_on(self, time: float, index: int, mine: Piece) -> None:
        """One process, as far as it comes with its next piece without waiting."""
        piece, measured = mine, self._measured
        first = None if mine.after is None else self._read.get(mine.after)
        if first is not None:
            if first.name in measured:
                ready = measured[first.name]
                if ready <= time and first.results:
                    ready = self._there(results_of(first.name), first.results, index, time)
                if ready > time:
                    self._at(ready, index)
                    return
            else:
                piece = first
        if piece.name in measured:
            end = max(time, measured[piece.name])
        else:
            if piece.name in self._read and self._at_it.setdefault(piece.name, index) != index:
                self._waiting.setdefault(piece.name, []).append(index)
                return
            loaded = self._load(piece, index, time)
            if loaded is None:
                return
            end = loaded + piece.seconds
        if piece is mine:
            self._place[index] += 1
            self._pieces_end[piece.name] = end
        self._at(end, index)
        if piece.name in self._read and piece.name not in measured:
            measured[piece.name] = self._disks[index][results_of(piece.name)] = end
            for other in self._waiting.pop(piece.name, ()):
                self._at(end, other)

    def _load(self, piece: Piece, index: int, time: float) -> float | None:
        """When a process has the file of a piece in memory; None if it waits for it and asks again."""
        if piece.file is None or piece.file == self._loaded[index]:
            return time
        size = self._sizes[piece.file]
        ready = self._there(piece.file, size, index, time)
        if ready > time:
            self._at(ready, index)
            return None
        self._loaded[index] = piece.file
        return time + self._rates.start + size / self._rates.disk

    def _there(self, what: str, size: int, index: int, time: float) -> float:
        """When the node of a process has something that the process asks for."""
        disk = self._disks[index]
        if what not in disk:
            disk[what] = time
            if size and self._rates.network is not None:
                disk[what] = max(time, self._sending[0]) + size / self._rates.network
                if self._rates.at_once is not None:
                    heapq.heapreplace(self._sending, disk[what])
        return disk[what]


def least_time(plan: Plan, situation: Situation) -> float:
    """A time before which no plan of the same pieces ends, or hardly: what can be said at once.

    All work and loading, shared by all processes; from the first results on all that reads results; and the longest
    piece, after what it reads.
    """
    now, seats, rates, sizes = situation.now, situation.seats, situation.rates, situation.sizes
    pieces = {piece.name: piece for each in plan for piece in each}
    here = {seat.loaded for seat in seats}

    def loading(some: Iterable[Piece]) -> float:
        files = {piece.file for piece in some if piece.file is not None} - here
        return sum(rates.seconds(sizes[file], there=True) for file in files)

    late = [piece for piece in pieces.values() if piece.after in pieces]
    begins = {piece.after: loading([pieces[str(piece.after)]]) + pieces[str(piece.after)].seconds for piece in late}
    longest = max((begins.get(piece.after, 0.0) + piece.seconds for piece in pieces.values()), default=0.0)
    free = sum(max(seat.free_at - now, 0.0) for seat in seats)
    work = sum(piece.seconds for piece in pieces.values()) + loading(pieces.values())
    late_work = sum(piece.seconds for piece in late)
    return now + max((free + work) / len(seats), min(begins.values(), default=0.0) + late_work / len(seats), longest)


def search(plans: Sequence[Plan], situation: Situation, trials: int, enough: float) -> Plan:
    """Look for a plan that ends early.

    Args:
        plans: to begin with; those that end first come first, the next when nothing better is found near one.
        situation: in which they begin.
        trials: plans that are tried at most.
        enough: a plan that ends by then is good enough.

    Returns:
        A plan of the same pieces that does not end later than any of them. The same for the same arguments.
    """
    draw = random.Random(0)  # noqa: S311 - no secret
    starts = sorted(plans, key=lambda plan: max(plan_ends(plan, situation)))
    best, best_end = starts[0], math.inf
    while True:
        here: Plan = starts.pop(0) if starts else _kicked(best, draw)
        ends = plan_ends(here, situation)
        cost = _cost(ends, situation.now)
        in_vain = 0
        while max(ends) > enough and trials and in_vain < _PATIENCE:
            trials -= 1
            in_vain += 1
            late = sorted(range(len(ends)), key=lambda index: -ends[index])
            one, other = late[min(int(draw.expovariate(1.0)), len(late) - 1)], draw.randrange(len(late))
            if one == other or not here[one]:
                continue
            changed = list(here)
            changed[one], changed[other] = _change(here[one], here[other], draw)
            tried = plan_ends(changed, situation)
            tried_cost = _cost(tried, situation.now)
            if tried_cost <= cost:
                if tried_cost < (1 - _LITTLE) * cost:
                    in_vain = 0
                here, ends, cost = changed, tried, tried_cost
        if max(ends) < best_end:
            best, best_end = here, max(ends)
        if best_end <= enough or not trials:
            return best


def _kicked(plan: Plan, draw: random.Random) -> Plan:
    """A plan after a few changes."""
    changed = list(plan)
    for _ in range(_KICKS):
        one, other = draw.sample(range(len(plan)), 2)
        if changed[one]:
            changed[one], changed[other] = _change(changed[one], changed[other], draw)
    return changed


def _cost(ends: Sequence[float], now: float) -> float:
    """What a search makes smaller."""
    longest = max(ends) - now
    if longest <= 0:
        return longest
    shares = sum(((end - now) / longest) ** _POWER for end in ends) / len(ends)
    return longest * float(1 + _EVEN * shares ** (1 / _POWER))


def _change(one: Sequence[Piece], other: Sequence[Piece], draw: random.Random) -> tuple[list[Piece], list[Piece]]:
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
        theirs[at:at] = [each for each in mine if each.file == piece.file]
        mine = [each for each in mine if each.file != piece.file]
    elif kind < 0.65 and theirs:
        at = draw.randrange(len(theirs))
        back = theirs.pop(at)
        del mine[place]
        _insert(theirs, piece, at, draw)
        _insert(mine, back, place, draw)
    else:
        del mine[place]
        _insert(theirs, piece, draw.choice([len(theirs), draw.randint(0, len(theirs))]), draw)
    return mine, theirs


def _insert(pieces: list[Piece], piece: Piece, place: int, draw: random.Random) -> None:
    """Put a piece behind one of its file, or at a place."""
    same = [index + 1 for index, each in enumerate(pieces) if each.file == piece.file]
    pieces.insert(draw.choice(same) if same and draw.random() < 0.7 else place, piece)
