"""How soon work can be done on a cluster at best, whatever the scheduler does."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tests.bench.cluster import Cluster, Work

__all__ = ["lower_bounds"]


def lower_bounds(work: Work, cluster: Cluster) -> dict[str, float]:
    """What no scheduler can beat without failures, by its reason, in seconds. The largest counts.

    A piece runs in one process without a break. A file is fetched and loaded before its first piece, a candidate's
    after what it reads is there. All processes are alike, so a file costs at least one fetch and one loading.
    """
    width = cluster.width
    rates = cluster.rates
    load = {file: rates.seconds(size, there=False) for file, size in work.sizes.items()}
    by_file: dict[str, list[float]] = {}
    begins: dict[str, float] = {}
    readers: dict[str, float] = {}
    for piece in work.pieces:
        seconds = work.takes(piece.name)
        read = None if piece.after is None else work.by_name[piece.after]
        ready = 0.0 if read is None else load[str(read.file)] + work.takes(read.name)
        file = str(piece.file)
        by_file.setdefault(file, []).append(seconds)
        begins[file] = min(begins.get(file, math.inf), ready)
        readers[piece.name] = ready
    total = sum(sum(seconds) for seconds in by_file.values())
    once = sum(load[file] for file in by_file)
    least = min(rates.seconds(work.sizes[file], there=True) for file in by_file)
    longest = max(
        begins[file] + load[file] + max(*seconds, sum(seconds) / min(width, len(seconds)))
        for file, seconds in by_file.items()
    )
    chain = max(ready + work.takes(name) for name, ready in readers.items())
    # From each time at which results are there: what reads these or later ones, and files that only such pieces use.
    for time in sorted({*readers.values()} - {0.0}):
        late = [work.takes(name) for name, ready in readers.items() if ready >= time]
        loads = sum(load[file] for file in by_file if begins[file] >= time)
        chain = max(chain, time + (sum(late) + loads) / width, time + _crowded(late, width))
    # From each such time: files that are sent only then, one after the other, and the shortest piece of the last one.
    rate, store = cluster.sent_at_once * cluster.network, 0.0
    for time in {*begins.values()}:
        sent = [file for file in by_file if begins[file] >= time]
        last = min(rates.seconds(work.sizes[file], there=True) + min(by_file[file]) for file in sent)
        store = max(store, time + sum(work.sizes[file] for file in sent) / rate + last)
    # Each process loads something: where there are more of them than files, some file is loaded again.
    again = max(width - len(by_file), 0) * least
    every = [second for seconds in by_file.values() for second in seconds]
    return {
        "all work": (total + once + again) / width,
        "longest file": longest,
        "reference first": chain,
        "pieces that cannot be divided": least + _crowded(every, width),
        "bytes from the store": store,
    }


def _crowded(seconds: list[float], width: int) -> float:
    """A time within which pieces that cannot be divided do not fit into so many processes.

    A makespan of T is a packing into bins of size T. The bound L2 on the number of bins is from S. Martello, P. Toth,
    "Lower bounds and reduction procedures for the bin packing problem", Discrete Applied Mathematics 28, 1990; here for
    the largest T that it refuses, found by bisection.
    """
    longest = np.sort(np.asarray(seconds))[::-1]
    if len(longest) <= width:
        return float(longest[0])
    low, high = max(float(longest[0]), float(longest.sum()) / width), float(longest.sum())
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if _bins(longest, middle) > width else (low, middle)
    return low


def _bins(longest: npt.NDArray[np.float64], size: float) -> int:
    """L2: at least so many bins of a size are needed for items, the longest first."""
    until = np.concatenate([[0.0], np.cumsum(longest)])
    small = np.concatenate([[0.0], longest[longest <= size / 2]])
    # For each threshold: items that leave no room for one of it, other items above half, and smaller ones down to it.
    alone = np.searchsorted(-longest, small - size, side="left")
    large = int(np.searchsorted(-longest, -size / 2, side="left"))
    others = np.searchsorted(-longest, -small, side="right")
    room = (large - alone) * size - (until[large] - until[alone])
    more = np.ceil((until[others] - until[large] - room) / size - 1e-9)
    return int((large + np.maximum(more, 0)).max())
