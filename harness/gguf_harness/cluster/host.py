"""What runs on a node, in a Ray actor: it hosts workers as the session's process would, and survives their crashes."""

from __future__ import annotations

import math
import os
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from gguf_harness import __version__
from gguf_harness.cluster.node_files import NODE_CACHE, Changes, Incoming, NodeFiles, node_cache
from gguf_harness.cluster.parcels import Damaged, Parcel, Piece, SentFile
from gguf_harness.engine.machine import describe_machine
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_tasks import build_files, describe_engine, identify_engine
from gguf_harness.errors import FilesLost, HarnessError, StoreError
from gguf_harness.store.paths import file_name

__all__ = ["Answer", "Host", "HostSetup", "Missing", "Progress", "Settled"]

_PROGRESS_EVERY_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class HostSetup:
    """What a host is told when it starts.

    Attributes:
        session: name that all processes of a session share.
        cache: the session's cache, where the session sees it.
        token: a file in it, and its content.
        cache_limit: most bytes of the node's cache.
        gpu: whether layers may be on a GPU.
        looking: it only says what the node is: it takes nothing of it, and sees a GPU all the same.
        timeout_s: as for `Worker`.
        environment: the session's variables that numbers and threads depend on.
    """

    session: str
    cache: Path
    token: tuple[str, bytes]
    cache_limit: int
    gpu: bool
    timeout_s: float
    environment: dict[str, str]
    looking: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the running task."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Missing:
    """The task did not begin: the node lacks these."""

    what: tuple[SentFile | Piece, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """The task ended.

    Attributes:
        kind: what `data` is.
        data: its result or its error, as `NodeFiles.pack` gives it.
        changes: what it has done at places of the cache.
        of_node: an error of this node, not of the model: another one may do better.
    """

    kind: Literal["result", "error"]
    data: bytes
    changes: Changes = field(default_factory=Changes)
    of_node: bool = False


Answer = Progress | Missing | Settled


class Host:
    """The actor. It has one caller, whose requests it does one after the other.

    Args:
        setup: of the session.
    """

    def __init__(self, setup: HostSetup) -> None:
        self._setup = setup
        # Ray sets it to the processors of an actor; children of a session on this machine would not have it either.
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.update(setup.environment)
        if setup.looking:
            # Ray hides all GPUs from an actor that asks for none.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        token = None if NODE_CACHE in os.environ else setup.token
        self._files = NodeFiles(node_cache(), setup.session, setup.cache, token, setup.cache_limit)
        self._workers: dict[str, Worker] = {}
        # A child ends with the thread that has started it: this one lasts.
        self._thread = ThreadPoolExecutor(1, "worker")
        self._arriving: Incoming | None = None

    # -- about the node ---------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """Which node this is, its version of the harness, its machine, and whether it sees the session's cache."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return {
            "node": node,
            "harness": __version__,
            "machine": describe_machine(),
            "same_cache": self._files.is_shared,
        }

    def engine(self) -> dict[str, Any]:
        """The node's llama.cpp: its description, and what numbers depend on.

        Raises:
            HarnessError: it is missing, or not supported.
        """

        def describe() -> dict[str, Any]:
            description = self._worker("llama.cpp").call(describe_engine, None)
            build = self._files.hash_of(build_files())
            return {"description": description, "key": identify_engine(description, build)}

        try:
            return self._thread.submit(describe).result()
        finally:
            self.close("llama.cpp")

    # -- files ------------------------------------------------------------------------------------------------------

    def expect(self, what: SentFile | Piece) -> tuple[bool, str | None]:
        """Begin to receive a file, whose blocks come next.

        Returns:
            (whether it is still needed: another actor of this node may have received it; why this node cannot take it).
        """
        try:
            self._arriving = self._files.receive(what)
        except StoreError as error:
            return False, str(error)
        return self._arriving is not None, None

    def block(self, content: bytes) -> str | None:
        """The next block of the expected file; returns why this node cannot take it."""
        if self._arriving is None:
            return "nothing is expected"
        try:
            self._arriving.write(content)
        except StoreError as error:
            self._arriving = None
            return str(error)
        return None

    def end(self) -> str | None:
        """After the last block; returns why the file is not there now."""
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return "nothing is expected"
        try:
            arriving.finish()
        except (StoreError, Damaged) as error:
            return str(error)
        return None

    def read(self, place: str, offset: int, size: int) -> bytes:
        """A block of a file that a task has written."""
        return self._files.read(place, offset, size)

    # -- tasks ------------------------------------------------------------------------------------------------------

    def run(self, label: str, parcel: Parcel) -> Iterator[Answer]:
        """Run a task in the worker of a label, if all that it needs is here.

        Yields:
            `Missing`, or `Progress` now and then, and at last `Settled`.
        """
        try:
            missing = self._files.missing(parcel)
            if missing:
                yield Missing(tuple(missing))
                return
            task, args, kwargs = self._files.load(parcel)
        except HarnessError as error:
            yield self._failed(error, of_node=True)
            return
        reports: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        running = self._thread.submit(self._call, label, task, args, kwargs, lambda *report: reports.put(report))
        running.add_done_callback(lambda _: reports.put(None))
        told = -math.inf
        while (report := reports.get()) is not None:
            if report[0] >= report[1] or time.monotonic() - told >= _PROGRESS_EVERY_S:
                told = time.monotonic()
                yield Progress(*report)
        yield self._settled(running, parcel)

    def _call(self, label: str, task: Any, args: Any, kwargs: Any, report: Callable[[int, int], None]) -> Any:
        return self._worker(label).call(task, report, *args, **kwargs)

    def _settled(self, running: Future[Any], parcel: Parcel) -> Settled:
        try:
            return Settled("result", self._files.pack(running.result()), self._files.changes(parcel))
        except HarnessError as error:
            if isinstance(error, FilesLost):
                self._files.forget_hashes()  # the session measures them again; what is here is not believed
            # What could not be written is this node's fault. What is wrong with a model is so everywhere.
            return self._failed(error, of_node=isinstance(error, StoreError) and not isinstance(error, FilesLost))

    def _failed(self, error: HarnessError, *, of_node: bool) -> Settled:
        return Settled("error", self._files.pack(error.with_traceback(None)), of_node=of_node)

    def _worker(self, label: str) -> Worker:
        if label not in self._workers:
            # The first of those that Ray has given to this actor.
            log, gpu = self._files.log(file_name(label)), 0 if self._setup.gpu else -1
            self._workers[label] = Worker(label, log, gpu=gpu, timeout_s=self._setup.timeout_s)
        return self._workers[label]

    def close(self, label: str) -> None:
        """Stop the worker of a label, if there is one."""
        worker = self._workers.pop(label, None)
        if worker is not None:
            worker.close()
