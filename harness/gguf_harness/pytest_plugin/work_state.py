"""Who has which piece of work, what is on which node, and when all this will have ended.

Knows no clock and neither pytest nor xdist: `tests/bench/simulate_cluster.py` runs the same code over simulated nodes.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

__all__ = ["LOCAL", "Piece", "Process", "Rates", "WorkState", "results_of"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The smallest amount of work that is given out: the tests of one suite for one model.

    Attributes:
        name: unique.
        file: what must be loaded for it; None for nothing.
        seconds: that it is expected to take, without loading and waiting.
        after: name of the piece whose results it reads, the reference's of the same suite; None if it reads none.
        results: bytes of its results that others read, which are moved to each node that needs them once.
    """

    name: str
    file: str | None
    seconds: float
    after: str | None = None
    results: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a file comes to a process.

    Attributes:
        start: seconds that loading takes whatever the size.
        disk: bytes per second from the disk of a node into memory.
        network: bytes per second to a node that has not got the file; None if every node has every file.
        at_once: to how many nodes files and results are sent at once, the others wait; None if to all.
    """

    start: float = 2.0
    disk: float = 1e9
    network: float | None = None
    at_once: int | None = None

    def seconds(self, size: int, *, there: bool) -> float:
        """How long it takes to load a file of so many bytes.

        Args:
            size: bytes.
            there: it is on the node's disk.
        """
        fetching = 0.0 if there or self.network is None else size / self.network
        return self.start + fetching + size / self.disk


LOCAL: Final = Rates()
"""Processes of one machine: start of a worker and imports, and a disk as slow as the usual ones."""


def results_of(name: str) -> str:
    """What a node has when it has the results of a piece."""
    return f"results of {name}"


@dataclass(slots=True)
class Process:
    """A process that works.

    Attributes:
        node: the machine that it is on.
        free_at: when it will have done what it was given.
        loaded: the file that it will have loaded then.
        given: what it was given and has not ended.
        released: it gets nothing more.
    """

    node: Hashable
    free_at: float = 0.0
    loaded: str | None = None
    given: dict[str, Piece] = field(default_factory=dict)
    released: bool = False


class WorkState:
    """Pieces of work, and the processes that they are given to, each once until it has ended.

    Args:
        pieces: all of them, in the order in which equals are given.
        sizes: bytes of each file.
        rates: of loading.
    """

    def __init__(self, pieces: Iterable[Piece], sizes: Mapping[str, int], rates: Rates = LOCAL) -> None:
        self._pieces = {piece.name: piece for piece in pieces}
        self._sizes = sizes
        self._rates = rates
        self._waiting: dict[str | None, dict[str, Piece]] = {}
        self._order: dict[str | None, list[Piece]] = {}
        self._read = {piece.after for piece in self._pieces.values()}
        self._readers = {piece.after: piece for piece in self._pieces.values() if piece.after is not None}
        for piece in self._pieces.values():
            self._wait(piece)
        self._expected: dict[str, float] = {}
        self._owner: dict[str, Hashable] = {}
        self._ended: set[str] = set()
        self._processes: dict[Hashable, Process] = {}
        self._on_disk: dict[Hashable, dict[str, float]] = {}
        self._sending = [0.0] * (rates.at_once or 1)

    @property
    def waiting(self) -> set[str]:
        """Names of the pieces that no process has."""
        return {name for pieces in self._waiting.values() for name in pieces}

    @property
    def ended(self) -> frozenset[str]:
        """Names of the pieces that have ended."""
        return frozenset(self._ended)

    def join(self, process: Hashable, node: Hashable = None) -> None:
        """Add a process that is free.

        Args:
            process: its name.
            node: the machine that it is on, whose disk it shares with others. One that comes back without its disk
                has another name.

        Raises:
            ValueError: it is there already.
        """
        if process in self._processes:
            raise ValueError(f"Process {process!r} joined twice.")
        self._processes[process] = Process(node)

    def knows(self, process: Hashable) -> bool:
        """Whether a process has joined and is not lost."""
        return process in self._processes

    def release(self, process: Hashable) -> None:
        """Note that a process takes nothing more. What it has, it will still do."""
        self._processes[process].released = True

    def end(self, name: str, now: float) -> None:
        """Note that a piece that was given has ended, well or badly: it is not given again.

        Raises:
            ValueError: no process has it, or it has ended before.
        """
        if name not in self._owner:
            raise ValueError(f"{name!r} ended, but {'had done so before' if name in self._ended else 'nobody had it'}.")
        me = self._processes[self._owner.pop(name)]
        del me.given[name]
        self._ended.add(name)
        self._on_disk.setdefault(me.node, {})[results_of(name)] = now
        # What it still has takes as long as before, from now on.
        late = now - self._expected.pop(name)
        for other in me.given:
            self._expected[other] += late
        me.free_at = max(me.free_at + late, now)

    def lost(self, process: Hashable) -> list[str]:
        """Take a process away. What it had and has not ended waits again.

        Returns:
            Names of the pieces that wait again.
        """
        me = self._processes.pop(process)
        for piece in me.given.values():
            del self._expected[piece.name], self._owner[piece.name]
            self._wait(piece)
        return list(me.given)

    def copied(self) -> Self:
        """The same, which can go on without this one."""
        then = copy.copy(self)
        vars(then).update(
            _waiting={file: dict(pieces) for file, pieces in self._waiting.items()},
            _order=dict(self._order),
            _processes={name: replace(each, given=dict(each.given)) for name, each in self._processes.items()},
            _expected=dict(self._expected),
            _owner=dict(self._owner),
            _ended=set(self._ended),
            _on_disk={node: dict(has) for node, has in self._on_disk.items()},
            _sending=list(self._sending),
        )
        return then

    def _wait(self, piece: Piece) -> None:
        self._waiting.setdefault(piece.file, {})[piece.name] = piece
        self._order.pop(piece.file, None)

    def _give(self, process: Hashable, piece: Piece, now: float) -> None:
        """Note that a process has a piece, and when it will have done it."""
        me = self._processes[process]
        begin = max(me.free_at, now)
        del self._waiting[piece.file][piece.name]
        self._order.pop(piece.file, None)
        if not self._waiting[piece.file]:
            del self._waiting[piece.file]
        me.free_at = self._has_results(me, piece.after, begin)
        if piece.file is not None and piece.file != me.loaded:
            me.free_at = self._loads(me, piece.file, me.free_at)
        me.free_at += piece.seconds
        me.given[piece.name] = piece
        self._expected[piece.name] = me.free_at
        self._owner[piece.name] = process

    def _has_results(self, me: Process, name: str | None, time: float) -> float:
        """When a process that asks at a time has the results of another piece; it does that itself if nobody does."""
        if name is None or name not in self._pieces:
            return time
        owner = self._owner.get(name)
        if owner is None and name not in self._ended:
            first = self._pieces[name]
            if first.file is not None and first.file != me.loaded:
                time = self._loads(me, first.file, time)
            return time + first.seconds
        if owner is not None:
            time = max(time, self._expected[name])
            if self._processes[owner].node == me.node:
                return time
        return self._fetch(me.node, results_of(name), self._pieces[name].results, time)

    def _loads(self, me: Process, file: str, time: float) -> float:
        """When a process that begins to load a file at a time has done so."""
        me.loaded = file
        size = self._sizes[file]
        return self._fetch(me.node, file, size, time) + self._rates.seconds(size, there=True)

    def _fetch(self, node: Hashable, what: str, size: int, time: float) -> float:
        """When a node has a file or results that it asks for at a time. What is sent there is there from then on."""
        disk = self._on_disk.setdefault(node, {})
        if what not in disk:
            disk[what] = time
            if size and self._rates.network is not None:
                disk[what] = max(time, self._sending[0]) + size / self._rates.network
                # Others come first that ask before that.
                if self._rates.at_once is not None and time <= self._sending[0]:
                    heapq.heapreplace(self._sending, disk[what])
        return max(time, disk[what])
