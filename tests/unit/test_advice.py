"""Advice asks for what there is, and names what would be needed where there is not enough."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.judge.advice import TextSize, what_would_decide
from gguf_harness.judge.gates import Gate
from gguf_harness.judge.verdicts import decide
from gguf_harness.metrics.records import Estimate

TEXT = TextSize(windows=34, bytes=66_000, window_bytes=2_000_000, limit_bytes=8 * 10**9)


@given(st.integers(2, 100), st.integers(1, 10**7), st.integers(2, 10**5))
def test_no_more_windows_are_asked_for_than_the_text_has(clusters: int, more: int, windows: int) -> None:
    text = TextSize(windows, 4 * 512 * windows, 10**6, 10**12)
    advice = what_would_decide("kld_mean", clusters, clusters + more, 255, text)
    if "longer text" in advice:
        assert clusters + more > windows
        assert f"of which this text has {windows}" in advice
        assert "--gguf-corpus=FILE" in advice
    else:
        assert clusters + more <= windows
    assert f"--gguf-chunks={clusters + more}" in advice


def test_all_that_the_text_has_may_be_asked_for() -> None:
    assert "--gguf-chunks=34)" in what_would_decide("same_top", 16, 34, 255, TEXT)
    longer = what_would_decide("same_top", 16, 424, 255, TEXT)
    assert longer == (
        "about 424 windows, of which this text has 34: a longer text, of about 0.82 MB (--gguf-corpus=FILE"
        " --gguf-chunks=424), would probably decide, estimated from the error so far."
    )


def test_what_the_disk_may_take_is_asked_for_as_well() -> None:
    text = TextSize(1000, 2_000_000, 25_000_000, 8 * 10**9)
    advice = what_would_decide("kld_mean", 16, 424, 255, text)
    assert "--gguf-chunks=424 --gguf-logprobs-limit=10600M" in advice
    assert "logprobs" not in what_would_decide("kld_mean", 16, 300, 255, text)


@pytest.mark.parametrize(
    ("metric", "total", "advice"),
    [
        ("pp_tokens_per_s", 9, "about 6 more repetitions (--gguf-repetitions=9) would"),
        ("pp_tokens_per_s", 5000, "more than 100 repetitions would be needed: the value is too near its limit."),
        ("bleu", 60, "about 57 more prompts (--gguf-prompts, a file of 60) would"),
        ("bleu", 10**6, "more than 1000 prompts would be needed"),
        ("head_top_overlap", 9, "about 6 more windows (--gguf-head-windows=9) would"),
        ("head_top_overlap", 500, "more than 10 windows would be needed: the value is too near its limit."),
        ("kv_kld", 9, "about 6 more windows (6 more scored tokens, --gguf-chunks=9) would"),
        ("kv_total_kld", 9, "about 6 more windows (6 more scored tokens, --gguf-chunks=9) would"),
        ("nll_slope", 9, "about 6 more windows (6 more scored tokens, --gguf-chunks=9) would"),
        ("lora_effect_retained", 6, "about 3 more windows (--gguf-chunks=6, of a text that has them) would"),
        ("lora_effect_retained", 9, "more than 8 windows would be needed: the value is too near its limit."),
        ("needle_change", 9, "more facts than the 3 would be needed; more texts for each (--gguf-haystacks) may"),
        ("word_purity", 12, "about 9 more groups of words (--gguf-words) would"),
    ],
)
def test_others_are_asked_for_by_their_option(metric: str, total: int, advice: str) -> None:
    assert advice in what_would_decide(metric, 3, total, 1, TEXT)


def test_a_verdict_knows_its_text() -> None:
    estimate = Estimate("kld_mean", 0.0985, 4080, 0.003, None, 16)
    detail = decide(Gate("kld_mean", 0.1), estimate, "m", text=TEXT).detail
    assert re.search(r"about \d+ windows, of which this text has 34: a longer text, of about [\d.]+ MB", detail)
    assert (
        "cannot estimate how much more data is needed"
        in decide(Gate("kld_mean", 0.0985), estimate, "m", text=TEXT).detail
    )
