"""Attention from queries, keys and values, against plain loops; its errors in closed form; errors by prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.cached_attention import (
    attention_pattern,
    cosines,
    head_error_estimates,
    mix_values,
    pattern_estimates,
    prediction_rank,
    relative_errors,
)
from gguf_harness.metrics.pattern_comparison import compare_patterns
from gguf_harness.metrics.records import WHOLE, Place

CAUSAL = np.where(np.tri(6, dtype=bool), 0, -np.inf).astype(np.float32)


def _vectors(
    seed: int, heads: int, size: int = 4, tokens: int = 6
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((tokens, heads, size)).astype(np.float32)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1)])
def test_patterns_are_those_of_plain_loops(heads: int, shared: int) -> None:
    q, k, v = _vectors(0, heads), _vectors(1, shared), _vectors(2, shared, 3)
    pattern = attention_pattern(q, k, 0.5, CAUSAL)
    mixed = mix_values(pattern, v)
    for head in range(heads):
        group = head // (heads // shared)
        for pos in range(6):
            weights = np.exp([0.5 * float(q[pos, head] @ k[key, group]) for key in range(pos + 1)])
            weights /= weights.sum()
            assert np.allclose(pattern[head, pos], [*weights, *[0] * (5 - pos)], atol=1e-6)
            assert np.allclose(mixed[pos, head], sum(w * v[key, group] for key, w in enumerate(weights)), atol=1e-6)
    with pytest.raises(NoData, match="do not share 4 heads"):
        attention_pattern(_vectors(0, 6), _vectors(1, 4), 1.0, CAUSAL)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 8), st.floats(-3, 3))
def test_patterns_are_distributions_and_shifts_of_keys_change_nothing(seed: int, scale: float, shift: float) -> None:
    """The same vector added to all keys adds the same to all scores of a query."""
    q, k = _vectors(seed, 2), _vectors(seed + 1, 1)
    pattern = attention_pattern(q, k, scale, CAUSAL)
    assert np.allclose(pattern.sum(axis=2), 1, atol=1e-5)
    assert (pattern >= 0).all()
    assert not pattern[:, np.triu_indices(6, 1)[0], np.triu_indices(6, 1)[1]].any()
    assert np.allclose(attention_pattern(q, (k + shift).astype(np.float32), scale, CAUSAL), pattern, atol=2e-3)


def test_errors_in_closed_form() -> None:
    y = _vectors(3, 2)
    assert np.allclose(relative_errors(1.25 * y, y), 0.25, atol=1e-6)
    assert np.allclose(cosines(-2 * y, y), -1)
    assert (relative_errors(y, y) == 0).all()
    turned = np.stack([-y[..., 1], y[..., 0], -y[..., 3], y[..., 2]], axis=-1)
    assert np.allclose(cosines(turned, y), 0, atol=1e-6)
    assert np.allclose(relative_errors(turned, y), np.sqrt(2), atol=1e-6)
    nothing = np.zeros_like(y)
    assert np.isnan(relative_errors(y, nothing)).all()
    assert np.isnan(cosines(y, nothing)).all()


def test_estimates_are_means_with_errors_by_prompt() -> None:
    values = np.random.default_rng(4).random((5, 4))
    heads = [(0, 0), (0, 1), (3, 0), (3, 1)]
    found = {estimate.place: estimate for estimate in head_error_estimates("kv_key_error", values, heads)}
    assert set(found) == {WHOLE, Place(0), Place(3), *(Place(*head) for head in heads)}
    means = values.mean(axis=1)
    assert found[WHOLE].value == pytest.approx(means.mean())
    assert found[WHOLE].se == pytest.approx(means.std(ddof=1) / np.sqrt(5))
    assert (found[WHOLE].n, found[WHOLE].clusters) == (20, 5)
    assert found[Place(3)].value == pytest.approx(values[:, 2:].mean())
    assert found[Place(3, 1)].se == pytest.approx(values[:, 3].std(ddof=1) / np.sqrt(5))
    # A head whose keys are zero has no relative error.
    values[2, 0] = np.nan
    assert Place(0, 0) not in {each.place for each in head_error_estimates("kv_key_error", values, heads)}
    with pytest.raises(NoData, match="no head has values"):
        head_error_estimates("kv_value_error", np.full((5, 4), np.nan), heads)


def test_equal_patterns_differ_by_nothing_and_the_worst_head_is_named() -> None:
    q, k = _vectors(5, 2), _vectors(6, 2)
    base = attention_pattern(q, k, 1.0, CAUSAL)
    other = base.copy()
    other[1] = attention_pattern(q, -k, 1.0, CAUSAL)[1]
    same = pattern_estimates([compare_patterns(base, base)] * 3, [(0, 0), (2, 1)])
    expected = {"kv_pattern_cosine": 1.0, "kv_pattern_worst_head": 1.0}
    assert all(each.value == expected.get(each.metric, 0.0) for each in same)
    changed = pattern_estimates([compare_patterns(other, base)] * 3, [(0, 0), (2, 1)])
    (worst,) = (each for each in changed if each.metric == "kv_pattern_worst_head")
    assert worst.extreme_at == Place(2, 1)
    of_heads = {each.place: each.value for each in changed if each.metric == "kv_pattern_cosine"}
    assert of_heads[Place(2, 1)] == worst.value < of_heads[Place(0, 0)] == 1
    with pytest.raises(NoData, match="no prompt"):
        pattern_estimates([], [(0, 0)])


def test_rank_of_predictions() -> None:
    """Layers in the same order, and in the opposite one; two layers have no order worth a number."""
    starts = np.array([0, 2, 5])
    caused = {layer: np.full(5, float(layer)) + np.linspace(0, 0.1, 5) for layer in (0, 1, 2, 3)}
    predicted = np.array([[0.0, 1.0, 2.0, 3.0], [0.1, 1.1, 2.1, 3.1]])
    assert prediction_rank(predicted, caused, (0, 1, 2, 3), starts).value == 1
    estimate = prediction_rank(-predicted, caused, (0, 1, 2, 3), starts)
    assert (estimate.value, estimate.n, estimate.clusters, estimate.se) == (-1, 4, 2, 0)
    with pytest.raises(NoData, match="order of 2 layers"):
        prediction_rank(predicted[:, :2], caused, (0, 1), starts)
