"""Divergence against scipy, closed forms and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from gguf_harness.errors import NoData
from gguf_harness.metrics.codec import LEVELS, RowCodec
from gguf_harness.metrics.divergence import (
    DivergenceKernel,
    summarize_delta_p,
    summarize_divergence,
    summarize_same_top,
    summarize_top5,
)

seeds = st.integers(0, 2**32 - 1)


def _rows(seed: int, size: int = 512, spread: float = 4.0, noise: float = 0.3) -> tuple[NDArray[np.float32], ...]:
    random = np.random.default_rng(seed)
    reference = random.standard_normal(size) * spread
    return reference.astype(np.float32), (reference + noise * random.standard_normal(size)).astype(np.float32)


def _kl(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Relative entropy by scipy, in float64."""
    return float(special.rel_entr(special.softmax(p.astype(np.float64)), special.softmax(q.astype(np.float64))).sum())


@given(seeds, st.floats(0.0, 2.0))
def test_kernel_equals_scipy(seed: int, noise: float) -> None:
    p, q = _rows(seed, noise=noise)
    (forward, backward, _), log_normalizer, top, total = DivergenceKernel(len(p))(p - p.max(), q)
    assert forward == pytest.approx(_kl(p, q), rel=1e-5, abs=2e-6)
    assert backward == pytest.approx(_kl(q, p), rel=1e-5, abs=2e-6)
    assert log_normalizer == pytest.approx(float(special.logsumexp(q.astype(np.float64))), abs=1e-5)
    assert top == int(np.argmax(q))
    assert total == pytest.approx(float(np.exp(p.astype(np.float64) - p.max()).sum()), rel=1e-5)


@given(seeds, st.integers(0, 12))
def test_top5_is_by_rank(seed: int, rank: int) -> None:
    """The token that the reference likes best stands in any place of the candidate's order."""
    p, q = _rows(seed)
    order = np.argsort(-q, kind="stable")
    p[order[rank]] = p.max() + 1
    assert DivergenceKernel(len(p))(p - p.max(), q).values[2] == (rank < 5)


def test_top5_agreement_is_a_share() -> None:
    hits = np.array([[True, True, False, True], [True, True, True, True]])
    estimate = summarize_top5(hits)
    assert (estimate.metric, estimate.value, estimate.n, estimate.clusters) == ("top5_agreement", 7 / 8, 8, 2)
    assert summarize_top5(np.ones((2, 4), dtype=bool)).value == 1
    with pytest.raises(NoData):
        summarize_top5(np.empty((0, 4)))


@given(seeds, st.floats(-50, 50))
def test_shifting_logits_changes_nothing(seed: int, shift: float) -> None:
    p, q = _rows(seed)
    kernel = DivergenceKernel(len(p))
    base = kernel(p - p.max(), q)
    shifted = kernel(p - p.max(), (q + np.float32(shift)).astype(np.float32))
    assert shifted.values[0] == pytest.approx(base.values[0], rel=1e-3, abs=1e-5)
    assert shifted.log_normalizer == pytest.approx(base.log_normalizer + shift, abs=1e-3)


def test_two_tokens_in_closed_form() -> None:
    """Bernoulli 1/2 against p: ln(1/2) - (ln p + ln(1 - p)) / 2."""
    q = np.log(np.array([0.9, 0.1], dtype=np.float32))
    (forward, *_), *_ = DivergenceKernel(2)(np.zeros(2, dtype=np.float32), q)
    assert forward == pytest.approx(np.log(0.5) - (np.log(0.9) + np.log(0.1)) / 2, rel=1e-6)


@given(seeds, st.floats(0.1, 8.0))
@settings(max_examples=50)
def test_codec_keeps_its_error_bound(seed: int, spread: float) -> None:
    logits, _ = _rows(seed, size=2000, spread=spread)
    codec = RowCodec(len(logits))
    codes = np.empty(len(logits), dtype=np.uint16)
    scale, largest, total, top = codec.encode(logits, codes)
    decoded = codec.decode(codes, scale).astype(np.float64)
    exact = logits.astype(np.float64) - float(logits.max())
    bound = scale * np.sqrt(-exact) + scale**2 / 4 + 1e-6 * np.maximum(1, -exact)
    assert (np.abs(decoded - exact) <= bound).all()
    assert top == int(np.argmax(logits))
    assert decoded[top] == 0
    assert decoded.min() == pytest.approx(exact.min(), rel=1e-4)
    expected = float(special.logsumexp(logits.astype(np.float64)))
    assert largest + np.log(total) == pytest.approx(expected, abs=1e-5)
    assert scale == pytest.approx(np.sqrt(-exact.min()) / LEVELS)


