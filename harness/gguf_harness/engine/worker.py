"""One child process per model: if llama.cpp aborts, hangs or is killed there, that is an ordinary error here.

A task is a module-level function `task(worker, *args, **kwargs)`. It is sent by reference and runs in the child,
where `worker` gives it the loaded `Model`, contexts of it, and a way to report progress. Only its result comes back:
tensors never leave the process.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, NoReturn, ParamSpec, Protocol, Self, TypeVar

from gguf_harness.engine.child import (
    child_environment,
    describe_exit,
    die_with_parent,
    log_end,
    log_tail,
    start_child,
    stop_child,
)
from gguf_harness.errors import EngineCrashed, EngineError, EngineTimeout, HarnessError, PeerGone, write_error

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model
    from gguf_harness.engine.settings import SessionSettings

__all__ = ["Call", "ProgressCallback", "Worker", "WorkerContext", "call_together", "leave", "serve"]

P = ParamSpec("P")
T = TypeVar("T")


class Closable(Protocol):
    """What holds memory of llama.cpp until it is closed."""

    def close(self) -> None:
        """Free it."""


C = TypeVar("C", bound=Closable)

_GRACE_S: Final = 5.0
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""A disk's fault, not the task's."""
_MOST_CONTEXTS: Final = 2
"""Contexts of a model kept for the next task: enough for two alternating settings without recreating caches."""

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total) in the task's own unit."""


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


