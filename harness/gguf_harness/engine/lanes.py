"""Parallel contexts of one loaded model.

Threads of one context synchronize after every operation of the graph; contexts never wait for each other. So
independent work (windows, prompts) is distributed over several contexts, each with its share of the threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from gguf_harness.engine.settings import SessionSettings

if TYPE_CHECKING:
    from gguf_harness.engine.worker import ProgressCallback

__all__ = ["Lanes", "count_lanes"]

LaneT = TypeVar("LaneT", bound=contextlib.AbstractContextManager[Any])
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def count_lanes(settings: SessionSettings) -> int:
    """Number of parallel contexts with these settings; one if a GPU is used."""
    from gguf_harness.engine.model import offloads

    return 1 if offloads(settings.n_gpu_layers) else settings.lanes


class Lanes(Generic[LaneT]):
    """Contexts for parallel work, one thread each: a context manager, which closes them.

    They are opened before any decode and closed after all of them: llama.cpp's log has one receiver for the whole
    process.

    Args:
        count: how many.
        open_lane: opens a lane: a `Context`, or an object that owns one with the readers of its taps.
    """

    def __init__(self, count: int, open_lane: Callable[[], LaneT]) -> None:
        self._count = count
        self._idle: SimpleQueue[LaneT] = SimpleQueue()
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                self._idle.put(stack.enter_context(open_lane()))
            self._pool = stack.enter_context(ThreadPoolExecutor(count))
            # If the work ends early, pending items are cancelled and running ones are awaited.
            stack.callback(self._pool.shutdown, cancel_futures=True)
            self._stack = stack.pop_all()

    def map(
        self,
        work: Callable[[LaneT, ItemT], ResultT],
        items: Sequence[ItemT],
        progress: ProgressCallback | None = None,
    ) -> Iterator[ResultT]:
        """Yield results of `work(lane, item)` in the order of the items, which also start in this order.

        Callers that need no more results stop iterating: pending items are then cancelled. If an item fails, its error
        is raised in its place, and later items are cancelled.

        Args:
            work: called in a thread of the lane.
            items: what to work on.
            progress: called with (results so far, total), first with 0.
        """
        failed = threading.Event()

        def run(item: ItemT) -> ResultT:
            if failed.is_set():
                raise CancelledError  # never raised: the error of an earlier item is
            lane = self._idle.get()
            try:
                return work(lane, item)
            except BaseException:
                failed.set()
                raise
            finally:
                self._idle.put(lane)

        if progress is not None:
            progress(0, len(items))
        # One lane has nothing to do at the same time: no item is begun that nobody may ask for.
        results = self._pool.map(run, items) if self._count > 1 else map(run, items)
        for done, result in enumerate(results, 1):
            if progress is not None:
                progress(done, len(items))
            yield result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is running, and close the contexts."""
        self._stack.close()
