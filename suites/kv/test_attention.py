"""What do types of the cache change in keys, values and attention, and which heads suffer?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.kv.cache_calls import CacheErrors, KVCache


@pytest.mark.usefixtures("chosen_cache")
@pytest.mark.metric("kv_key_error")
def test_keys_and_values(cached: Subject, full_cache: Subject, kv_cache: KVCache, record: Record) -> None:
    """Keys and values as the cache holds them, against those of the full cache: overall, by layer and by head."""
    estimates = _compared(kv_cache, cached, full_cache).vectors()
    record(estimates)
    assert all(estimate.value >= 0 for estimate in estimates if estimate.metric.endswith("error"))


@pytest.mark.usefixtures("chosen_cache")
@pytest.mark.metric("kv_pattern_cosine")
def test_attention_with_the_cache(cached: Subject, full_cache: Subject, kv_cache: KVCache, record: Record) -> None:
    """Attention patterns from queries and cached keys, against those of the full cache: overall and by head."""
    compared = _compared(kv_cache, cached, full_cache)
    if compared.reason is not None:
        pytest.skip(compared.reason)
    record(compared.patterns())


def _compared(kv_cache: KVCache, cached: Subject, full_cache: Subject) -> CacheErrors:
    try:
        return kv_cache.compare(cached, full_cache)
    except NoData as error:
        pytest.skip(error.message)
