"""What do clients of a served model see?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguf_harness.errors import MissingExtra
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.options import Options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.speed.calls import Served, Speed
from gguf_harness.measure.speed.client import Percentiles
from gguf_harness.measure.speed.served import ServedResult
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.timings import streams_disagree
from gguf_harness.store.run_part import RunPart


@pytest.mark.metric("served_tokens_per_s")
def test_serving(
    model: Subject,
    served: Served,
    record: Record,
    gate: GateCheck,
    harness_options: Options,
    run_part: RunPart,
) -> None:
    """Throughput and latency with several clients at once; a request that fails is an error."""
    result = _serve(model, served, run_part)
    request = harness_options.served_request
    detail = f"{request.concurrency} clients, {request.max_tokens} tokens each"
    throughput = result.throughput.estimate("served_tokens_per_s")
    when = f", {result.measured}"
    record(throughput, detail=f"{detail}, {throughput.n} repetitions after a warm-up{when}")
    latencies = [
        Estimate(f"served_{name}_{share}_s", getattr(latency, share), latency.n, doubt=throughput.doubt)
        for name, latency in (("ttft", Percentiles.of(result.ttft_s)), ("itl", Percentiles.of(result.itl_s)))
        for share in ("p50", "p99")
    ]
    record(latencies, detail=f"{detail}{when}")
    if throughput.doubt:
        run_part.warn(f"{model.name}: what its clients see is in doubt (?): {throughput.doubt}")
    assert throughput.value > 0
    gate(throughput, latencies)


@pytest.mark.metric("served_single_tokens_per_s")
def test_a_single_stream_agrees_with_generation(
    model: Subject, served: Served, speed: Speed, record: Record, gate: GateCheck, run_part: RunPart
) -> None:
    """Compare a single client's speed with llama-bench's generation speed: two ways to the same number."""
    result = _serve(model, served, run_part)
    if not result.single.ours:
        pytest.skip("answers of one token have no time between tokens; see --gguf-tg")
    single = result.single.estimate("served_single_tokens_per_s")
    bench = speed(model).timings["tg"].estimate("tg_tokens_per_s")
    if not (single.doubt or bench.doubt) and streams_disagree(bench.value, single.value):
        doubt = (
            f"a server's only client gets {single.value:.4g} tokens/s, and generation by itself {bench.value:.4g}:"
            " further apart than serving explains"
        )
        single = replace(single, doubt=doubt)
        run_part.warn(f"{model.name}: no claim on its speed: {doubt}")
    record(single, detail=f"one client, {single.n} requests, {result.measured}")
    assert single.value > 0
    gate(single)


def _serve(model: Subject, served: Served, run_part: RunPart) -> ServedResult:
    """Without the extra that serves, the rest of this suite still decides; a gate that needs this stays undecided."""
    try:
        return served(model)
    except MissingExtra as missing:
        reason = f"no model was served: {missing.message} {missing.hint}"
        run_part.warn(reason)
        pytest.skip(reason)
