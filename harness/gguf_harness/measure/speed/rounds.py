"""Measurements that pytest-benchmark repeats and times, round by round. They are not cached."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gguf_harness.measure.speed.client import Client
from gguf_harness.measure.speed.machine_use import Watch
from gguf_harness.measure.speed.round_tasks import (
    clear_round,
    empty_round,
    generation_round,
    load_round,
    prompt_round,
    unload_round,
)
from gguf_harness.measure.speed.served import ask_all, warm_up, watch_server
from gguf_harness.measure.speed.tasks import bench_settings

if TYPE_CHECKING:
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker import Worker
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.speed.calls import Servers

__all__ = ["Round", "Rounds", "call_overhead"]

_EMPTY_CALLS: Final = 25


@dataclass(frozen=True, slots=True)
class Round:
    """Work to time. Errors occur only from the first `prepare` on.

    Attributes:
        name: what is measured: "pp128".
        prepare: before each round, not timed.
        run: one round; returns its number of tokens, or None if it is not about tokens.
        warm_ups: rounds to discard.
        overhead: seconds of harness overhead in a round; None if it is part of the measurement.
        watch: starts watching other use of the machine, once the round is prepared.
    """

    name: str
    prepare: Callable[[], None]
    run: Callable[[], int | None]
    warm_ups: int
    overhead: Callable[[], float] | None
    watch: Callable[[], Watch]


class Rounds:
    """Rounds of a subject with the machine to itself: all other loaded models are closed first.

    Args:
        core: starts workers.
        servers: start servers.
    """

    def __init__(self, core: Core, servers: Servers) -> None:
        self._core = core
        self._servers = servers

    def prompt(self, model: Subject) -> contextlib.AbstractContextManager[Round]:
        """Prompt processing, llama-bench's pp: the model stays loaded, the cache is empty at the start of a round."""
        return self._decoding(model, "pp", self._core.options.pp, prompt_round)

    def generation(self, model: Subject) -> contextlib.AbstractContextManager[Round]:
        """Generation, llama-bench's tg."""
        return self._decoding(model, "tg", self._core.options.tg, generation_round)

    @contextlib.contextmanager
    def _decoding(self, model: Subject, kind: str, tokens: int, task: Callable[..., object]) -> Iterator[Round]:
        name, settings = f"{kind}{tokens}", self._settings(model)
        with self._prepared(model, name) as (worker, prepare):

            def run() -> int:
                worker.call(task, None, model.files, settings, tokens)
                return tokens

            yield Round(name, prepare, run, 1, lambda: call_overhead(worker), lambda: self._watch(worker, settings))

    @contextlib.contextmanager
    def load(self, model: Subject) -> Iterator[Round]:
        """Loading the model and creating a context; the files are in the system's cache after the warm-up."""
        settings = self._settings(model)
        with self._prepared(model, "load") as (worker, prepare):

            def unload() -> None:
                prepare()
                worker.call(unload_round, None)

            def run() -> None:
                worker.call(load_round, None, model.files, settings)

            yield Round("load", unload, run, 1, lambda: call_overhead(worker), lambda: self._watch(worker, settings))

    @contextlib.contextmanager
    def served(self, model: Subject) -> Iterator[Round]:
        """All requests of all clients to a running server; each round has different prompts."""
        request = self._core.options.served_request
        clients: list[Client] = []
        numbers = itertools.count(1)  # 0 is for the warm-up
        self._core.close()
        name = f"served{request.requests}x{request.max_tokens}"
        with self._core.progress.task(f"benchmark {name} of {model.name}", "rounds") as show:

            def prepare() -> None:
                show(0, request.repetitions)
                if not clients:
                    server = self._servers(model)
                    clients.append(Client(server.url, server.api_key, timeout_s=request.timeout_s))
                    warm_up(server, clients[0], request)

            def run() -> int:
                answers = ask_all(self._servers(model), clients[0], request, next(numbers))
                return sum(completion.tokens for completion in answers.completions)

            try:
                yield Round(name, prepare, run, 0, None, lambda: watch_server(self._servers(model)))
            finally:
                self._core.close()

    def _settings(self, model: Subject) -> SessionSettings:
        options = self._core.options
        return bench_settings(model.settings, max(options.pp, options.tg))

    def _watch(self, worker: Worker, settings: SessionSettings) -> Watch:
        pids = [worker.pid] if worker.pid is not None else []
        return Watch(settings.threads, pids, worker=worker.pid, on_gpu=settings.n_gpu_layers != 0)

    @contextlib.contextmanager
    def _prepared(self, model: Subject, name: str) -> Iterator[tuple[Worker, Callable[[], None]]]:
        """A separate worker with the model loaded and no token decoded."""
        rounds, done, settings = self._core.options.repetitions + 1, itertools.count(), self._settings(model)
        self._core.close()
        with (
            self._core.progress.task(f"benchmark {name} of {model.name}", "rounds") as show,
            self._core.own_worker(model.model.name) as worker,
        ):

            def load() -> None:
                worker.call(clear_round, None, model.files, settings)

            def prepare() -> None:
                show(min(next(done), rounds), rounds)
                # A model that llama.cpp cannot load is tried once, not for every benchmark.
                self._core.once(("loads", model.name), load)
                load()

            yield worker, prepare


def call_overhead(worker: Worker) -> float:
    """Seconds of a worker call whose task does nothing: the median of 25."""

    def call() -> float:
        start = time.perf_counter()
        worker.call(empty_round, None)
        return time.perf_counter() - start

    return statistics.median(call() for _ in range(_EMPTY_CALLS))
