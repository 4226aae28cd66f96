"""One child process per model: if llama.cpp aborts, hangs or is killed there, that is an ordinary error here.

A task is a module-level function `task(worker, *args, **kwargs)`. It is sent by reference and runs in the child,
where `worker` gives it the loaded `Model`, contexts of it, and a way to report progress. Only its result comes back:
tensors never leave the process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, Self, TypeVar

from gguf_harness.engine.child import (
    child_environment,
    describe_exit,
    log_end,
    log_tail,
    start_child,
    stop_child,
)
from gguf_harness.errors import EngineCrashed, EngineError, EngineTimeout, PeerGone

if TYPE_CHECKING:
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["Call", "ProgressCallback", "Worker", "call_together"]

P = ParamSpec("P")
T = TypeVar("T")


_GRACE_S: Final = 5.0

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total) in the task's own unit."""


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
            code = f"from gguf_harness.engine import worker_context as w; w.serve({theirs.fileno()}); w.leave()"
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
