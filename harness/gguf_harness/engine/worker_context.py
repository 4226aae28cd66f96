"""The child's end of a worker: runs the tasks that it is sent, with the loaded model and its contexts."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Protocol, TypeVar

from gguf_harness.engine.child import die_with_parent
from gguf_harness.errors import EngineError, HarnessError, write_error

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model
    from gguf_harness.engine.settings import SessionSettings

__all__ = ["WorkerContext", "leave", "serve"]


class Closable(Protocol):
    """What holds memory of llama.cpp until it is closed."""

    def close(self) -> None:
        """Free it."""


C = TypeVar("C", bound=Closable)

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""A disk's fault, not the task's."""
_MOST_CONTEXTS: Final = 2
"""Contexts of a model kept for the next task: enough for two alternating settings without recreating caches."""


class WorkerContext:
    """The context of a task inside the child process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._request = 0
        self._sending = threading.Lock()
        self._model: Model | None = None
        # Least recently used first.
        self._contexts: dict[SessionSettings, Context] = {}
        self._kept: tuple[Hashable, Closable] | None = None

    def begin(self, request: int) -> None:
        """Set the request of the running task."""
        self._request = request

    def progress(self, done: int, total: int) -> None:
        """Report progress to the parent, from any thread. This also detects that the parent is gone: sending fails."""
        with self._sending:
            self._connection.send((self._request, "progress", (done, total)))

    def handles(self, count: int) -> list[int]:
        """File descriptors that came with the request, to be closed by the task: `Call.handles`."""
        return [reduction.recv_handle(self._connection) for _ in range(count)]

    def model(self, files: Sequence[Path], n_gpu_layers: int) -> Model:
        """The loaded model; kept until another one is requested, so that only one is in memory."""
        from gguf_harness.engine.model import Model

        if self._model is None or (self._model.files, self._model.n_gpu_layers) != (tuple(files), n_gpu_layers):
            self.close()
            self._model = Model(files, n_gpu_layers)
        return self._model

    def context(self, files: Sequence[Path], settings: SessionSettings) -> Context:
        """A context of the model with these settings; kept for later tasks, closing the least recently used ones.

        It may contain earlier tokens: clear it first. Taps need a separate context.
        """
        from gguf_harness.engine.context import Context

        model = self.model(files, settings.n_gpu_layers)
        context = self._contexts.pop(settings, None)
        if context is None:
            while len(self._contexts) >= _MOST_CONTEXTS:
                self._contexts.pop(next(iter(self._contexts))).close()
            context = Context(model, settings)
        self._contexts[settings] = context
        return context

    def keep(self, key: Hashable, make: Callable[[], C]) -> C:
        """Something that belongs to the loaded model, kept for the next task that asks for it by the same key.

        One thing is kept; it is closed before another is made, and with the model.
        """
        if self._kept is None or self._kept[0] != key:
            self.drop_kept()
            made = make()
            self._kept = (key, made)
            return made
        return self._kept[1]  # type: ignore[return-value]

    def drop_kept(self) -> None:
        """Close what is kept, if anything."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].close()

    def close(self) -> None:
        """Free the loaded model and its contexts, if any."""
        self.drop_kept()
        while self._contexts:
            self._contexts.popitem()[1].close()
        if self._model is not None:
            self._model.close()
            self._model = None


def serve(file_descriptor: int) -> None:
    """Main function of the child process: run tasks until the parent sends stop or is gone."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(file_descriptor)
    worker = WorkerContext(connection)
    try:
        while (message := connection.recv()) is not None:
            request, task, args, kwargs = message
            worker.begin(request)
            connection.send((request, *_run(worker, task, args, kwargs)))
    except (EOFError, ConnectionError, BrokenPipeError):
        pass  # the parent is gone: nobody to report to
    finally:
        worker.close()


def leave() -> NoReturn:
    """End the child at once.

    The interpreter's own end would free module by module what the system frees anyway: 50 ms, for which the parent
    would wait.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - what libraries have registered
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _run(
    worker: WorkerContext, task: Callable[..., object], args: Any, kwargs: Any
) -> tuple[Literal["result", "error"], object]:
    try:
        return "result", task(worker, *args, **kwargs)
    except (BrokenPipeError, ConnectionError):
        raise
    except HarnessError as error:
        return "error", error
    except MemoryError:
        traceback.print_exc()
        return "error", EngineError("Out of memory in the worker.", "Use a smaller --gguf-ctx or --gguf-batch.")
    except OSError as error:
        traceback.print_exc()
        if error.errno in _NO_ROOM:
            return "error", write_error(Path(os.fsdecode(error.filename or "A file of the worker")), error)
        return "error", EngineError(f"{type(error).__name__} in the worker: {error}", "The traceback is in its log.")
    except Exception as error:  # a defect in a task fails this call, not the session
        traceback.print_exc()
        return "error", EngineError(f"{type(error).__name__} in the worker: {error}", "The traceback is in its log.")
