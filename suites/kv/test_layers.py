"""Which layers' caches cause the loss, and can that be predicted from keys and values alone?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.kv.cache_calls import KVCache


@pytest.mark.usefixtures("chosen_cache")
@pytest.mark.metric("kv_layer_kld")
def test_layers_of_the_cache(cached: Subject, kv_cache: KVCache, record: Record) -> None:
    """KL divergence with one layer's keys and values stored in the types, and with those of all."""
    try:
        layers = kv_cache.layers(cached)
    except NoData as error:
        pytest.skip(error.message)
    estimates = layers.caused()
    record(estimates)
    # Up to rounding, no divergence is below zero.
    assert all(estimate.value > -1e-4 for estimate in estimates)


@pytest.mark.usefixtures("chosen_cache")
@pytest.mark.metric("kv_layer_predicted")
def test_predicted_layers(cached: Subject, full_cache: Subject, kv_cache: KVCache, record: Record) -> None:
    """Change of attention's output, and of the stream, by each layer's own cache, beside the KL that it causes."""
    try:
        compared = kv_cache.compare(cached, full_cache)
        if compared.reason is not None:
            pytest.skip(compared.reason)
        record(kv_cache.predicted(cached, compared))
    except NoData as error:
        pytest.skip(error.message)
