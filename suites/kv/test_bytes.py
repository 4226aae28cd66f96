"""How much memory does the cache of keys and values take?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.kv.cache_calls import KVCache


@pytest.mark.metric("kv_bytes_per_token")
def test_bytes_per_token(cached: Subject, full_cache: Subject, kv_cache: KVCache, record: Record) -> None:
    """Bytes of a token of context, by llama.cpp's buffers and by the file's header: both have to be the same."""
    try:
        taken, full = (kv_cache.bytes(subject) for subject in (cached, full_cache))
    except NoData as error:
        pytest.skip(error.message)
    record(taken, detail=f"the full cache ({full_cache.settings.kv}) takes {full[0].value:,.0f} bytes per token")
    assert all(estimate.value > 0 for estimate in taken)