class Worker:
    """The parent's end of one child process.

    The process starts with the first `call`. After a crash or a timeout the next call starts a fresh one.

    Args:
        label: name for error messages (usually the model's name).
        log: file that collects the child's output, llama.cpp's log included.
        gpu: index for CUDA_VISIBLE_DEVICES; -1 hides all GPUs; None leaves the environment as it is.
        timeout_s: longest time between two messages of the worker.
    """

    def __init__(self, label: str, log: Path, *, gpu: int | None = None, timeout_s: float = 1800.0) -> None:
        self.label = label
        self.log = log
        self._gpu = gpu
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[[subprocess.Popen[bytes]], Worker] | None = None
        self._log_start = 0
        self._requests = itertools.count(1)

    @property
    def pid(self) -> int | None:
        """Process id of the child; None if there is none."""
        return self._process.pid if self._process else None

    def call(
        self,
        task: Callable[Concatenate[WorkerContext, P], T],
        progress: ProgressCallback | None,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `task(worker, *args, **kwargs)` in the child and return its result.

        Raises:
            EngineCrashed: the child died; the message has the signal and the last lines of its log.
            EngineTimeout: the child sent nothing for the timeout and was stopped.
            HarnessError: the error of the task.
        """
        try:
            connection, request = self._send(task, args, kwargs)
            kind, payload = self._answer(connection, request, progress)
        except BaseException:
            # If the wait was interrupted (Ctrl-C, a time limit of pytest, a failing progress bar), the child may still
            # answer, and its answer must not be taken for that to the next request.
            self._kill()
            raise
        if kind == "error":
            raise payload
        return payload  # type: ignore[no-any-return]

    def begin(self, task: Callable[..., object], args: tuple[object, ...], handles: Sequence[int]) -> Connection:
        """Send a request whose answer `receive` will read, and file descriptors for it; see `call_together`.

        Returns:
            What becomes readable when there is something to receive.
        """
        connection, _ = self._send(task, args, {})
        try:
            for handle in handles:
                reduction.send_handle(connection, handle, self.pid)
        except (OSError, RuntimeError) as error:
            raise self._crashed() from error
        return connection

    def receive(self) -> tuple[Literal["result", "error", "progress"], Any]:
        """The next message on the request of `begin`.

        Raises:
            EngineCrashed: the child died.
        """
        if self._connection is None:
            raise RuntimeError("nothing was begun")
        _, kind, payload = self._receive(self._connection)
        return kind, payload

    def kill(self) -> None:
        """Stop the child at once; never fails, in any state."""
        self._kill()

    def _send(
        self, task: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, Any]
    ) -> tuple[Connection, int]:
        connection, request = self._connection or self._start(), next(self._requests)
        try:
            connection.send((request, task, args, kwargs))
        except ConnectionError as error:
            raise self._crashed() from error
        return connection, request

    def _answer(
        self, connection: Connection, request: int, progress: ProgressCallback | None
    ) -> tuple[Literal["result", "error"], Any]:
        """Wait for the answer to a request, and show progress meanwhile."""
        while True:
            number, kind, payload = self._receive(connection)
            if number != request:
                raise EngineError(
                    f"{self.label}: the worker answered request {number}, expected {request}; it was stopped.",
                    "This is a defect of gguf-harness: please report it.",
                )
            if kind != "progress":
                return kind, payload
            if progress is not None:
                progress(*payload)

    def _receive(self, connection: Connection) -> Any:
        """The next message of the child."""
        try:
            if connection.poll(self._timeout_s):
                return connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._crashed() from error
        raise EngineTimeout(
            f"{self.label}: the worker sent nothing for {self._timeout_s:g} s; it was stopped.",
            f"Raise --gguf-timeout if the model is that slow. Log: {self.log}",
        )

    def close(self) -> None:
        """Stop the child; never fails, in any state."""
        process, connection = self._process, self._connection
        if process is None or connection is None:
            return
        with contextlib.suppress(OSError, EOFError):
            connection.send(None)
            # The connection ends with the child; `wait` with a timeout would look for that at growing intervals.
            connection.poll(_GRACE_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
        self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        self._log_start = log_end(self.log)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            code = f"import {__name__} as w; w.serve({theirs.fileno()}); w.leave()"
            command = [sys.executable, "-P", "-X", "faulthandler", "-c", code]
            self._process = start_child(command, self.log, child_environment(self._gpu), pass_fds=[theirs.fileno()])
            undo.pop_all()
        self._finalizer = weakref.finalize(self, stop_child, self._process)
        self._connection = Connection(ours.detach())
        return self._connection

    def _kill(self) -> None:
        finalizer, connection = self._finalizer, self._connection
        # First, so that a second Ctrl-C here leaves no connection that could be reused.
        self._process = self._connection = self._finalizer = None
        try:
            if finalizer is not None:
                finalizer()
        finally:
            if connection is not None:
                connection.close()

    def _crashed(self) -> EngineCrashed:
        status: int | None = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(timeout=10)
        self._kill()
        return EngineCrashed(
            f"{self.label}: the worker process {describe_exit(status)}.",
            f"Last lines of {self.log}:\n{log_tail(self.log, self._log_start)}",
            status,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """A task for one of several workers.

    Attributes:
        worker: that runs it.
        task: as for `Worker.call`.
        args: its arguments.
        handles: file descriptors that the task receives (`WorkerContext.handles`).
    """

    worker: Worker
    task: Callable[..., object]
    args: tuple[object, ...] = ()
    handles: tuple[int, ...] = ()


def call_together(calls: Sequence[Call], progress: ProgressCallback | None, timeout_s: float) -> list[Any]:
    """Run tasks in several workers at once, which may talk to each other, and return their results.

    One that fails ends all: the children of the others are stopped, so that none waits for what will not come. So does
    whatever interrupts the wait, and a silence of all of them.

    Args:
        calls: each of a worker of its own. Their handles are closed here as soon as they are sent: each child then has
            the only copy, and one end of a pair of sockets tells when the process with the other is gone.
        progress: called with the progress of any of them.
        timeout_s: longest silence of all of them.

    Raises:
        EngineCrashed: a child died.
        EngineTimeout: none sent anything for the timeout.
        HarnessError: of a task; where one reports that another is gone (`PeerGone`), that of the other.
    """
    try:
        return _results(calls, progress, timeout_s)
    except BaseException:
        for call in calls:
            call.worker.kill()
        raise


def _results(calls: Sequence[Call], progress: ProgressCallback | None, timeout_s: float) -> list[Any]:
    try:
        waiting = {call.worker.begin(call.task, call.args, call.handles): call for call in calls}
    finally:
        for handle in {handle for call in calls for handle in call.handles}:
            os.close(handle)
    results: dict[Worker, Any] = {}
    gone: PeerGone | None = None
    while waiting:
        ready = wait(list(waiting), _GRACE_S if gone else timeout_s)
        if not ready:
            names = " and ".join(call.worker.label for call in waiting.values())
            silent = f"{names}: the workers sent nothing for {timeout_s:g} s; they were stopped."
            raise gone or EngineTimeout(silent, "Raise --gguf-timeout if the models are that slow.")
        for connection in ready:
            call = waiting[connection]  # type: ignore[index]
            kind, payload = call.worker.receive()
            if kind == "progress":
                if progress is not None:
                    progress(*payload)
                continue
            del waiting[connection]  # type: ignore[arg-type]
            if isinstance(payload, PeerGone):
                gone = payload  # The other one knows why.
            elif kind == "error":
                raise payload
            results[call.worker] = payload
    if gone is not None:
        raise gone
    return [results[call.worker] for call in calls]


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
