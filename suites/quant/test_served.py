"""What do clients of a served model see?"""

from __future__ import annotations

import pytest

from harness.fixture_types import GateCheck, Record, Served
from harness.measure.client import Percentiles
from harness.metrics.speed import summarize_repetitions
from harness.options import Options
from harness.records import Estimate
from harness.runner import LoadedModel


@pytest.mark.metric("served_tokens_per_s")
def test_serving(model: LoadedModel, served: Served, record: Record, gate: GateCheck, harness_options: Options) -> None:
    """Throughput and latency with several clients at once; a request that fails is an error."""
    result = served(model)
    request = harness_options.served_request
    detail = f"{request.concurrency} clients, {request.max_tokens} tokens each"
    throughput = summarize_repetitions("served_tokens_per_s", result.tokens_per_s)
    record(throughput, detail=f"{detail}, {throughput.n} repetitions after a warm-up")
    latencies = []
    for name, values in (("ttft", result.ttft_s), ("itl", result.itl_s)):
        latency = Percentiles.of(values)
        latencies += [
            Estimate(f"served_{name}_{share}_s", getattr(latency, share), latency.n) for share in ("p50", "p99")
        ]
    record(*latencies, detail=detail)
    assert throughput.value > 0
    gate.where_set(throughput, *latencies)
