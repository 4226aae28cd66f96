"""What llama.cpp alone takes for a prompt and for a greedy continuation: tasks of a worker, timed in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gguf_harness.engine.context import Context
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["time_decode", "time_generation"]


def time_decode(
    worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, tokens: Sequence[int]
) -> tuple[float, float]:
    """Seconds of (a context for these tokens, their decode with the logits of each), without taps."""
    n = len(tokens)
    settings = replace(settings, n_ctx=n, n_batch=n, n_ubatch=min(settings.n_ubatch, n))
    model = worker.model(files, settings.n_gpu_layers)
    start = time.perf_counter()
    with Context(model, settings) as context:
        made = time.perf_counter()
        context.logits(np.array(tokens, dtype=np.int32))
        decoded = time.perf_counter()
    return made - start, decoded - made


def time_generation(
    worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, tokens: Sequence[int], limit: int
) -> tuple[list[int], float]:
    """(generated tokens, seconds per token) of `Context.generate`, without the first, which waits for the prompt."""
    settings = replace(settings, n_ctx=256, n_batch=256, n_ubatch=256)
    context = worker.context(files, settings)
    generated, start = [], 0.0
    for token in context.generate(np.array(tokens, dtype=np.int32), limit):
        start = start or time.perf_counter()
        generated.append(token)
    return generated, (time.perf_counter() - start) / max(len(generated) - 1, 1)
