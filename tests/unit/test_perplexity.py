"""Perplexity against closed forms and llama-perplexity's formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.perplexity import compare_perplexity, perplexity
from gguf_harness.metrics.records import Estimate

nll = hnp.arrays(np.float64, (4, 9), elements=st.floats(0, 12, width=32))


def _find(estimates: list[Estimate], metric: str) -> Estimate:
    return next(estimate for estimate in estimates if estimate.metric == metric)


def test_uniform_prediction_has_the_vocabulary_as_perplexity() -> None:
    estimate = perplexity(np.full((3, 5), math.log(49152)))
    assert estimate.value == pytest.approx(49152)
    assert estimate.se == pytest.approx(0, abs=1e-6)
    assert estimate.n == 15


@given(nll)
def test_errors_equal_llama_perplexity_formulas(values: NDArray[np.float64]) -> None:
    """PPL e^m with error PPL u, u = sqrt((E[x^2] - m^2) / (n - 1))."""
    mean = values.mean()
    error = math.sqrt(max(0.0, (values**2).mean() - mean**2) / (values.size - 1))
    estimate = perplexity(values)
    assert estimate.value == pytest.approx(math.exp(mean))
    assert estimate.se_iid == pytest.approx(math.exp(mean) * error, rel=1e-5, abs=math.exp(mean) * 1e-7)


@given(nll, nll)
def test_paired_errors_equal_llama_perplexity_formulas(q: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """With the covariance written out, as the tool does it; ours come from influence functions."""
    n = q.size
    u_q, u_b = (math.sqrt(float(np.var(x)) / (n - 1)) for x in (q, b))
    covariance = float((q * b).mean() - q.mean() * b.mean()) / (n - 1)
    p_q, p_b = math.exp(q.mean()), math.exp(b.mean())
    ln_error = math.sqrt(max(0.0, u_q**2 + u_b**2 - 2 * covariance))
    difference_error = math.sqrt(max(0.0, (p_q * u_q) ** 2 + (p_b * u_b) ** 2 - 2 * p_q * p_b * covariance))
    estimates = compare_perplexity(q, b)
    ln_ratio, ratio, difference = (_find(estimates, m) for m in ("ln_ppl_ratio", "ppl_ratio", "ppl_difference"))
    scale = max(p_q, p_b)
    assert ln_ratio.value == pytest.approx(float(q.mean() - b.mean()), abs=1e-9)
    assert ln_ratio.se_iid == pytest.approx(ln_error, rel=1e-4, abs=1e-6)
    assert ratio.value == pytest.approx(p_q / p_b)
    assert ratio.se_iid == pytest.approx(p_q / p_b * ln_error, rel=1e-4, abs=1e-6 * p_q / p_b)
    assert difference.value == pytest.approx(p_q - p_b, abs=1e-9 * scale)
    assert difference.se_iid == pytest.approx(difference_error, rel=1e-4, abs=1e-6 * scale)


@given(nll, nll)
def test_correlation_equals_numpy(q: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    estimates = compare_perplexity(q, b)
    found = [estimate for estimate in estimates if estimate.metric == "ln_ppl_correlation"]
    if np.std(q) > 1e-6 and np.std(b) > 1e-6:
        assert found[0].value == pytest.approx(float(np.corrcoef(q.ravel(), b.ravel())[0, 1]), abs=1e-6)
        assert -1.0000001 <= found[0].value <= 1


def test_identical_models_differ_by_nothing() -> None:
    values = np.random.default_rng(0).gamma(2, 1, (5, 20))
    for estimate in compare_perplexity(values, values):
        neutral = {"ppl_ratio": 1.0, "ln_ppl_correlation": 1.0}.get(estimate.metric, 0.0)
        assert estimate.value == pytest.approx(neutral, abs=1e-12)
        assert estimate.se == pytest.approx(0, abs=1e-9)


def test_different_tokens_cannot_be_compared() -> None:
    with pytest.raises(NoData, match="different tokens"):
        compare_perplexity(np.ones((2, 3)), np.ones((2, 4)))
