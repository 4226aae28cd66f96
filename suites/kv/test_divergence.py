"""What do types of the KV cache cost, alone and on top of quantized weights?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.kv.calls import CacheCost


@pytest.mark.metric("kv_kld")
def test_cache_keeps_the_distribution(
    cached: Subject, full_cache: Subject, cache_cost: CacheCost, record: Record, gate: GateCheck
) -> None:
    """The same file with a full KV cache and with this one, token by token."""
    estimates = cache_cost.alone(cached, full_cache)
    record(estimates)
    gate(estimates)


@pytest.mark.metric("kv_total_kld")
def test_cost_of_weights_and_cache_together(
    cached: Subject, full_cache: Subject, reference: Subject, cache_cost: CacheCost, record: Record, gate: GateCheck
) -> None:
    """From the reference with a full KV cache: what weights and cache cost together, and whether they interact."""
    estimates = cache_cost.together(cached, full_cache, reference)
    record(estimates)
    gate(estimates)
