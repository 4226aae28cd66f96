"""How a window is cut into batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.engine.context import _slices
from gguf_harness.engine.settings import SessionSettings, first_scored


@given(
    n_ctx=st.integers(2, 300),
    ubatches=st.integers(1, 8),
    n_ubatch=st.integers(1, 40),
    more=st.integers(0, 20),
    rows=st.integers(1, 200),
)
def test_batches_hold_what_they_may_and_end_where_physical_ones_do(
    n_ctx: int, ubatches: int, n_ubatch: int, more: int, rows: int
) -> None:
    n_batch = ubatches * n_ubatch + more
    settings = SessionSettings(n_ctx=max(n_ctx, n_batch + 1), n_batch=n_batch, n_ubatch=n_ubatch)
    scored = first_scored(n_ctx)
    parts = list(_slices(n_ctx, settings, scored, rows))
    assert [place for part in parts for place in part] == list(range(n_ctx))
    whole = n_batch % n_ubatch == 0
    for part in parts:
        assert 0 < len(part) <= n_batch
        if whole:
            assert part.start % n_ubatch == 0
            # One physical batch is the least that can be decoded without other numbers.
            assert part.stop - max(part.start, scored) <= max(rows, n_ubatch)
    if not whole:
        assert all(part.start % n_batch == 0 for part in parts)


def test_nothing_changes_where_all_logits_have_room() -> None:
    settings = SessionSettings(n_ctx=16384, n_batch=2048, n_ubatch=512)
    parts = list(_slices(16384, settings, 8192, 2048))
    assert [len(part) for part in parts] == [2048] * 8
    few = list(_slices(16384, settings, 8192, 700))
    assert [len(part) for part in few] == [2048] * 4 + [512] * 16
