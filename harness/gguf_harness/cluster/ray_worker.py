"""A worker on another machine, with the interface of `engine.worker.Worker`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from gguf_harness.cluster.actors import Actors
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["RayWorker"]

P = ParamSpec("P")
T = TypeVar("T")


class RayWorker:
    """The session's end of a worker process that is the child of a Ray actor.

    After a crash, or the loss of its node, the next call starts a fresh one.

    Args:
        actors: runs it.
        label: name for error messages (usually the model's name).
        files_bytes: size of its model's files, for the memory that its place must have.
    """

    def __init__(self, actors: Actors, label: str, files_bytes: int) -> None:
        self.label = label
        self._actors = actors
        self._files_bytes = files_bytes

    def call(
        self,
        task: Callable[Concatenate[WorkerContext, P], T],
        progress: ProgressCallback | None,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `task(worker, *args, **kwargs)` there and return its result.

        Raises:
            EngineCrashed: the child died, as for a worker here; or the call was lost with its actor three times.
            EngineTimeout: the child sent nothing for the timeout and was stopped.
            HarnessError: the error of the task.
        """
        self._actors.opened(self.label, self._files_bytes)
        result: T = self._actors.call(self.label, progress, (task, args, kwargs))
        return result

    def close(self) -> None:
        """Stop the child; never fails, in any state."""
        self._actors.closed(self.label)

    def kill(self) -> None:
        """Stop it at once, with its actor; never fails, in any state."""
        self._actors.closed(self.label)
        self._actors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
