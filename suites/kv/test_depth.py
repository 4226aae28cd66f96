"""Does a KV cache cost more the deeper it is filled?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.kv.calls import CacheCost


@pytest.mark.metric("kld_by_position")
def test_divergence_by_position(cached: Subject, full_cache: Subject, cache_cost: CacheCost, record: Record) -> None:
    """KL, same top, PPL ratio and change of probability in each octave of the position in the window."""
    estimates = cache_cost.by_depth(cached, full_cache).buckets
    record(estimates)
    assert all(estimate.place.part for estimate in estimates)


@pytest.mark.metric("nll_slope")
def test_loss_does_not_grow_with_depth(
    cached: Subject, full_cache: Subject, cache_cost: CacheCost, record: Record, gate: GateCheck
) -> None:
    """Slope of the loss and of KL over log2 of the position."""
    try:
        slopes = cache_cost.by_depth(cached, full_cache).slopes
    except NoData as error:
        pytest.skip(f"{error.message} {error.hint}")
    for estimate, p_value in slopes:
        record(estimate, detail=f"for each doubling of the context; p = {p_value:.2g} that it does not rise")
    gate([estimate for estimate, _ in slopes])
