"""Description of the machine of a run."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any, Final

import psutil

from gguf_harness.engine.gpu import driver_version, list_gpus

__all__ = ["describe_machine", "identify_machine"]

_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def describe_machine() -> dict[str, Any]:
    """System, processor, memory and GPUs, as JSON types; no host name, no user."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cpu": _processor(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": list_gpus(),
    }


def identify_machine() -> dict[str, Any]:
    """Everything that speed depends on, for cache keys: processor, usable cores, memory, GPUs and their driver."""
    process = psutil.Process()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": _processor(),
        "features": hashlib.sha256((_cpuinfo("flags") or _cpuinfo("Features")).encode()).hexdigest(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        "usable": len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count(),
        "quota": _cpu_quota(),
        # On one machine, it differs by some pages between boots.
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [[gpu["name"], round(gpu["memory_bytes"] / 2**30)] for gpu in list_gpus()],
        "driver": driver_version(),
    }


def _cpu_quota() -> str | None:
    """The CPU quota of a container, as Linux gives it."""
    try:
        return _CPU_QUOTA.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(name: str) -> str:
    """A value of the first processor in Linux's list; empty if missing."""
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a regular file
                for line in file:
                    if line.partition(":")[0].strip() == name:
                        return line.partition(":")[2].strip()
        except OSError:
            pass
    return ""
