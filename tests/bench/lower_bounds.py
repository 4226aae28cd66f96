"""How soon work can be done on a cluster at best, whatever the scheduler does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tests.bench.cluster import Cluster, Work

__all__ = ["lower_bounds"]

_NEAR: Final = 1e-4
"""How near bisection comes."""


@dataclass(frozen=True, slots=True)
class _File:
    """What is certain about a file, whoever works on it.

    Attributes:
        seconds: of its pieces, the longest first.
        reads: when the results that each of them reads are there at the earliest; 0 if it reads none.
        fetch: seconds until it is on a node.
        load: seconds from there into memory.
    """

    seconds: npt.NDArray[np.float64]
    reads: npt.NDArray[np.float64]
    fetch: float
    load: float

    @property
    def asked(self) -> float:
        """When a process first asks for it: a piece waits for what it reads before its file is fetched."""
        return float(self.reads.min())

    @property
    def loaded(self) -> float:
        """When it is in memory at the earliest."""
        return self.asked + self.fetch + self.load


def lower_bounds(work: Work, cluster: Cluster) -> dict[str, float]:
    """What no scheduler can beat without failures, by its reason, in seconds. The largest counts.

    A piece runs in one process without a break. A file is fetched to a node and loaded into a process before its pieces
    run there, a candidate's after what it reads is there. All processes are alike.
    """
    files = _files(work, cluster)
    width = cluster.width
    times = sorted({float(time) for file in files.values() for time in file.reads})
    pieces = np.concatenate([file.seconds for file in files.values()])
    longest = max(
        file.loaded + max(float(file.seconds[0]), float(file.seconds.sum()) / min(width, len(file.seconds)))
        for file in files.values()
    )
    late = [0.0]
    # From each time at which results are there: what reads these or later ones.
    for time in times[1:]:
        seconds = np.concatenate([file.seconds[file.reads >= time] for file in files.values()])
        late += [time + _crowded(seconds, width), _volume(list(files.values()), width, time)]
    return {
        "all work": _volume(list(files.values()), width, 0.0),
        "longest file": longest,
        "reference first": max(*late, *(_results_moved(suite, files, work, cluster) for suite in _read(work)), 0.0),
        "pieces that cannot be divided": min(file.load for file in files.values()) + _crowded(pieces, width),
        "bytes from the store": _store(work, cluster, files),
    }


def _read(work: Work) -> set[str]:
    return {piece.after for piece in work.pieces if piece.after is not None}


def _files(work: Work, cluster: Cluster) -> dict[str, _File]:
    rates = cluster.rates
    pieces: dict[str, list[tuple[float, float]]] = {}
    for piece in work.pieces:
        read = None if piece.after is None else work.by_name[piece.after]
        ready = 0.0
        if read is not None:
            ready = rates.seconds(work.sizes[str(read.file)], there=False) + work.takes(read.name)
        pieces.setdefault(str(piece.file), []).append((work.takes(piece.name), ready))
    files = {}
    for file, both in pieces.items():
        seconds, reads = np.asarray(sorted(both, reverse=True)).T
        load = rates.seconds(work.sizes[file], there=True)
        files[file] = _File(seconds, reads, rates.seconds(work.sizes[file], there=False) - load, load)
    return files


def _volume(files: list[_File], width: int, time: float) -> float:
    """Work and loading that are left at a time, shared by all processes.

    Of a piece that can begin before the time, at most the seconds in between are done by then, by one process. A
    process that works on a file for the first time has loaded it, after it was asked for and fetched to that node. So
    until T it does at most T less that time of the file's pieces, and they need at least as many processes as bins of
    that size (`_bins`), each with a loading. If there are more processes than that, each has loaded something, or has
    done nothing for at least as long. What this adds up to falls with T: bisection finds the T that are refused.
    """
    left, once = 0.0, 0.0
    for file in files:
        begins = np.maximum(file.reads, file.loaded)
        left += float(np.maximum(file.seconds - np.maximum(time - begins, 0.0), 0.0).sum())
        once += max(file.fetch + file.load - max(time - file.asked, 0.0), 0.0)
    # Files that nobody has asked for by then: every loading of them is still to come.
    later = [file for file in files if file.asked >= time]
    least = min(file.load for file in files)

    def needed(end: float) -> float:
        processes = [_bins(file.seconds, end - file.loaded) for file in later]
        again = sum((number - 1) * file.load for number, file in zip(processes, later, strict=True))
        idle = max(width - sum(processes), 0) * least if time == 0.0 else 0.0
        return time + (left + once + again + idle) / width

    low = max(file.loaded + float(file.seconds[0]) for file in files)
    refused = _largest_refused(lambda end: needed(end) > end, low, max(needed(low), low))
    # What is needed by a later time is needed by all times before: exact where the number of loadings does not change.
    later_end = refused * (1 + _NEAR)
    return max(refused, min(needed(later_end), later_end))


def _results_moved(suite: str, files: dict[str, _File], work: Work, cluster: Cluster) -> float:
    """The pieces that read the results of one, the i-th longest of them for each i, on the processes that can begin.

    The process that measured these results still has to load another file. Those of its node may begin at once, those
    of other nodes when the results are there, which are sent to `sent_at_once` nodes at a time. The i longest pieces
    run in i processes, one of which is at best the i-th that can begin, or two of them in the same one.
    """
    first = work.by_name[suite]
    ready = files[str(first.file)].fetch + files[str(first.file)].load + work.takes(suite)
    readers = sorted(
        (piece for piece in work.pieces if piece.after == suite), key=lambda piece: -work.takes(piece.name)
    )
    if any(piece.file == first.file for piece in readers):
        return 0.0
    load = min(files[str(piece.file)].load for piece in readers)
    moving = work.results.get(suite, 0) / cluster.network
    begin = [ready + load] + [ready] * (cluster.processes - 1)
    for node in range(1, cluster.nodes):
        begin += [ready + math.ceil(node / cluster.sent_at_once) * moving] * cluster.processes
    begin.sort()
    ends = [0.0]
    for place, piece in enumerate(readers):
        seconds = work.takes(piece.name)
        alone = begin[place] + seconds if place < len(begin) else math.inf
        ends.append(min(alone, begin[0] + 2 * seconds))
    return max(ends)


def _store(work: Work, cluster: Cluster, files: dict[str, _File]) -> float:
    """From each time on: files that are asked for only then, one after another, and the shortest piece of the last."""
    rate, longest = cluster.sent_at_once * cluster.network, 0.0
    for time in {file.asked for file in files.values()}:
        sent = {name: file for name, file in files.items() if file.asked >= time}
        last = min(file.load + float(file.seconds[-1]) for file in sent.values())
        longest = max(longest, time + sum(work.sizes[name] for name in sent) / rate + last)
    return longest


def _crowded(seconds: npt.NDArray[np.float64], width: int) -> float:
    """A time within which pieces that cannot be divided do not fit into so many processes.

    A makespan of T is a packing into bins of size T.
    """
    longest = np.sort(seconds)[::-1]
    if len(longest) <= width:
        return float(longest[0])
    low, high = max(float(longest[0]), float(longest.sum()) / width), float(longest.sum())
    return _largest_refused(lambda size: _bins(longest, size) > width, low, high)


def _largest_refused(refused: Callable[[float], bool], low: float, high: float) -> float:
    """The largest time that is refused, within 1/10,000, or `low`, below which all are; by bisection."""
    while high - low > _NEAR * low:
        middle = (low + high) / 2
        low, high = (middle, high) if refused(middle) else (low, middle)
    return low


def _bins(longest: npt.NDArray[np.float64], size: float) -> int:
    """At least so many bins of a size are needed for items, the longest first.

    The bound L2 on their number is from S. Martello, P. Toth, "Lower bounds and reduction procedures for the bin
    packing problem", Discrete Applied Mathematics 28, 1990.
    """
    if longest.sum() <= size:
        return 1
    until = np.concatenate([[0.0], np.cumsum(longest)])
    small = np.concatenate([[0.0], longest[longest <= size / 2]])
    # For each threshold: items that leave no room for one of it, other items above half, and smaller ones down to it.
    alone = np.searchsorted(-longest, small - size, side="left")
    large = int(np.searchsorted(-longest, -size / 2, side="left"))
    others = np.searchsorted(-longest, -small, side="right")
    room = (large - alone) * size - (until[large] - until[alone])
    more = np.ceil((until[others] - until[large] - room) / size - 1e-9)
    return int((large + np.maximum(more, 0)).max())
