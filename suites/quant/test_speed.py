"""How fast are the models, and what memory do they take?"""

from __future__ import annotations

import pytest

from harness.fixture_types import Record, Speed
from harness.metrics.speed import summarize_repetitions
from harness.options import Options
from harness.records import Estimate
from harness.runner import LoadedModel


@pytest.mark.metric("pp_tokens_per_s")
def test_prompt_processing(model: LoadedModel, speed: Speed, record: Record, harness_options: Options) -> None:
    """Tokens per second of a prompt, llama-bench's pp."""
    estimate = summarize_repetitions("pp_tokens_per_s", speed(model).pp_tokens_per_s)
    record(estimate, detail=f"pp{harness_options.pp}, {estimate.n} repetitions after a warm-up")
    assert estimate.value > 0


@pytest.mark.metric("tg_tokens_per_s")
def test_generation(model: LoadedModel, speed: Speed, record: Record, harness_options: Options) -> None:
    """Tokens per second of generation, llama-bench's tg."""
    estimate = summarize_repetitions("tg_tokens_per_s", speed(model).tg_tokens_per_s)
    record(estimate, detail=f"tg{harness_options.tg}, {estimate.n} repetitions after a warm-up")
    assert estimate.value > 0


@pytest.mark.metric("load_s")
def test_load_time(model: LoadedModel, speed: Speed, record: Record) -> None:
    """Seconds to load the model and create a context."""
    estimate = summarize_repetitions("load_s", speed(model).load_s)
    record(estimate, detail="file cache warm" if estimate.n > 1 else "one load, file cache as it was")
    assert estimate.value > 0


@pytest.mark.metric("peak_memory_bytes")
def test_memory(model: LoadedModel, speed: Speed, record: Record) -> None:
    """Peak memory of a process that loads the model, reads a prompt and generates; and what it is made of."""
    result = speed(model)
    if result.vram_bytes is not None:
        peak, kind = result.vram_bytes, "GPU memory of the worker process"
    else:
        peak, kind = result.resident_bytes, "resident memory of the worker, less what it held before loading"
    record(Estimate("peak_memory_bytes", peak, 1), detail=kind)
    for metric in ("weights_bytes", "kv_cache_bytes", "compute_bytes"):
        value = getattr(result, metric)
        if value is not None:
            record(Estimate(metric, value, 1), detail="as llama.cpp reports it")
    assert peak > 0
