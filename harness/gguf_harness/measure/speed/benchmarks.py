"""Throughput and load time, timed in rounds by pytest-benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gguf_harness.measure.speed.machine_use import Watch
from gguf_harness.metrics.timings import Use, describe_disturbance

if TYPE_CHECKING:
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.speed.rounds import Round, Rounds

__all__ = ["Throughput"]


class Throughput:
    """A measurement in rounds of pytest-benchmark, one per test.

    Args:
        benchmark: the fixture of pytest-benchmark.
        core: runs measurements.
        rounds: the rounds to time.
    """

    def __init__(self, benchmark: Any, core: Core, rounds: Rounds) -> None:
        self._benchmark = benchmark
        self._core = core
        self._rounds = rounds

    def prompt(self, model: Subject) -> None:
        """Prompt processing, llama-bench's pp."""
        self._measure(model, self._rounds.prompt(model))

    def generation(self, model: Subject) -> None:
        """Generation, llama-bench's tg."""
        self._measure(model, self._rounds.generation(model))

    def load(self, model: Subject) -> None:
        """Loading the model and creating a context."""
        self._measure(model, self._rounds.load(model))

    def served(self, model: Subject) -> None:
        """All requests of several clients to a running server."""
        server = self._core.options.llama_server
        self._benchmark.extra_info["server"] = server.name if server else "llama_cpp.server"
        self._measure(model, self._rounds.served(model))

    def _measure(self, model: Subject, opened: contextlib.AbstractContextManager[Round]) -> None:
        """Let pytest-benchmark time the rounds.

        Anything that can fail does so within a round, since it warns about an unused fixture.
        """
        benchmark, tokens = self._benchmark, []
        uses: list[Use] = []
        watches: list[Watch] = []
        with opened as timed:
            benchmark.group = timed.name
            # The parameter's own description contains a path, which is meaningless elsewhere.
            benchmark.params = {"model": model.name}

            def run() -> None:
                tokens.append(timed.run())

            # Watched from the end of one preparation to the start of the next, outside the timed round.
            def prepare() -> None:
                uses.extend(watch.stop() for watch in watches)
                watches.clear()
                timed.prepare()
                watches.append(timed.watch())

            benchmark.pedantic(run, setup=prepare, rounds=self._core.options.repetitions, warmup_rounds=timed.warm_ups)
            uses.extend(watch.stop() for watch in watches)
            benchmark.extra_info.update(self._describe(model))
            self._tell_disturbance(model, timed.name, uses[timed.warm_ups :])
            if timed.overhead is not None:
                benchmark.extra_info["call_overhead_s"] = timed.overhead()
        if tokens[-1] is not None:
            benchmark.extra_info["tokens"] = tokens[-1]
            # None with --benchmark-disable, which runs a round without timing.
            if benchmark.stats is not None:
                benchmark.extra_info["tokens_per_s"] = tokens[-1] / benchmark.stats.stats.mean

    def _tell_disturbance(self, model: Subject, name: str, uses: Sequence[Use]) -> None:
        """Warn anyone who compares the rounds later; pytest-benchmark decides whether they fail."""
        doubt = describe_disturbance(uses)
        self._benchmark.extra_info["disturbed_rounds"] = sum(use.is_disturbed for use in uses)
        self._benchmark.extra_info["disturbed_by"] = doubt
        if doubt:
            self._core.notes.warn(f"{model.name}: the benchmark {name} was disturbed: {doubt}")

    def _describe(self, model: Subject) -> dict[str, Any]:
        engine = self._core.llama_cpp.description
        self._core.notes.set("engine", engine)
        return {
            "model": model.name,
            "sha256": model.sha256,
            "quantization": model.info.quantization,
            "bits_per_weight": model.info.bits_per_weight,
            "bytes": model.info.bytes,
            "backend": ", ".join(backend["name"] for backend in engine["backends"]),
            "threads": self._core.options.threads,
            "llama_cpp": engine["llama_cpp"],
        }
