"""Windows are drawn from the whole text, always the same ones, and more of them are the same and more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import CorpusError
from gguf_harness.measure.passes.tasks import CorpusText, PassRequest, cut_windows, require_windows, window_order


def _request(text: bytes, chunks: int | None, n_ctx: int = 8) -> PassRequest:
    return PassRequest("m", (), SessionSettings(n_ctx=n_ctx), CorpusText("mine", text), chunks, Path())


@given(st.binary(max_size=40), st.integers(2, 300))
def test_every_window_comes_once(text: bytes, available: int) -> None:
    order = window_order(available, text, "sampled")
    assert sorted(order.tolist()) == list(range(available))
    assert (order == window_order(available, text, "sampled")).all()
    assert window_order(available, text, "first").tolist() == list(range(available))


def test_the_order_is_fixed_for_good() -> None:
    """Baselines of today are paired with runs of later versions, and of numpy."""
    assert window_order(12, b"The quick brown fox", "sampled").tolist() == [2, 4, 3, 1, 0, 7, 11, 8, 6, 10, 9, 5]
    assert window_order(12, b"another text", "sampled").tolist() != [2, 4, 3, 1, 0, 7, 11, 8, 6, 10, 9, 5]


@given(st.integers(20, 200), st.integers(2, 9), st.integers(10, 20))
def test_a_longer_run_contains_a_shorter_one(available: int, few: int, more: int) -> None:
    tokens = np.arange(available * 8 + 3, dtype=np.int32)
    short, long = (cut_windows(tokens, _request(b"text", chunks)) for chunks in (few, more))
    assert (long["window"][:few] == short["window"]).all()
    assert (long["tokens"][:few] == short["tokens"]).all()
    assert short["available"].item() == available
    assert (short["tokens"][:, 0] == 8 * short["window"]).all()


def test_the_first_windows_are_spread_over_the_text() -> None:
    """Means of 16 of 1,000 windows' places, over many texts: as a random sample's."""
    places = [window_order(1000, bytes([text]), "sampled")[:16].mean() for text in range(200)]
    assert np.mean(places) == pytest.approx(499.5, abs=3 * 72 / np.sqrt(200))
    assert np.std(places) == pytest.approx(1000 / np.sqrt(12 * 16), rel=0.2)


def test_too_many_windows_are_refused_and_all_there_are_are_not() -> None:
    assert require_windows("mine", 8 * 30 + 7, 8, 30) == 30
    assert require_windows("mine", 8 * 30 + 7, 8, None) == 30
    with pytest.raises(CorpusError, match="has 30 windows of 8 tokens, --gguf-chunks asks for 31") as error:
        require_windows("mine", 8 * 30 + 7, 8, 31)
    assert "--gguf-chunks=30 or less" in error.value.hint
    with pytest.raises(CorpusError, match="expected at least 16"):
        require_windows("mine", 15, 8, None)
