"""What a run was measured on."""

from __future__ import annotations

import platform
import sys
from typing import Any

import psutil

from harness.engine.gpu import list_gpus

__all__ = ["describe_machine"]


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


def _processor() -> str:
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a regular file
                for line in file:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
