"""Speed and memory in llama-bench's way. Runs in a worker of its own, so that nothing else counts in.

As tools/llama-bench of llama.cpp does it: pp decodes `n_prompt` random tokens in batches, tg decodes `n_gen` random
tokens one by one, both from an empty cache, after a warm-up, `repetitions` times; speed is tokens over wall time.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil

from harness.engine.gpu import process_memory
from harness.engine.settings import SessionSettings

if TYPE_CHECKING:
    from harness.engine.session import Session
    from harness.engine.worker import WorkerContext

__all__ = [
    "SpeedRequest",
    "SpeedResult",
    "bench_settings",
    "decode_prompt",
    "decode_singly",
    "measure_speed",
    "peak_resident",
]

_RELOAD_BELOW_S: Final = 3.0
_RELOADS: Final = 3


@dataclass(frozen=True, slots=True)
class SpeedRequest:
    """What to time.

    Attributes:
        files: the GGUF file or its splits.
        settings: threads, batches, attention and cache types; the context is sized by the test as llama-bench does.
        n_prompt: tokens of the prompt-processing test.
        n_gen: tokens of the generation test.
        repetitions: how often each is timed.
    """

    files: tuple[Path, ...]
    settings: SessionSettings
    n_prompt: int
    n_gen: int
    repetitions: int


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """Timings and memory.

    Attributes:
        pp_tokens_per_s: one value per repetition.
        tg_tokens_per_s: one value per repetition.
        load_s: one value per load; the first load is a warm-up unless loading is slow.
        resident_bytes: peak resident memory of the worker less what it held before the model was loaded.
        vram_bytes: GPU memory of this process; None without an NVIDIA GPU.
        weights_bytes: model buffers, as llama.cpp reports them; None where it does not.
        kv_cache_bytes: KV cache buffers.
        compute_bytes: compute buffers.
    """

    pp_tokens_per_s: list[float]
    tg_tokens_per_s: list[float]
    load_s: list[float]
    resident_bytes: int
    vram_bytes: int | None
    weights_bytes: int | None
    kv_cache_bytes: int | None
    compute_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def measure_speed(context: WorkerContext, request: SpeedRequest) -> SpeedResult:
    """Time loading, prompt processing and generation, and read the memory that it took."""
    from harness.engine.session import Session

    steps = 2 * (request.repetitions + 1)
    context.progress(0, steps)
    before = psutil.Process().memory_info().rss
    length = max(request.n_prompt, request.n_gen)
    settings = bench_settings(request.settings, length)
    loads, session = _timed_loads(lambda: Session(request.files, settings))
    try:
        done = 0

        def timed(run: Callable[[], None], tokens: int) -> float:
            nonlocal done
            session.clear()
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            done += 1
            context.progress(done, steps)
            return tokens / elapsed

        numbers = random.Random(0)  # noqa: S311 - any tokens will do
        timed(lambda: decode_prompt(session, request.n_prompt, numbers), request.n_prompt)
        pp = [
            timed(lambda: decode_prompt(session, request.n_prompt, numbers), request.n_prompt)
            for _ in range(request.repetitions)
        ]
        timed(lambda: decode_singly(session, 1, numbers), 1)
        tg = [
            timed(lambda: decode_singly(session, request.n_gen, numbers), request.n_gen)
            for _ in range(request.repetitions)
        ]
        memory = session.memory
        vram = process_memory()
    finally:
        session.close()
    return SpeedResult(
        pp_tokens_per_s=pp,
        tg_tokens_per_s=tg,
        load_s=loads,
        resident_bytes=max(0, peak_resident() - before),
        vram_bytes=vram,
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
        n_gpu_layers=settings.n_gpu_layers,
    )


def _timed_loads(load: Callable[[], Session]) -> tuple[list[float], Session]:
    start = time.perf_counter()
    session = load()
    first = time.perf_counter() - start
    if first > _RELOAD_BELOW_S:
        return [first], session
    times = []
    for _ in range(_RELOADS):
        session.close()
        start = time.perf_counter()
        session = load()
        times.append(time.perf_counter() - start)
    return times, session


def decode_prompt(session: Session, length: int, numbers: random.Random) -> None:
    """llama-bench's test_prompt: random tokens in batches, logits of the last of each."""
    tokens = np.array([numbers.randrange(session.vocabulary.n_tokens) for _ in range(length)], dtype=np.int32)
    if session.vocabulary.add_bos:
        tokens[0] = session.vocabulary.bos
    for start in range(0, length, session.settings.n_batch):
        part = tokens[start : start + session.settings.n_batch]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        outputs = np.zeros(len(part), dtype=np.bool_)
        outputs[-1] = True
        session.decode(part, positions, np.zeros_like(positions), outputs)


def decode_singly(session: Session, length: int, numbers: random.Random) -> None:
    """llama-bench's test_gen: random tokens one by one, with the logits of each."""
    zero, wanted = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.bool_)
    token = session.vocabulary.bos if session.vocabulary.add_bos else numbers.randrange(session.vocabulary.n_tokens)
    for position in range(length):
        session.decode(np.array([token], dtype=np.int32), zero + position, zero, wanted)
        token = numbers.randrange(session.vocabulary.n_tokens)


def peak_resident() -> int:
    """Most resident memory that this process has had, in bytes.

    On Linux not from getrusage: its maximum survives exec, and would be that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
