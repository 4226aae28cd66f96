"""How fast are the models, also compared with the reference, and how much memory do they use?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.options import Options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.speed.calls import Speed
from gguf_harness.measure.speed.side_by_side import SpeedResult
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.timings import Timing


@pytest.mark.metric("pp_tokens_per_s")
def test_prompt_processing(
    model: Subject, speed: Speed, record: Record, gate: GateCheck, harness_options: Options
) -> None:
    """Tokens per second of a prompt, llama-bench's pp."""
    result = speed(model)
    estimate = result.timings["pp"].estimate("pp_tokens_per_s")
    record(estimate, detail=f"pp{harness_options.pp}, {estimate.n} repetitions after a warm-up{_when(result)}")
    assert estimate.value > 0
    _gate(gate, speed, estimate, result.timings["pp"])


@pytest.mark.metric("tg_tokens_per_s")
def test_generation(model: Subject, speed: Speed, record: Record, gate: GateCheck, harness_options: Options) -> None:
    """Tokens per second of generation, llama-bench's tg."""
    result = speed(model)
    estimate = result.timings["tg"].estimate("tg_tokens_per_s")
    record(estimate, detail=f"tg{harness_options.tg}, {estimate.n} repetitions after a warm-up{_when(result)}")
    assert estimate.value > 0
    _gate(gate, speed, estimate, result.timings["tg"])


@pytest.mark.metric("load_s")
def test_load_time(model: Subject, speed: Speed, record: Record, gate: GateCheck) -> None:
    """Seconds to load the model and create a context."""
    result = speed(model)
    estimate = result.timings["load"].estimate("load_s")
    record(estimate, detail=f"file cache warm{_when(result)}")
    assert estimate.value > 0
    _gate(gate, speed, estimate, result.timings["load"])


@pytest.mark.metric("tg_speed_ratio")
def test_speed_beside_the_reference(candidate: Subject, speed: Speed, record: Record, gate: GateCheck) -> None:
    """Speed relative to the reference, both timed in turns."""
    result = speed(candidate)
    gated, doubts = [], []
    for test, metric in (("pp", "pp_speed_ratio"), ("tg", "tg_speed_ratio"), ("load", "load_ratio")):
        timing = result.timings[test]
        if (ratio := timing.ratio(metric)) is not None:
            record(ratio, detail=f"{ratio.n} of each, {_order(timing)}{_when(result)}")
        else:
            doubts.append(f"{metric}: {timing.ratio_doubt}")
        gated.append(ratio or _in_doubt(timing, metric))
    gate(gated)
    if doubts:
        pytest.skip("; ".join(doubts))


@pytest.mark.metric("peak_memory_bytes")
def test_memory(model: Subject, speed: Speed, record: Record, gate: GateCheck) -> None:
    """Peak memory of a process that loads the model, reads a prompt and generates, with its parts."""
    result = speed(model)
    peak, *parts = _memory(result)
    on_gpu = "GPU memory of the worker process"
    resident = "resident memory of the worker, less what it held before loading"
    record(peak, detail=on_gpu if result.memory.vram_bytes is not None else resident)
    record(parts, detail="as llama.cpp reports it")
    assert peak.value > 0
    gate(peak, parts, relative_to=lambda other: _memory(speed(other)))


def _gate(gate: GateCheck, speed: Speed, estimate: Estimate, timing: Timing) -> None:
    """Decide on a timing; a limit relative to the reference is applied to the ratio timed in turns."""
    metric = estimate.metric

    def beside(reference: Subject) -> Estimate:
        if not timing.theirs:
            speed(reference)  # raises the error that prevented the timing
        return timing.reference_estimate(metric)

    def ratio(_: Subject) -> Mapping[str, Estimate]:
        return {metric: timing.ratio(metric) or _in_doubt(timing, metric)}

    gate(estimate, relative_to=beside, paired=ratio)


def _in_doubt(timing: Timing, metric: str) -> Estimate:
    """Placeholder for a missing ratio: it decides nothing, and its value is never shown."""
    return replace(timing.estimate(metric), doubt=timing.ratio_doubt)


def _order(timing: Timing) -> str:
    return "in turns" if timing.in_turns else "the reference before and after"


def _when(result: SpeedResult) -> str:
    return f", {result.measured}"


def _memory(result: SpeedResult) -> list[Estimate]:
    """Bytes: the peak, and the parts that llama.cpp reported."""
    memory = result.memory
    peak = memory.resident_bytes if memory.vram_bytes is None else memory.vram_bytes
    parts = {metric: getattr(memory, metric) for metric in ("weights_bytes", "kv_cache_bytes", "compute_bytes")}
    known = {"peak_memory_bytes": peak} | {metric: value for metric, value in parts.items() if value is not None}
    return [Estimate(metric, value, 1) for metric, value in known.items()]
