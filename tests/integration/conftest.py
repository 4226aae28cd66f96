"""Fixtures of tests that run tasks of workers in their own process."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import Pipe

import pytest

from gguf_harness.engine.worker_context import WorkerContext


@pytest.fixture
def worker() -> Iterator[WorkerContext]:
    """What a task is given, in this process; nobody listens to its progress."""
    here, there = Pipe()
    worker = WorkerContext(there)
    yield worker
    worker.close()
    here.close()
    there.close()
