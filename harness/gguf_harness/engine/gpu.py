"""NVIDIA GPUs through NVML. All functions return "none" on a machine without one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import psutil

__all__ = ["describe_guests", "driver_version", "free_memory", "list_gpus", "process_memory"]


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The initialized library; None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def list_gpus() -> list[dict[str, Any]]:
    """Name and memory in bytes of every GPU."""
    gpus = []
    with _nvml() as nvml:
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = nvml.nvmlDeviceGetName(handle)
            gpus.append({"name": str(name), "memory_bytes": int(nvml.nvmlDeviceGetMemoryInfo(handle).total)})
    return gpus


def driver_version() -> str | None:
    """Version of the NVIDIA driver, which compiles kernels for the GPU; None without one."""
    with _nvml() as nvml:
        return str(nvml.nvmlSystemGetDriverVersion()) if nvml else None


def process_memory() -> int | None:
    """GPU memory of this process in bytes over all GPUs; None if unknown."""
    used_bytes: int | None = None
    with _nvml() as nvml:
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                # None inside some containers and on WSL, where the driver does not report it.
                if process.pid == os.getpid() and process.usedGpuMemory is not None:
                    used_bytes = (used_bytes or 0) + int(process.usedGpuMemory)
    return used_bytes


def free_memory() -> int | None:
    """Free memory in bytes of the GPU that has most of it; None without one."""
    with _nvml() as nvml:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount() if nvml else 0)]
        return max((int(nvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles), default=None)


def describe_guests(ours: set[int]) -> str | None:
    """Disturbances on the GPUs that we use, in words: other processes that compute there, or a lowered clock.

    Args:
        ours: our process ids; their children also count as ours.
    """
    with _nvml() as nvml:
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            pids = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
            guests = {pid for pid in pids if not _belongs(pid, ours)}
            # Skip GPUs without our processes. In some containers NVML shows no processes.
            if guests and guests != pids:
                who = "another process" if len(guests) == 1 else f"{len(guests)} other processes"
                return f"{who} had GPU {index}"
            if guests != pids and _is_slowed(nvml, handle):
                return f"heat or power held GPU {index} down"
    return None


def _belongs(pid: int, ours: set[int]) -> bool:
    try:
        return pid in ours or psutil.Process(pid).ppid() in ours
    except psutil.Error:
        return False


def _is_slowed(nvml: Any, handle: Any) -> bool:
    """Whether heat or the power supply holds the clock down. A GPU at its usual power limit is not slowed."""
    with contextlib.suppress(nvml.NVMLError):
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        slowed = (
            nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        )
        return bool(reasons & slowed)
    return False
