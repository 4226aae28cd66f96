"""A cluster that is simulated, event by event, under the scheduler that `pytest -n` has.

Each process asks `gguf_harness.pytest_plugin.schedule.Schedule` for a piece of work and does what a worker would:

- what it reads, the reference's results, is measured first. If another process is at it, this one waits for it; if
  nobody is, it does that itself, like the holder of a cache entry's lock;
- a file that is not on the node's disk is fetched, then loaded. The store of the files sends to as many nodes at once
  as its bandwidth allows, the others queue;
- results that candidates read are moved to each node once.

Processes die, by chance or of a piece; nodes are preempted with their disks and come back empty. A piece that kills its
process is reported and not tried again, as under xdist; all else that was lost is done again.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

from gguf_harness.pytest_plugin.schedule import Piece, Rates, Schedule

__all__ = ["Cluster", "Outcome", "Work", "simulate"]

_Steps = Generator[float | str, None, None]
"""What a process does: it yields seconds to pass, or the name of something that it waits for."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes and processes. Times are seconds, rates bytes per second.

    Attributes:
        nodes: how many there are.
        processes: on each node.
        network: what a node receives.
        store: what the store of all files sends to all nodes together.
        disk: from a node's disk into memory.
        start: what loading takes whatever the size.
        crash_every: mean time between crashes of one process.
        preempted_every: mean time between preemptions of one node.
        away: mean time until a preempted node, or another in its place, is there.
        restart: time until a crashed process is replaced.
    """

    nodes: int
    processes: int = 1
    network: float = 1.25e9
    store: float = math.inf
    disk: float = 2e9
    start: float = 5.0
    crash_every: float = math.inf
    preempted_every: float = math.inf
    away: float = 600.0
    restart: float = 30.0

    @property
    def width(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes

    @property
    def rates(self) -> Rates:
        """What the scheduler is told: nothing about failures, or about how busy the store is."""
        return Rates(self.start, self.disk, self.network, self.sent_at_once)

    @property
    def sent_at_once(self) -> int:
        """To how many nodes the store sends at full rate."""
        return self.nodes if math.isinf(self.store) else max(1, int(self.store / self.network))


@dataclass(frozen=True)
class Work:
    """Pieces of work.

    Attributes:
        pieces: with the seconds that the scheduler expects.
        sizes: bytes of each file.
        seconds: what a piece really takes, where it is not what is expected.
        results: bytes of a piece's results that others read.
        fatal: pieces that kill their process.
    """

    pieces: tuple[Piece, ...]
    sizes: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)
    results: Mapping[str, int] = field(default_factory=dict)
    fatal: frozenset[str] = frozenset()

    @cached_property
    def by_name(self) -> dict[str, Piece]:
        """The pieces by name."""
        return {piece.name: piece for piece in self.pieces}

    def takes(self, name: str) -> float:
        """Seconds that a piece really takes."""
        return self.seconds.get(name, self.by_name[name].seconds)


@dataclass(slots=True)
class Outcome:
    """What a simulation ended with.

    Attributes:
        ended: pieces in the order in which they ended.
        crashed: those that killed their process.
        makespan: seconds until the last one ended.
        held: seconds that nodes were there, times processes.
        useful: seconds of measuring whose results were kept.
        moved: bytes that went to nodes.
        loads: how often a file was loaded.
        retried: pieces that were begun and lost.
        lost: processes that died.
    """

    ended: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    makespan: float = 0.0
    held: float = 0.0
    useful: float = 0.0
    moved: int = 0
    loads: int = 0
    retried: int = 0
    lost: int = 0

    @property
    def utilisation(self) -> float:
        """Share of the time that was paid for in which something was measured that was kept."""
        return self.useful / self.held


@dataclass(slots=True, eq=False)
class _Node:
    name: str
    disk: set[str] = field(default_factory=set)
    fetching: set[str] = field(default_factory=set)
    since: float = 0.0
    processes: list[_Process] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Process:
    name: int
    node: _Node
    steps: _Steps | None = None
    loaded: str | None = None
    piece: str | None = None
    fetching: str | None = None


class _DiedError(Exception):
    """The process was killed by the piece that it measured."""


def simulate(work: Work, cluster: Cluster, seed: int = 0) -> Outcome:
    """Run all pieces to their end.

    Args:
        work: what is to be done.
        cluster: with what.
        seed: of the failures.

    Raises:
        RuntimeError: the scheduler gave a piece twice, or left one: the simulation found a bug.
    """
    return _Simulation(work, cluster, seed).run()


class _Simulation:
    def __init__(self, work: Work, cluster: Cluster, seed: int) -> None:
        self._work = work
        self._cluster = cluster
        self._random = random.Random(seed)  # noqa: S311 - a simulation, not a secret
        pieces = (replace(piece, results=work.results.get(piece.name, 0)) for piece in work.pieces)
        self._schedule = Schedule(pieces, work.sizes, cluster.rates)
        self._now = 0.0
        self._events: list[tuple[float, int, _Process | _Node, str]] = []
        self._order = count()
        self._names = count()
        self._waiting: dict[str, list[_Process]] = {}
        self._measuring: dict[str, _Process] = {}
        self._measured: set[str] = set()
        self._channels = [0.0] * cluster.sent_at_once
        self._outcome = Outcome()
        self._nodes = [_Node(f"node {number}") for number in range(cluster.nodes)]

    def run(self) -> Outcome:
        for node in self._nodes:
            self._start(node)
        while len(self._outcome.ended) < len(self._work.pieces):
            if not self._events:
                raise RuntimeError(f"Nobody does {sorted({*self._work.by_name} - {*self._outcome.ended})}.")
            self._now, _, subject, what = heapq.heappop(self._events)
            self._happens(subject, what)
        outcome = self._outcome
        outcome.makespan = self._now
        up = sum(self._now - node.since for node in self._nodes if node.processes)
        outcome.held += up * self._cluster.processes
        return outcome

    # -- events --------------------------------------------------------------------------------------------------------

    def _at(self, delay: float, subject: _Process | _Node, what: str) -> None:
        if not math.isinf(delay):
            heapq.heappush(self._events, (self._now + delay, next(self._order), subject, what))

    def _after(self, mean: float, subject: _Process | _Node, what: str) -> None:
        if not math.isinf(mean):
            self._at(self._random.expovariate(1 / mean), subject, what)

    def _happens(self, subject: _Process | _Node, what: str) -> None:
        if isinstance(subject, _Node):
            self._preempt(subject) if what == "preempted" else self._start(subject)
        elif what == "crash":
            if subject.steps is not None:
                self._lose(subject)
                self._at(self._cluster.restart, subject, "replaced")
        elif what == "replaced":
            # Its node may have gone, and come back, meanwhile.
            if subject in subject.node.processes:
                subject.node.processes.remove(subject)
                self._add(subject.node)
        else:
            self._go_on(subject)

    def _start(self, node: _Node) -> None:
        node.since = self._now
        for _ in range(self._cluster.processes):
            self._add(node)
        self._after(self._cluster.preempted_every, node, "preempted")

    def _add(self, node: _Node) -> None:
        process = _Process(next(self._names), node)
        node.processes.append(process)
        self._schedule.join(process.name, node.name)
        process.steps = self._works(process)
        self._after(self._cluster.crash_every, process, "crash")
        self._at(0.0, process, "goes on")

    def _preempt(self, node: _Node) -> None:
        for process in node.processes:
            if process.steps is not None:
                self._lose(process)
        self._outcome.held += (self._now - node.since) * self._cluster.processes
        # It comes back with an empty disk.
        node.name, node.processes, node.disk, node.fetching = f"{node.name}'", [], set(), set()
        self._after(self._cluster.away, node, "back")

    def _lose(self, process: _Process) -> None:
        process.steps = None
        self._outcome.lost += 1
        self._outcome.retried += len(self._schedule.lost(process.name))
        for name in [name for name, other in self._measuring.items() if other is process]:
            del self._measuring[name]
            self._wake(name)
        if process.fetching is not None:
            process.node.fetching.discard(process.fetching)
            self._wake(f"{process.node.name}:{process.fetching}")

    def _go_on(self, process: _Process) -> None:
        if process.steps is None:
            return
        try:
            step = next(process.steps)
        except StopIteration:
            process.steps = None
        except _DiedError:
            # xdist names the test during which the process died, which is that of its own piece.
            self._ends(str(process.piece))
            self._outcome.crashed.append(str(process.piece))
            self._lose(process)
            self._at(self._cluster.restart, process, "replaced")
        else:
            if isinstance(step, str):
                self._waiting.setdefault(step, []).append(process)
            else:
                self._at(step, process, "goes on")

    def _wake(self, name: str) -> None:
        for process in self._waiting.pop(name, ()):
            self._at(0.0, process, "goes on")

    # -- what a process does -------------------------------------------------------------------------------------------

    def _works(self, process: _Process) -> _Steps:
        while (piece := self._schedule.next(process.name, self._now)) is not None:
            if piece.name in self._outcome.ended:
                raise RuntimeError(f"{piece.name} was given after it had ended.")
            process.piece = piece.name
            if piece.after is not None:
                yield from self._measures(process, piece.after)
                size = self._work.results.get(piece.after, 0)
                yield from self._fetches(process, f"results of {piece.after}", size)
            yield from self._measures(process, piece.name)
            self._ends(piece.name)

    def _ends(self, name: str) -> None:
        self._schedule.end(name, self._now)
        if name in self._outcome.ended:
            raise RuntimeError(f"{name} ended twice.")
        self._outcome.ended.append(name)

    def _measures(self, process: _Process, name: str) -> _Steps:
        while name not in self._measured:
            if name in self._measuring:
                yield name
                continue
            self._measuring[name] = process
            yield from self._loads(process, self._work.by_name[name].file)
            seconds = self._work.takes(name)
            if name in self._work.fatal:
                yield seconds * self._random.random()
                # Remembered: whoever reads it has its error, and does not try again.
                self._measured.add(name)
                raise _DiedError
            yield seconds
            self._outcome.useful += seconds
            del self._measuring[name]
            self._measured.add(name)
            process.node.disk.add(f"results of {name}")
            self._wake(name)

    def _loads(self, process: _Process, file: str | None) -> _Steps:
        if file is None or process.loaded == file:
            return
        size = self._work.sizes[file]
        yield from self._fetches(process, file, size)
        yield self._cluster.start + size / self._cluster.disk
        process.loaded = file
        self._outcome.loads += 1

    def _fetches(self, process: _Process, what: str, size: int) -> _Steps:
        node = process.node
        while size and what not in node.disk:
            if what in node.fetching:
                yield f"{node.name}:{what}"
                continue
            node.fetching.add(what)
            process.fetching = what
            end = max(self._channels[0], self._now) + size / self._cluster.network
            heapq.heapreplace(self._channels, end)
            self._outcome.moved += size
            yield end - self._now
            node.fetching.discard(what)
            process.fetching = None
            node.disk.add(what)
            self._wake(f"{node.name}:{what}")
