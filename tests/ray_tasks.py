"""Tasks that workers of a Ray cluster do in tests and benches."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import CorpusError, FilesLost


def double(worker: WorkerContext, value: int) -> int:
    worker.progress(1, 2)
    worker.progress(2, 2)
    return 2 * value


def sleep(worker: WorkerContext, seconds: float, started: Path | None = None) -> float:
    """Sleeps, and says that it has begun by a file that all nodes of a test see."""
    if started is not None:
        (started / f"{time.time_ns()}-{os.getppid()}").touch()
    for done in range(10):
        worker.progress(done, 10)
        time.sleep(seconds / 10)
    return seconds


def where(_: WorkerContext) -> tuple[int, int]:
    """Process of the worker, and of its actor."""
    return os.getpid(), os.getppid()


def die(_: WorkerContext, number: int) -> None:
    print("the last words of llama.cpp", flush=True)
    os.kill(os.getpid(), number)
    time.sleep(5)


def fail(_: WorkerContext) -> None:
    raise CorpusError("no such text", "try another")


def lose(_: WorkerContext, folder: Path) -> None:
    raise FilesLost(f"{folder} is damaged.")


def write(_: WorkerContext, source: Path | None, folder: Path, size: int) -> dict[str, object]:
    """Writes a file into a folder, of what another one holds."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = 0 if source is None else int.from_bytes(source.read_bytes()[:4], "little")
    content = np.random.default_rng(seed).bytes(size)
    (folder / "content.bin").write_bytes(content)
    return {"file": folder / "content.bin", "first": content[0]}


def stop_actor(_: WorkerContext, once: Path | None) -> str:
    """Ends its own actor: the first time, or always."""
    if once is not None and once.exists():
        return "done"
    if once is not None:
        once.touch()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    return "never"
