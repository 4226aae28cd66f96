"""Decodes with and without taps on attention, timed in a worker: what `attention_overhead` prints is from here."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.measure.attention.behaviour import BehaviourWatch
from gguf_harness.measure.attention.tasks import AttentionRequest, tapped
from gguf_harness.measure.speed.tasks import peak_resident
from gguf_harness.metrics.token_features import TokenFeatures

__all__ = ["MAX_TOKENS", "PHYSICAL_BATCH", "Case", "Timing", "measure", "peak"]

MAX_TOKENS: Final = 1024
PHYSICAL_BATCH: Final = 512


@dataclass(frozen=True, slots=True)
class Case:
    """What is read: so many tokens of text, the first layers, and the first heads of each."""

    tokens: int
    layers: int
    heads: int

    @property
    def calls(self) -> int:
        """Patterns that are handed out: one per layer and physical batch."""
        return self.layers * -(-self.tokens // PHYSICAL_BATCH)

    @property
    def cells(self) -> int:
        """Cells of patterns that are not masked."""
        return self.layers * self.heads * self.tokens * (self.tokens + 1) // 2


@dataclass(slots=True)
class Timing:
    """Seconds of each round: the decode without taps and with them, and of that in the reader; and processor time."""

    bare: list[float] = field(default_factory=list)
    tapped: list[float] = field(default_factory=list)
    reader: list[float] = field(default_factory=list)
    bare_cpu: list[float] = field(default_factory=list)
    tapped_cpu: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Of the best rounds."""
        return min(self.tapped) / min(self.bare)

    @property
    def median_ratio(self) -> float:
        """Of the ratios of each round."""
        return statistics.median(tap / bare for tap, bare in zip(self.tapped, self.bare, strict=True))

    @property
    def cpu_ratio(self) -> float:
        """Of the best rounds' time of all processors."""
        return min(self.tapped_cpu) / min(self.bare_cpu)

    def undisturbed(self, threads: int) -> bool:
        """Whether the best rounds had the processors to themselves: llama.cpp's threads spin while they wait."""
        sides = (self.bare, self.bare_cpu), (self.tapped, self.tapped_cpu)
        return all(cpu[wall.index(min(wall))] >= 0.9 * threads * min(wall) for wall, cpu in sides)


class _Reader:
    """A watch that is given the first heads alone, and timed."""

    def __init__(self, watch: BehaviourWatch, heads: int) -> None:
        self.watch, self._heads, self.seconds = watch, heads, 0.0

    def __call__(self, tap: str, values: NDArray[np.float32]) -> None:
        start = time.perf_counter()
        self.watch(tap, values[: self._heads])
        self.seconds += time.perf_counter() - start


def measure(worker: WorkerContext, request: AttentionRequest, cases: Sequence[Case], rounds: int) -> list[Timing]:
    """Time each case in turns with the same decode without taps."""
    timings = [Timing() for _ in cases]
    model = worker.model(request.files, request.settings.n_gpu_layers)
    with contextlib.ExitStack() as stack:
        for done, (case, timing) in enumerate(zip(cases, timings, strict=True)):
            worker.progress(done, len(cases))
            stack.close()
            tokens, features = _text(model, request, case.tokens)
            reader = _Reader(BehaviourWatch(request.settings.threads), case.heads)
            bare = stack.enter_context(tapped(model, request, case.tokens, {}, []))
            read = stack.enter_context(_read(model, request, case, reader))
            for number in range(rounds + 1):
                reader.watch.begin("text", features)
                reader.seconds = 0.0
                without = _timed(functools.partial(bare.prefill, tokens))
                having = _timed(functools.partial(read.prefill, tokens))
                # The first is a warm-up.
                if number:
                    timing.bare.append(without[0])
                    timing.bare_cpu.append(without[1])
                    timing.tapped.append(having[0])
                    timing.tapped_cpu.append(having[1])
                    timing.reader.append(reader.seconds)
    return timings


def peak(worker: WorkerContext, request: AttentionRequest, case: Case, *, read: bool) -> int:
    """Most bytes that this process has held, after one decode with or without taps."""
    model = worker.model(request.files, request.settings.n_gpu_layers)
    tokens, features = _text(model, request, case.tokens)
    reader = _Reader(BehaviourWatch(request.settings.threads), case.heads)
    reader.watch.begin("text", features)
    chosen = _read(model, request, case, reader) if read else tapped(model, request, case.tokens, {}, [])
    with chosen as context:
        context.prefill(tokens)
    return peak_resident()


def _read(
    model: Model, request: AttentionRequest, case: Case, reader: _Reader
) -> contextlib.AbstractContextManager[Context]:
    return tapped(model, request, case.tokens, {"pattern": reader}, range(case.layers), views=["pattern"])


def _text(model: Model, request: AttentionRequest, n: int) -> tuple[NDArray[np.int32], TokenFeatures]:
    text = model.tokenize(request.text[: 32 * MAX_TOKENS])
    tokens = text[:n]
    pieces = [model.detokenize([token], special=True) for token in tokens.tolist()]
    return tokens, TokenFeatures.of(pieces, tokens, np.bincount(text, minlength=model.vocabulary.n_tokens))


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu
