"""What types of the KV cache cost, against closed forms; the interaction with the weights as a two-by-two design."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import stats

from gguf_harness.errors import NoData
from gguf_harness.metrics.cache_cost import summarize_cache, summarize_interaction, summarize_together
from gguf_harness.metrics.records import Estimate

Tokens = dict[str, NDArray[Any]]
WINDOWS, TOKENS = 9, 11


def _tokens(seed: int, size: float = 1.0) -> Tokens:
    random = np.random.default_rng(seed)
    shape = (WINDOWS, TOKENS)
    return {
        "nll": random.exponential(2.0, shape),
        "top": random.integers(0, 5, shape),
        "kld": size * random.exponential(0.1, shape),
        "kld_reverse": size * random.exponential(0.1, shape),
    }


def _by_name(estimates: list[Estimate]) -> dict[str, Estimate]:
    return {estimate.metric: estimate for estimate in estimates}


def test_a_cache_against_itself_costs_exactly_nothing() -> None:
    full = _tokens(0)
    same = full | {"kld": np.zeros((WINDOWS, TOKENS)), "kld_reverse": np.zeros((WINDOWS, TOKENS))}
    found = {name: estimate.value for name, estimate in _by_name(summarize_cache(same, full)).items()}
    assert found == {"kv_kld": 0, "kv_kld_p99": 0, "kv_same_top": 1, "kv_delta_p_rms": 0, "kv_ppl_ratio": 1}


def test_values_are_those_of_the_definitions() -> None:
    full, cached = _tokens(0), _tokens(1)
    found = _by_name(summarize_cache(cached, full))
    change = np.exp(-cached["nll"]) - np.exp(-full["nll"])
    assert found["kv_kld"].value == pytest.approx(cached["kld"].mean())
    assert found["kv_kld_p99"].value == pytest.approx(np.quantile(cached["kld"], 0.99))
    assert found["kv_same_top"].value == pytest.approx((cached["top"] == full["top"]).mean())
    assert found["kv_delta_p_rms"].value == pytest.approx(math.sqrt((change**2).mean()))
    assert found["kv_ppl_ratio"].value == pytest.approx(math.exp(cached["nll"].mean() - full["nll"].mean()))
    assert {estimate.clusters for estimate in found.values()} == {WINDOWS}


def test_weights_and_cache_together() -> None:
    both, weights = _tokens(2, 3.0), _tokens(3)
    found = _by_name(summarize_together(both, weights))
    assert found["kv_total_kld"].value == pytest.approx(both["kld"].mean())
    assert found["kv_weights_kld"].value == pytest.approx(weights["kld"].mean())


def test_the_interaction_is_tested_by_a_t_test_over_windows() -> None:
    both, weights, cache, reference = (_tokens(seed) for seed in range(4))
    found = _by_name(summarize_interaction(both, weights, cache, reference))
    windows = (both["nll"] - weights["nll"] - cache["nll"] + reference["nll"]).mean(axis=1)
    told = stats.ttest_1samp(windows, 0.0)
    loss = found["kv_interaction_loss"]
    assert loss.value == pytest.approx(windows.mean())
    assert loss.se == pytest.approx(stats.sem(windows))
    assert loss.detail is not None
    assert f"p = {told.pvalue:.2g}, t test over {WINDOWS} windows" in loss.detail
    expected = (both["kld"] - weights["kld"] - cache["kld"]).mean()
    assert found["kv_interaction_kld"].value == pytest.approx(expected)


@given(
    arrays.arrays(np.float64, (3, WINDOWS, TOKENS), elements=st.floats(0, 20)),
    st.floats(-3, 3).filter(lambda effect: abs(effect) > 1e-3),
)
def test_losses_that_add_do_not_interact(losses: NDArray[np.float64], effect: float) -> None:
    """What a cell of the design has beyond the sum of its row and its column is the interaction."""
    reference, weights, cache = losses
    zero = np.zeros((WINDOWS, TOKENS))
    added = {"nll": weights + cache - reference, "kld": zero}
    parts = [{"nll": part, "kld": zero} for part in (weights, cache, reference)]
    assert _by_name(summarize_interaction(added, *parts))["kv_interaction_loss"].value == pytest.approx(0, abs=1e-9)
    more = added | {"nll": added["nll"] + effect}
    assert _by_name(summarize_interaction(more, *parts))["kv_interaction_loss"].value == pytest.approx(effect)


def test_passes_over_different_tokens_are_not_compared() -> None:
    short = {name: values[:-1] for name, values in _tokens(0).items()}
    with pytest.raises(NoData, match=r"An interaction of passes over different tokens: \(8, 11\), \(9, 11\)"):
        summarize_interaction(short, _tokens(1), _tokens(2), _tokens(3))
