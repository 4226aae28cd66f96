"""Contexts side by side over one loaded model.

Threads that share a context meet after every operation of the graph; contexts never wait for each other. So what can be
decoded independently (windows, prompts) is dealt out to several contexts, each with its share of the threads.
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
    """How many contexts decode side by side with these settings; one where a GPU takes part."""
    from gguf_harness.engine.model import offloads

    return 1 if offloads(settings.n_gpu_layers) else settings.lanes


class Lanes(Generic[LaneT]):
    """Contexts that work is dealt out to, one thread each: a context manager, which closes them.

    They are opened before anything decodes, and closed when nothing does any more: llama.cpp's log has one receiver
    for the whole process.

    Args:
        count: how many.
        open_lane: opens one: a `Context`, or what owns one together with the readers of its taps.
    """

    def __init__(self, count: int, open_lane: Callable[[], LaneT]) -> None:
        self._idle: SimpleQueue[LaneT] = SimpleQueue()
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                self._idle.put(stack.enter_context(open_lane()))
            self._pool = stack.enter_context(ThreadPoolExecutor(count))
            # Whatever ends the work early: what has not begun never does, and what has is waited for.
            stack.callback(self._pool.shutdown, cancel_futures=True)
            self._stack = stack.pop_all()

    def map(
        self,
        work: Callable[[LaneT, ItemT], ResultT],
        items: Sequence[ItemT],
        progress: ProgressCallback | None = None,
    ) -> Iterator[ResultT]:
        """Results of `work(lane, item)` in the order of the items, which begin in this order too.

        Whoever needs no more results stops asking for them: what has not begun then never does. The same goes for what
        is behind an item that fails; its error comes in its place.

        Args:
            work: called in a thread of the lane.
            items: what to work on.
            progress: called with (results so far, all of them), at first with none.
        """
        failed = threading.Event()

        def run(item: ItemT) -> ResultT:
            if failed.is_set():
                raise CancelledError  # never seen: the error of an earlier item is
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
        for done, result in enumerate(self._pool.map(run, items), 1):
            if progress is not None:
                progress(done, len(items))
            yield result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
