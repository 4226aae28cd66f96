"""How fast are the models, and what memory do they take?"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.fixture_types import GateCheck, Record, Speed
from harness.measure.speed import SpeedResult
from harness.metrics.speed import summarize_repetitions
from harness.options import Options
from harness.records import Estimate
from harness.runner import LoadedModel


@pytest.mark.metric("pp_tokens_per_s")
def test_prompt_processing(
    model: LoadedModel, speed: Speed, record: Record, gate: GateCheck, harness_options: Options
) -> None:
    """Tokens per second of a prompt, llama-bench's pp."""
    estimate = _summarize("pp_tokens_per_s", speed(model).pp_tokens_per_s)["pp_tokens_per_s"]
    record(estimate, detail=f"pp{harness_options.pp}, {estimate.n} repetitions after a warm-up")
    assert estimate.value > 0
    gate.where_set(estimate, measure=lambda other: _summarize("pp_tokens_per_s", speed(other).pp_tokens_per_s))


@pytest.mark.metric("tg_tokens_per_s")
def test_generation(
    model: LoadedModel, speed: Speed, record: Record, gate: GateCheck, harness_options: Options
) -> None:
    """Tokens per second of generation, llama-bench's tg."""
    estimate = _summarize("tg_tokens_per_s", speed(model).tg_tokens_per_s)["tg_tokens_per_s"]
    record(estimate, detail=f"tg{harness_options.tg}, {estimate.n} repetitions after a warm-up")
    assert estimate.value > 0
    gate.where_set(estimate, measure=lambda other: _summarize("tg_tokens_per_s", speed(other).tg_tokens_per_s))


@pytest.mark.metric("load_s")
def test_load_time(model: LoadedModel, speed: Speed, record: Record, gate: GateCheck) -> None:
    """Seconds to load the model and create a context."""
    estimate = _summarize("load_s", speed(model).load_s)["load_s"]
    record(estimate, detail="file cache warm" if estimate.n > 1 else "one load, file cache as it was")
    assert estimate.value > 0
    gate.where_set(estimate, measure=lambda other: _summarize("load_s", speed(other).load_s))


@pytest.mark.metric("peak_memory_bytes")
def test_memory(model: LoadedModel, speed: Speed, record: Record, gate: GateCheck) -> None:
    """Peak memory of a process that loads the model, reads a prompt and generates; and what it is made of."""
    result = speed(model)
    peak, *parts = _memory(result).values()
    on_gpu = "GPU memory of the worker process"
    resident = "resident memory of the worker, less what it held before loading"
    record(peak, detail=on_gpu if result.vram_bytes is not None else resident)
    record(*parts, detail="as llama.cpp reports it")
    assert peak.value > 0
    gate.where_set(peak, *parts, measure=lambda other: _memory(speed(other)))


def _summarize(metric: str, values: Sequence[float]) -> dict[str, Estimate]:
    return {metric: summarize_repetitions(metric, values)}


def _memory(result: SpeedResult) -> dict[str, Estimate]:
    """Bytes by metric: the peak, and the parts that llama.cpp reported."""
    peak = result.resident_bytes if result.vram_bytes is None else result.vram_bytes
    parts = {metric: getattr(result, metric) for metric in ("weights_bytes", "kv_cache_bytes", "compute_bytes")}
    known = {"peak_memory_bytes": peak} | {metric: value for metric, value in parts.items() if value is not None}
    return {metric: Estimate(metric, value, 1) for metric, value in known.items()}
