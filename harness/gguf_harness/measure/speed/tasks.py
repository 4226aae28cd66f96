"""Speed and memory as in llama-bench: tasks of a separate worker, so that nothing else is included.

As tools/llama-bench of llama.cpp does it: pp decodes `n_prompt` random tokens in batches, tg decodes `n_gen` random
tokens one by one, both from an empty cache or after a number of random tokens (its -d), which are decoded once, before
the time runs, and restored for each run; after a warm-up; speed is tokens over wall time. `side_by_side` repeats them,
in turns with the reference. A repetition of a small model consists of several runs, so that use by other
processes is detectable.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import psutil

from gguf_harness.engine.gpu import process_memory
from gguf_harness.engine.sequences import SavedSequence, restore_sequence, save_sequence
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.measure.speed.machine_use import Watch
from gguf_harness.metrics.timings import Repetition

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = [
    "Memory",
    "SpeedTest",
    "bench_settings",
    "decode_prompt",
    "decode_singly",
    "peak_resident",
    "read_memory",
    "start_bench",
    "timed_decode",
    "timed_load",
]

SpeedTest = Literal["pp", "tg", "load"]

_LEAST_S: Final = 0.2
"""Shortest repetition. Linux counts the time of other processes in ticks of 10 ms: with a tick lost at each end, others
that use a tenth of a core are detected from 0.2 s on.
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory use of a model.

    Attributes:
        resident_bytes: peak resident memory of the worker less what it held before the model was loaded.
        vram_bytes: GPU memory of this process; None without an NVIDIA GPU.
        weights_bytes: model buffers, as llama.cpp reports them; None if it does not.
        kv_cache_bytes: KV cache buffers.
        compute_bytes: compute buffers.
    """

    resident_bytes: int
    vram_bytes: int | None
    weights_bytes: int | None
    kv_cache_bytes: int | None
    compute_bytes: int | None


def start_bench(worker: WorkerContext, files: Sequence[Path], settings: SessionSettings) -> tuple[int, float]:
    """Load a model: (resident bytes before it, seconds that the load took)."""
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    worker.context(files, settings)
    return before, time.perf_counter() - start


def timed_decode(
    worker: WorkerContext,
    files: Sequence[Path],
    settings: SessionSettings,
    test: SpeedTest,
    tokens: int,
    depth: int = 0,
    least_s: float = _LEAST_S,
) -> Repetition:
    """One repetition of pp or tg, in tokens per second, after a warm-up of one token.

    Args:
        worker: that the task runs in.
        files: of the model.
        settings: of its context.
        test: pp or tg.
        tokens: that are timed.
        depth: tokens in the cache before them.
        least_s: seconds that all runs together take at least.
    """
    context, numbers = worker.context(files, settings), random.Random(0)  # noqa: S311 - not used for security
    decode = decode_prompt if test == "pp" else decode_singly
    context.clear()
    # The other model of the pair has used the CPU caches meanwhile.
    decode_singly(context, 1, numbers)
    on_gpu = _offloads(settings)
    # What the cache holds at the start of each run is decoded before others are watched for.
    refill = _Refill(context, depth, numbers)
    refill()
    watch = Watch(settings.threads, on_gpu=on_gpu, computes=not on_gpu)
    repetition = _repeated(refill, lambda: decode(context, tokens, numbers, depth), watch, least_s)
    return Repetition(tokens / repetition.value, repetition.use)


class _Refill:
    """Brings a context to the same depth before each run: random tokens, decoded once and then restored.

    Args:
        context: of one sequence.
        depth: tokens in its cache; 0 for an empty one.
        numbers: the tokens.
    """

    def __init__(self, context: Context, depth: int, numbers: random.Random) -> None:
        self._context, self._depth, self._numbers = context, depth, numbers
        self._state: SavedSequence | None = None

    def __call__(self) -> None:
        context = self._context
        context.clear()
        if self._depth == 0 or (self._state is not None and restore_sequence(context, self._state)):
            return
        decode_prompt(context, self._depth, self._numbers)
        self._state = save_sequence(context)


def timed_load(
    worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, least_s: float = _LEAST_S
) -> Repetition:
    """One repetition of loading the model and creating a context, in seconds; the files were read before."""
    watch = Watch(settings.threads, on_gpu=_offloads(settings))
    return _repeated(worker.close, lambda: worker.context(files, settings), watch, least_s)


def _offloads(settings: SessionSettings) -> bool:
    from gguf_harness.engine.model import offloads

    return offloads(settings.n_gpu_layers)


def _repeated(prepare: Callable[[], object], run: Callable[[], object], watch: Watch, least_s: float) -> Repetition:
    """Mean seconds of consecutive runs until they have taken `least_s`; preparation is not timed."""
    timed, runs = 0.0, 0
    while timed < least_s or not runs:
        prepare()
        start = time.perf_counter()
        run()
        timed += time.perf_counter() - start
        runs += 1
    return Repetition(timed / runs, watch.stop())


def read_memory(worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, before: int) -> Memory:
    """Peak memory of the model, after all timings.

    Args:
        worker: that the task runs in.
        files: of the model.
        settings: as it was timed.
        before: resident bytes before it was loaded.
    """
    memory = worker.context(files, settings).memory
    return Memory(
        resident_bytes=max(0, peak_resident() - before),
        vram_bytes=process_memory(),
        weights_bytes=memory.weights,
        kv_cache_bytes=memory.kv_cache,
        compute_bytes=memory.compute,
    )


def bench_settings(settings: SessionSettings, length: int) -> SessionSettings:
    """One sequence, just long enough: llama-bench's n_ctx = n_prompt + n_gen + n_depth, one test at a time."""
    return SessionSettings(
        n_ctx=length,
        n_batch=min(settings.n_batch, length),
        n_ubatch=settings.n_ubatch,
        threads=settings.threads,
        flash_attention=settings.flash_attention,
        cache_type_k=settings.cache_type_k,
        cache_type_v=settings.cache_type_v,
        rotate_kv=settings.rotate_kv,
        rope=settings.rope,
        n_gpu_layers=settings.n_gpu_layers,
        adapters=settings.adapters,
    )


def decode_prompt(context: Context, length: int, numbers: random.Random, depth: int = 0) -> None:
    """llama-bench's test_prompt: random tokens in batches, logits of the last of each, after `depth` others."""
    vocabulary = context.model.vocabulary
    tokens = np.array([numbers.randrange(vocabulary.n_tokens) for _ in range(length)], dtype=np.int32)
    if vocabulary.add_bos:
        tokens[0] = vocabulary.bos
    for start in range(0, length, context.settings.n_batch):
        part = tokens[start : start + context.settings.n_batch]
        positions = np.arange(depth + start, depth + start + len(part), dtype=np.int32)
        outputs = np.zeros(len(part), dtype=np.bool_)
        outputs[-1] = True
        context.decode(part, positions, np.zeros_like(positions), outputs)


def decode_singly(context: Context, length: int, numbers: random.Random, depth: int = 0) -> None:
    """llama-bench's test_gen: random tokens one by one, with the logits of each, after `depth` others."""
    vocabulary = context.model.vocabulary
    zero, wanted = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.bool_)
    token = vocabulary.bos if vocabulary.add_bos else numbers.randrange(vocabulary.n_tokens)
    for position in range(depth, depth + length):
        context.decode(np.array([token], dtype=np.int32), zero + position, zero, wanted)
        token = numbers.randrange(vocabulary.n_tokens)


def peak_resident() -> int:
    """Peak resident memory of this process, in bytes.

    On Linux not from getrusage, whose maximum survives exec and would include the parent process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
