"""Comparison of attention patterns against scipy, closed forms and a loop over rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.directions import cosine
from gguf_harness.metrics.pattern_comparison import (
    PatternComparison,
    attention_estimates,
    compare_patterns,
    head_estimates,
)
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.stats import mean_of_clusters, mean_with_errors

seeds = st.integers(0, 2**32 - 1)
HEADS = [(0, 0), (0, 1), (1, 0)]


def _pattern(
    seed: int, shape: tuple[int, int, int] = (3, 9, 9), dtype: DTypeLike = np.float32, causal: bool = True
) -> NDArray[Any]:
    logits = np.random.default_rng(seed).normal(size=shape) * 4
    if causal:
        logits[:, ~np.tri(*shape[1:], dtype=bool)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    pattern: NDArray[Any] = (weights / weights.sum(axis=-1, keepdims=True)).astype(dtype)
    return pattern


@given(seeds, st.sampled_from(["float16", "float32"]), st.booleans(), st.integers(0, 2))
def test_equals_scipy_row_by_row(seed: int, dtype: str, causal: bool, first_row: int) -> None:
    p, q = _pattern(seed, dtype=dtype, causal=causal), _pattern(seed + 1, dtype=dtype, causal=causal)
    result = compare_patterns(p, q, first_row)
    for head in range(3):
        a, b = (x[head].astype(np.float64) / x[head].astype(np.float64).sum(-1, keepdims=True) for x in (p, q))
        assert result.cosine[head] == pytest.approx(cosine(a[first_row:].ravel(), b[first_row:].ravel()), abs=1e-12)
        for row in range(first_row, 9):
            at = head, row - first_row
            assert result.jsd[at] == pytest.approx(jensenshannon(a[row], b[row]) ** 2, abs=1e-12)
            assert result.cosine_rows[at] == pytest.approx(cosine(a[row], b[row]), abs=1e-12)
            assert result.total_variation[at] == pytest.approx(0.5 * np.abs(a[row] - b[row]).sum(), abs=1e-12)
            assert result.entropy_change[at] == pytest.approx(entropy(a[row]) - entropy(b[row]), abs=1e-12)
            assert result.top_changed[at] == (np.argmax(a[row]) != np.argmax(b[row]))


@given(seeds, st.integers(1, 40), st.sampled_from(["float16", "float32"]), st.booleans())
def test_equal_patterns_differ_by_exactly_nothing(seed: int, size: int, dtype: str, causal: bool) -> None:
    p = _pattern(seed, (2, size, size), dtype, causal)
    result = compare_patterns(p, p.copy(), first_row=0)
    assert (result.cosine == 1).all()
    assert (result.cosine_rows == 1).all()
    assert not result.jsd.any()
    assert not result.total_variation.any()
    assert not result.entropy_change.any()
    assert not result.top_changed.any()


@given(seeds, seeds)
def test_bounds_and_symmetry(first: int, second: int) -> None:
    p, q = _pattern(first), _pattern(second)
    there, back = compare_patterns(p, q), compare_patterns(q, p)
    assert ((there.jsd >= 0) & (there.jsd <= math.log(2))).all()
    assert ((there.total_variation >= 0) & (there.total_variation <= 1)).all()
    assert ((there.cosine >= 0) & (there.cosine <= 1)).all()
    # Lin (1991), theorem 3: JSD <= ln 2 * TV.
    assert (there.jsd <= math.log(2) * there.total_variation + 1e-12).all()
    np.testing.assert_allclose(there.jsd, back.jsd, atol=1e-14)
    np.testing.assert_allclose(there.total_variation, back.total_variation, atol=1e-14)
    np.testing.assert_allclose(there.entropy_change, -back.entropy_change, atol=1e-14)
    np.testing.assert_array_equal(there.top_changed, back.top_changed)


@given(seeds, st.floats(0.5, 2.0))
def test_rows_are_normalized(seed: int, scale: float) -> None:
    p, q = _pattern(seed, dtype=np.float64), _pattern(seed + 1, dtype=np.float64)
    np.testing.assert_allclose(compare_patterns(p * scale, q).jsd, compare_patterns(p, q).jsd, atol=1e-12)


def test_disjoint_rows_in_closed_form() -> None:
    p, q = np.zeros((2, 1, 4, 6), dtype=np.float32)
    p[0, :, 0] = 1
    q[0, :, 1:5] = 0.25
    result = compare_patterns(p, q, first_row=0)
    assert result.jsd == pytest.approx(np.full((1, 4), math.log(2)))
    assert (result.total_variation == 1).all()
    assert (result.cosine == 0).all()
    assert result.entropy_change == pytest.approx(np.full((1, 4), -math.log(4)))
    assert result.top_changed.all()


def test_the_first_of_equal_keys_is_the_top() -> None:
    p = np.array([[[0.5, 0.5, 0.0]]], dtype=np.float32)
    q = np.array([[[0.0, 0.5, 0.5]]], dtype=np.float32)
    assert compare_patterns(p, q, 0).top_changed.all()
    assert not compare_patterns(p, np.array([[[0.4, 0.4, 0.2]]], dtype=np.float32), 0).top_changed.any()


def test_blocks_of_rows_join_seamlessly() -> None:
    """Longer than a block: rows of a big pattern equal the same rows compared alone."""
    p, q = _pattern(1, (2, 700, 700), np.float16), _pattern(2, (2, 700, 700), np.float16)
    result = compare_patterns(p, q)
    alone = compare_patterns(p[1:, 300:301], q[1:, 300:301], first_row=0)
    assert result.jsd[1, 299] == pytest.approx(alone.jsd[0, 0], abs=1e-14)
    assert result.jsd.shape == (2, 699)
    whole = cosine(
        *((x[1, 1:] / x[1, 1:].astype(np.float64).sum(-1, keepdims=True)).ravel().astype(np.float64) for x in (p, q))
    )
    assert result.cosine[1] == pytest.approx(float(whole), abs=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
@pytest.mark.parametrize("at", [(1, 4, 2), (1, 4, 8)])
def test_what_is_no_distribution_is_refused(value: float, at: tuple[int, int, int]) -> None:
    p, q = _pattern(0), _pattern(1)
    q[at] = value
    with pytest.raises(NoData, match="reference is not a distribution"):
        compare_patterns(p, q)
    with pytest.raises(NoData, match="candidate is not a distribution"):
        compare_patterns(q, p)


def test_nothing_to_compare() -> None:
    p = _pattern(0)
    empty = p.copy()
    empty[0, 3] = 0
    with pytest.raises(NoData, match=r"sums to 0\.0"):
        compare_patterns(empty, p)
    with pytest.raises(NoData, match="no rows"):
        compare_patterns(p, p, first_row=9)
    with pytest.raises(ValueError, match="same shape"):
        compare_patterns(p, p[:, :4])
    with pytest.raises(NoData, match="no estimate"):
        attention_estimates([], HEADS)
    with pytest.raises(ValueError, match="2 are named"):
        head_estimates([compare_patterns(p, p)], HEADS[:2])


def _prompts() -> list[PatternComparison]:
    sizes = (8, 12, 20)
    return [
        compare_patterns(_pattern(n, (3, size, size)), _pattern(n + 9, (3, size, size))) for n, size in enumerate(sizes)
    ]


def test_estimates_are_means_with_errors_over_prompts() -> None:
    prompts = _prompts()
    estimates = {each.metric: each for each in attention_estimates(prompts, HEADS)}
    rows = [each.jsd.ravel() for each in prompts]
    pooled = np.concatenate(rows)
    jsd = estimates["attn_jsd"]
    assert jsd.value == pytest.approx(pooled.mean())
    assert (jsd.n, jsd.clusters) == (3 * (7 + 11 + 19), 3)
    # CR1, written out: residuals summed in each prompt.
    totals = [float((each - pooled.mean()).sum()) for each in rows]
    assert jsd.se == pytest.approx(math.sqrt(3 / 2 * sum(t * t for t in totals)) / pooled.size)

    cosines = np.array([each.cosine for each in prompts])
    assert estimates["attn_cosine"].value == pytest.approx(cosines.mean())
    assert estimates["attn_cosine"].se == pytest.approx(np.std(cosines.mean(axis=1), ddof=1) / math.sqrt(3))
    worst = int(cosines.mean(axis=0).argmin())
    assert estimates["attn_cosine_worst_head"].value == pytest.approx(cosines[:, worst].mean())
    assert estimates["attn_cosine_worst_head"].se == pytest.approx(np.std(cosines[:, worst], ddof=1) / math.sqrt(3))
    assert estimates["attn_cosine_worst_head"].where == f"layer {HEADS[worst][0]}, head {HEADS[worst][1]}"
    assert estimates["attn_cosine_worst_head"].found_at == Place(*HEADS[worst])
    assert estimates["attn_cosine_worst_head"].place == estimates["attn_cosine"].place == WHOLE
    changed = np.concatenate([each.top_changed.ravel() for each in prompts])
    assert estimates["attn_top_changed"].value == pytest.approx(changed.mean())

    by_head = head_estimates(prompts, HEADS)
    assert [(each.place.layer, each.place.head) for each in by_head[::2]] == HEADS
    assert by_head[3].value == pytest.approx(np.concatenate([each.jsd[1] for each in prompts]).mean())
    assert by_head[2].value == pytest.approx(cosines[:, 1].mean())


def test_one_prompt_has_no_error() -> None:
    prompts = _prompts()[:1]
    for each in (*attention_estimates(prompts, HEADS), *head_estimates(prompts, HEADS)):
        assert each.se is None
        assert each.clusters == 1


@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_equal_clusters_are_the_plain_mean(seed: int, clusters: int, size: int) -> None:
    samples = np.random.default_rng(seed).normal(size=(clusters, size))
    ours = mean_of_clusters(samples.sum(axis=1), np.full(clusters, size), "x")
    plain = mean_with_errors(samples)
    assert ours.value == pytest.approx(plain.value)
    assert ours.se == pytest.approx(plain.se)
    assert (ours.n, ours.clusters) == (plain.n, plain.clusters)


def test_clusters_without_samples() -> None:
    with_empty = mean_of_clusters([3.0, 0.0, 5.0], [2, 0, 1], "x")
    assert with_empty == mean_of_clusters([3.0, 5.0], [2, 1], "x")
    assert with_empty.value == pytest.approx(8 / 3)
    with pytest.raises(NoData, match="no samples"):
        mean_of_clusters([0.0], [0], "x")
    with pytest.raises(NoData, match="not finite"):
        mean_of_clusters([np.nan], [1], "x")
