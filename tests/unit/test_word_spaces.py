"""What is said of a space of words: against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.word_spaces import analogy_ranks, compare_words, summarize_analogies, summarize_groups

Float32 = NDArray[np.float32]


def _random(n: int, d: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


# -- groups -----------------------------------------------------------------------------------------------------------


def test_silhouette_is_scikit_learns() -> None:
    from sklearn.metrics import silhouette_samples

    vectors = _random(60, 5)
    groups = [f"g{i % 4}" for i in range(59)] + ["alone"]
    silhouette, _ = summarize_groups(vectors, groups)
    expected = silhouette_samples(vectors, groups, metric="cosine")
    assert silhouette.value == pytest.approx(expected.mean(), abs=1e-6)
    assert (silhouette.n, silhouette.clusters) == (60, 5)
    totals = [(expected - expected.mean())[np.array(groups) == group].sum() for group in set(groups)]
    assert silhouette.se == pytest.approx(np.sqrt(5 / 4 * np.square(totals).sum()) / 60, rel=1e-5)


def test_purity_counts_nearest_words() -> None:
    # Three words that point one way, three another way, one of them astray.
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [1, 0.05]], dtype=np.float32)
    silhouette, purity = summarize_groups(vectors, ["a", "a", "a", "b", "b", "b"])
    # Two neighbours count: of the a's both, but for the stray one; of the b's one, and none for the stray one.
    assert purity.value == pytest.approx((0.5 + 0.5 + 0.5 + 0.5 + 0.5 + 0) / 6)
    assert -1 <= silhouette.value <= 1
    _, pure = summarize_groups(vectors[:5], ["a", "a", "a", "b", "b"])
    assert pure.value == 1


@given(st.integers(0, 10_000))
def test_groups_do_not_change_with_rotation_and_scale(seed: int) -> None:
    from scipy.stats import ortho_group

    vectors = _random(30, 4, seed)
    groups = ["a", "b", "c"] * 10
    turned = (vectors.astype(np.float64) @ ortho_group.rvs(4, random_state=seed) * 7).astype(np.float32)
    one, other = summarize_groups(vectors, groups), summarize_groups(turned, groups)
    assert one[0].value == pytest.approx(other[0].value, abs=1e-5)
    assert -1 <= one[0].value <= 1
    assert 0 <= one[1].value <= 1


def test_groups_that_say_nothing() -> None:
    for vectors, groups in (
        (_random(4, 3), ["a"] * 4),
        (_random(3, 3), ["a", "b", "c"]),
        (np.zeros((4, 3), dtype=np.float32), ["a", "a", "b", "b"]),
    ):
        with pytest.raises(NoData):
            summarize_groups(vectors, groups)


# -- analogies --------------------------------------------------------------------------------------------------------


def test_a_parallelogram_is_an_analogy() -> None:
    index = {word: row for row, word in enumerate(["a", "A", "b", "B", "c", "C", "other"])}
    angles = np.deg2rad([0, 10, 40, 50, 80, 90, 200])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pairs = [("a", "A"), ("b", "B"), ("c", "C")]
    ranks = analogy_ranks(vectors, index, pairs)
    assert ranks.shape == (3, 2)
    units = vectors.astype(np.float64)
    for row, (c, d) in enumerate(pairs):
        others = [pair for pair in pairs if pair != (c, d)]
        for column, (a, b) in enumerate(others):
            wanted = units[index[b]] - units[index[a]] + units[index[c]]
            order = sorted((w for w in index if w not in {a, b, c}), key=lambda w: -float(units[index[w]] @ wanted))
            assert ranks[row, column] == order.index(d) + 1
    accuracy, mrr = summarize_analogies([ranks])
    assert (accuracy.n, accuracy.clusters) == (6, 3)
    assert accuracy.value == pytest.approx((ranks == 1).mean())
    assert mrr.value == pytest.approx((1 / ranks).mean())


def test_inputs_are_no_answers() -> None:
    vectors = _random(4, 3)
    index = {word: row for row, word in enumerate("abcd")}
    ranks = analogy_ranks(vectors, index, [("a", "b"), ("c", "b"), ("c", "d")])
    # a : b as c : b has no answer, since b is an input.
    assert (ranks == 0).sum() == 2
    accuracy, _ = summarize_analogies([ranks, analogy_ranks(vectors, index, [])])
    assert accuracy.n == 4
    with pytest.raises(NoData):
        summarize_analogies([np.zeros((2, 1), dtype=np.int64)])


def test_words_in_one_place_count_against_the_answer() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 1], [1, 1.1], [1, 1.1]], dtype=np.float32)
    index = {word: row for row, word in enumerate(["a", "b", "c", "d", "twin"])}
    assert analogy_ranks(vectors, index, [("a", "b"), ("c", "d")])[1, 0] == 2


# -- across models ----------------------------------------------------------------------------------------------------


def test_the_same_words_turned_are_the_same() -> None:
    vectors = _random(80, 12)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 20)))[0][:12]
    turned = (vectors.astype(np.float64) @ basis * 3).astype(np.float32)
    found = {estimate.metric: (estimate, chance) for estimate, chance in compare_words(turned, vectors)}
    assert found["word_neighbour_recall"][0].value == 1
    assert found["word_neighbour_recall"][1] == pytest.approx(5 / 79)
    assert found["word_rank_correlation"][0].value == pytest.approx(1, abs=1e-6)
    assert found["word_procrustes_error"][0].value < 1e-4
    assert found["word_cka"][0].value == pytest.approx(1, abs=1e-6)
    assert 0.8 < found["word_procrustes_error"][1] < 1
    assert 0 < found["word_cka"][1] < 0.5


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_other_words_are_at_chance(seed: int) -> None:
    for estimate, chance in compare_words(_random(120, 16, seed), _random(120, 24, seed + 5000)):
        spread = max(estimate.se or 0, 0.02)
        assert abs(estimate.value - chance) < 5 * spread, estimate.metric
        assert estimate.n == 120


def test_too_few_words_are_said() -> None:
    with pytest.raises(NoData, match="15 words"):
        compare_words(_random(15, 4), _random(15, 4))
    with pytest.raises(ValueError, match="16 words beside 15"):
        compare_words(_random(16, 4), _random(15, 4))
