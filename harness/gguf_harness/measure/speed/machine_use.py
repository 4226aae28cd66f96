"""Use of the machine by other processes during a timing, from the system's counters.

Linux: ticks of each core that this process may use (/proc/stat, the host's share of a virtual machine included), and
how long our threads were ready without a core (/proc/<pid>/task/*/schedstat, in nanoseconds). Elsewhere psutil's times
of the whole machine. Other processes on cores that this process may not use are not counted, although they share memory
bandwidth.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from gguf_harness.engine.gpu import describe_guests
from gguf_harness.metrics.timings import Use

__all__ = ["Watch", "usable_cores"]

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.stat")
_BUSY_FIELDS: Final = (0, 1, 2, 5, 6, 7)
"""Columns of a line of /proc/stat: user, nice, system, irq, softirq, steal (proc(5)). User and nice include guests."""
_STEAL_FIELD: Final = 7
_TRUSTED_OWN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Counters:
    wall: float
    own: float
    busy: float
    stolen: float
    waited: float | None
    throttled: float


class Watch:
    """Watches the machine from its creation to `stop`.

    Args:
        threads: number of threads of the timed work.
        pids: other processes that belong to the timed work, with their children; this process always does.
        worker: the process whose threads wait only because of other processes; 0 for this one. None if there is none: a
            server and its clients wait for each other.
        on_gpu: whether it uses a GPU.
        computes: whether the CPU does all of the work.
    """

    def __init__(
        self,
        threads: int,
        pids: Sequence[int] = (),
        *,
        worker: int | None = 0,
        on_gpu: bool = False,
        computes: bool = False,
    ) -> None:
        self._threads = threads
        self._pids = tuple(pids)
        self._worker = worker
        self._on_gpu = on_gpu
        self._computes = computes
        self._start = _read(self._pids, worker)

    def stop(self) -> Use:
        """Return what happened since the start."""
        start, end = self._start, _read(self._pids, self._worker)
        cores = usable_cores()
        own, busy = end.own - start.own, end.busy - start.busy
        # In sandboxes the counters may not change: they give no information about others.
        is_told = not (own > _TRUSTED_OWN_S and busy < own / 2)
        waited = None if start.waited is None or end.waited is None else max(0.0, end.waited - start.waited)
        return Use(
            wall_s=end.wall - start.wall,
            threads=self._threads,
            cores=len(cores),
            own_s=own,
            others_s=max(0.0, busy - own) if is_told else None,
            stolen_s=max(0.0, end.stolen - start.stolen),
            # Tolerance: one tick per core, and for each other process the rest of a tick in both modes.
            uncertain_s=(len(cores) + 2 * len(self._pids)) / os.sysconf("SC_CLK_TCK"),
            waited_s=waited,
            throttled_s=max(0.0, end.throttled - start.throttled),
            load=os.getloadavg()[0],
            gpu=describe_guests({os.getpid(), os.getppid(), *self._pids}) if self._on_gpu else None,
            computes=self._computes,
        )


def usable_cores() -> list[int]:
    """Cores that this process may run on."""
    with contextlib.suppress(AttributeError):  # available only on Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _read(pids: Sequence[int], worker: int | None) -> _Counters:
    busy, stolen = _busy()
    own = time.process_time() + sum(_cpu_seconds(process) for process in _family(pids))
    waited = None if worker is None else _waited(worker or os.getpid())
    return _Counters(time.perf_counter(), own, busy, stolen, waited, _throttled())


def _family(pids: Sequence[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            yield process
            yield from process.children(recursive=True)


def _cpu_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _busy() -> tuple[float, float]:
    """(CPU seconds of all processes, CPU seconds taken by the host) on the cores that this process may use."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        times = psutil.cpu_times()
        return float(times.user + times.system + getattr(times, "nice", 0.0)), 0.0
    names = {f"cpu{core}" for core in usable_cores()}
    rows = [[int(word) for word in line.split()[1:]] for line in lines if line.split(" ", 1)[0] in names]
    tick = 1 / os.sysconf("SC_CLK_TCK")
    return sum(row[field] for row in rows for field in _BUSY_FIELDS) * tick, sum(r[_STEAL_FIELD] for r in rows) * tick


def _waited(pid: int) -> float | None:
    """Total seconds that threads of a process were ready to run but had no core."""
    waited = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
                waited += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e9


def _throttled() -> float:
    """Seconds for which the CPU quota has stopped this container so far."""
    with contextlib.suppress(OSError, ValueError):
        for line in _QUOTA.read_text(encoding="ascii").splitlines():
            if line.startswith("throttled_usec "):
                return int(line.split()[1]) / 1e6
    return 0.0
