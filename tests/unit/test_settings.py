"""Settings of a session: how windows and threads are shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.engine.settings import SessionSettings


@given(st.integers(3, 12), st.integers(3, 13), st.integers(1, 64))
def test_lanes_share_windows_and_threads(log_ctx: int, log_batch: int, threads: int) -> None:
    settings = SessionSettings(n_ctx=2**log_ctx, n_batch=2**log_batch, threads=threads)
    lanes = settings.lanes
    lane = settings.lane(lanes)
    assert lanes * lane.n_seq == settings.n_seq
    assert lanes * lane.n_batch == settings.n_batch
    assert lane.threads >= 1
    assert threads - lanes < lanes * lane.threads <= threads
    assert lane.lanes >= 1


@pytest.mark.parametrize(
    ("n_batch", "threads", "lanes"), [(2048, 1, 1), (2048, 2, 2), (2048, 6, 2), (2048, 16, 4), (512, 8, 1), (256, 8, 1)]
)
def test_most_threads_are_busy(n_batch: int, threads: int, lanes: int) -> None:
    settings = SessionSettings(n_ctx=512, n_batch=n_batch, threads=threads)
    assert settings.lanes == lanes
    assert settings.lane(lanes).threads == threads // lanes