@given(seeds)
@settings(max_examples=30)
def test_stored_reference_against_itself_is_nothing(seed: int) -> None:
    logits, other = _rows(seed, size=4000)
    codec, kernel = RowCodec(len(logits)), DivergenceKernel(len(logits))
    codes = np.empty(len(logits), dtype=np.uint16)
    scale, *_ = codec.encode(logits, codes)
    (forward, backward, _), *_ = kernel(codec.decode(codes, scale), logits)
    assert abs(forward) < 1e-6
    assert abs(backward) < 1e-6
    assert kernel(codec.decode(codes, scale), other).values[0] == pytest.approx(_kl(logits, other), rel=1e-3, abs=1e-6)


def test_codec_of_a_flat_row() -> None:
    codec, codes = RowCodec(8), np.empty(8, dtype=np.uint16)
    assert codec.encode(np.full(8, 3.0, dtype=np.float32), codes) == (0.0, 3.0, 8.0, 0)
    assert not codec.decode(codes, 0.0).any()


def test_summary_has_mean_percentiles_and_extremes() -> None:
    kld = np.random.default_rng(0).gamma(1, 0.1, (8, 50))
    found = {estimate.metric: estimate for estimate in summarize_divergence(kld, kld / 2)}
    assert found["kld_mean"].value == pytest.approx(kld.mean())
    assert found["kld_reverse_mean"].value == pytest.approx(kld.mean() / 2)
    assert (found["kld_max"].value, found["kld_min"].value) == (kld.max(), kld.min())
    ordered = [found[name].value for name in ("kld_min", "kld_p1", "kld_median", "kld_p90", "kld_p99_9", "kld_max")]
    assert ordered == sorted(ordered)
    assert found["kld_max"].se is None
    assert found["kld_mean"].clusters == 8


def test_delta_p_in_closed_form() -> None:
    """From probability 1/2 to 1/4 at every token: mean -1/4, RMS 1/4, no spread."""
    found = {e.metric: e for e in summarize_delta_p(np.full((3, 4), np.log(4)), np.full((3, 4), np.log(2)))}
    assert found["delta_p_mean"].value == pytest.approx(-0.25)
    assert found["delta_p_rms"].value == pytest.approx(0.25)
    assert found["delta_p_rms"].se == pytest.approx(0, abs=1e-9)
    assert found["delta_p_median"].value == pytest.approx(-0.25)


@given(seeds)
def test_rms_error_equals_the_tool(seed: int) -> None:
    """u(d^2) / (2 RMS)."""
    random = np.random.default_rng(seed)
    q, b = random.gamma(2, 1, (5, 12)), random.gamma(2, 1, (5, 12))
    squares = (np.exp(-q) - np.exp(-b)) ** 2
    found = {e.metric: e for e in summarize_delta_p(q, b)}
    expected = np.sqrt(np.var(squares) / (squares.size - 1)) / (2 * np.sqrt(squares.mean()))
    assert found["delta_p_rms"].se_iid == pytest.approx(expected)


@given(seeds)
def test_same_top_is_a_share_with_a_binomial_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 3, (6, 10)), random.integers(0, 3, (6, 10))
    estimate = summarize_same_top(a, b)
    share = float((a == b).mean())
    assert estimate.value == pytest.approx(share)
    assert estimate.se_iid == pytest.approx(np.sqrt(share * (1 - share) / (a.size - 1)), abs=1e-12)
    assert summarize_same_top(b, a).value == estimate.value


@pytest.mark.parametrize("function", [summarize_delta_p, summarize_same_top])
def test_other_positions_are_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(NoData):
        function(np.ones((2, 3)), np.ones((3, 2)))
