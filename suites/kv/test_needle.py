"""Does a quantized KV cache still hold what was read long ago?"""

from __future__ import annotations

import pytest

from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.kv.needle import Needles


@pytest.mark.usefixtures("chosen_file")
@pytest.mark.metric("needle_lift")
def test_facts_are_found(model: Subject, needles: Needles, record: Record) -> None:
    """Facts hidden in long texts: log-probability and rank of the answer by depth, and what reading the fact adds."""
    estimates = needles(model)
    record(estimates, detail=needles.detail)
    assert all(estimate.value >= 1 for estimate in estimates if estimate.metric == "needle_rank")


@pytest.mark.usefixtures("chosen_cache")
@pytest.mark.metric("needle_change")
def test_facts_are_found_with_this_cache(
    cached: Subject, full_cache: Subject, needles: Needles, record: Record, gate: GateCheck
) -> None:
    """The same with this KV cache, and the change of the answers' log-probability from a full one, text by text."""
    estimates = [*needles(cached), *needles.compare(cached, full_cache)]
    record(estimates, detail=needles.detail)
    gate([estimate for estimate in estimates if estimate.place.part is None])
