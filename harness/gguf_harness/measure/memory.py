"""Whether memory holds several models at once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from gguf_harness.engine.gpu import free_memory

__all__ = ["available_memory", "hold_together", "needed_memory"]

_HEADROOM: Final = 1.25
"""Memory needed by loaded models relative to their files: caches, compute buffers, other processes."""


def needed_memory(files: Iterable[Path]) -> float:
    """Bytes that models take when they are loaded, with what comes with them."""
    return _HEADROOM * sum(file.stat().st_size for file in files)


def available_memory(*, on_gpu: bool) -> float:
    """Bytes that may still be used: of this machine or its container, and of the GPU."""
    free = free_memory() if on_gpu else None
    return min(psutil.virtual_memory().available, container_memory(), math.inf if free is None else free)


def hold_together(files: Iterable[Path], *, on_gpu: bool) -> bool:
    """Whether memory holds the models with these files at once."""
    return needed_memory(files) <= available_memory(on_gpu=on_gpu)


def container_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that a container may still use, ignoring its file cache; infinite without a limit."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        limit, current = (int((cgroup / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
        files = next(int(line.split()[1]) for line in lines if line.startswith("file "))
        return limit - current + files
    return math.inf
