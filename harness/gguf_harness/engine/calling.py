"""What runs tasks in a process of its own: a child of this process, or one of a Ray actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["TaskWorker"]

P = ParamSpec("P")
T = TypeVar("T")


class TaskWorker(Protocol):
    """`engine.worker.Worker`, or `cluster.ray_worker.RayWorker`."""

    label: str

    def call(
        self,
        task: Callable[Concatenate[WorkerContext, P], T],
        progress: ProgressCallback | None,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `task(worker, *args, **kwargs)` there and return its result; raises HarnessError."""

    def close(self) -> None:
        """Stop the process; never fails, in any state."""

    def kill(self) -> None:
        """Stop it at once; never fails, in any state."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *_: object) -> None:
        """`close`."""
