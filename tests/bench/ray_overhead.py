"""What a call through a Ray actor costs, and how many actors work at once.

    python -m tests.bench.ray_overhead [--most 8] [--calls 200]

Actors with a processor of their own each, on one node that claims as many; tasks sleep, so that processors are not what
is measured. Overhead: the median of a call that does nothing, less that of a worker here. Speedup: 8 tasks of a second
for each actor, from one process of Python for each, as `pytest -n` has them; the bound is their number.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from gguf_harness.cluster.actors import Actors
from gguf_harness.cluster.connection import Cluster, Needs, disconnect, join, start
from gguf_harness.cluster.host import HostSetup
from gguf_harness.cluster.ray_worker import RayWorker
from gguf_harness.engine.worker import Worker
from tests.ray_cluster import ray_nodes
from tests.ray_tasks import sleep, where

MOST_OVERHEAD_MS, LEAST_OF_BOUND = 20.0, 0.9
_TASKS, _SECONDS = 8, 1.0


def main() -> None:
    """Measure and print; ends with 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--calls", type=int, default=200)
    known = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as folder, ray_nodes(Path(folder), one=known.most) as nodes:
        cache = Path(folder) / "session"
        setup = HostSetup("bench", cache, ("", b""), 10**9, False, 60.0, {})
        cluster = start(nodes.address, Needs(1, 0), setup, None)
        there = _call_ms(RayWorker(_actors(cluster, cache), "model", 0), known.calls)
        with Worker("model", Path(folder) / "log") as worker:
            here = _call_ms(worker, known.calls)
        print(f"overhead of a call: {there - here:.1f} ms ({there:.1f} ms there, {here:.1f} ms here)")
        missed |= there - here > MOST_OVERHEAD_MS
        disconnect()
        count = 2
        while count <= known.most:
            took = _together(cluster, cache, count)
            speedup = count * _TASKS * _SECONDS / took
            print(f"{count} actors: {took:.2f} s for {count * _TASKS} tasks of {_SECONDS:g} s, {speedup:.2f} times one")
            missed |= speedup < LEAST_OF_BOUND * count
            count *= 2
    sys.exit(1 if missed else 0)


def _actors(cluster: Cluster, cache: Path) -> Actors:
    return Actors(
        cluster, cache, session="bench", cache_limit=10**9, timeout_s=60.0, warn=print
    )  # fmt: skip


def _call_ms(worker: RayWorker | Worker, calls: int) -> float:
    times = []
    with worker:
        for _ in range(calls):
            began = time.perf_counter()
            worker.call(where, None)
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[calls // 10 :])


def _together(cluster: Cluster, cache: Path, count: int) -> float:
    """Seconds from the first task of any process to the last; actors are there before."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    processes = [
        context.Process(target=_work, args=(cluster.to_text(), cache, barrier)) for _ in range(count)
    ]  # fmt: skip
    for process in processes:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()
    took = time.perf_counter() - began
    for process in processes:
        process.join()
    return took


def _work(cluster: str, cache: Path, barrier: Barrier) -> None:
    known = Cluster.from_text(cluster)
    join(known, None)
    actors = _actors(known, cache)
    with RayWorker(actors, "model", 0) as worker:
        worker.call(where, None)
        barrier.wait()
        for _ in range(_TASKS):
            worker.call(sleep, None, _SECONDS)
        barrier.wait()
    actors.end()
    disconnect()


if __name__ == "__main__":
    main()
