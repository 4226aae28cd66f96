"""NVIDIA GPUs, as NVML sees them. Everything here answers "none" on a machine without one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

__all__ = ["driver_version", "list_gpus", "process_memory"]


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The initialized library, or None where there is no driver."""
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
    """Version of the NVIDIA driver, which compiles kernels for the GPU at hand; None where there is none."""
    with _nvml() as nvml:
        return str(nvml.nvmlSystemGetDriverVersion()) if nvml else None


def process_memory() -> int | None:
    """GPU memory of this process in bytes over all GPUs; None where it cannot be told."""
    found: int | None = None
    with _nvml() as nvml:
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                # None inside some containers and on WSL, where the driver does not say.
                if process.pid == os.getpid() and process.usedGpuMemory is not None:
                    found = (found or 0) + int(process.usedGpuMemory)
    return found
