"""What hidden states look like: closed forms, other people's implementations, invariances."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import entropy, kurtosis, ortho_group
from sklearn.decomposition import PCA

from gguf_harness.errors import NoData
from gguf_harness.metrics.hidden import (
    cka_with_error,
    dimensions,
    massive_activations,
    massive_per_token,
    outlier_kurtosis,
    relative_errors,
    token_similarity,
    update_share,
)
from gguf_harness.metrics.kernels.cka import linear_cka

Array = NDArray[np.float64]

_STATES = hnp.arrays(
    np.float64, st.tuples(st.integers(2, 7), st.integers(1, 6)), elements=st.floats(-1e3, 1e3, width=32)
)


def _random(n: int = 20, d: int = 9, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, d)) + 0.5


def test_errors_and_shares_are_those_of_single_tokens() -> None:
    a, b = _random(seed=1), _random(seed=2)
    assert relative_errors(a, b) == pytest.approx(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))
    assert relative_errors([[3.0, 4.0]], [[0.0, 4.0]]) == pytest.approx(0.75)
    assert update_share(a, b) == pytest.approx(np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    assert (relative_errors(a, a) == 0).all()
    for measure in (relative_errors, update_share):
        with pytest.raises(NoData):
            measure(a, np.zeros_like(a))


@pytest.mark.parametrize("centered", [False, True])
def test_similarity_is_the_mean_over_pairs(centered: bool) -> None:
    x = _random()
    y = x - x.mean(0) if centered else x
    pairs = [1 - cosine_distance(a, b) for a, b in itertools.combinations(y, 2)]
    assert token_similarity(x, centered=centered) == pytest.approx(np.mean(pairs))


@given(_STATES)
def test_similarity_has_its_bounds(x: Array) -> None:
    if np.linalg.norm(x, axis=1).all():
        similarity = token_similarity(x, centered=False)
        assert -1 / (len(x) - 1) - 1e-9 <= similarity <= 1 + 1e-9


def test_similarity_of_the_same_tokens_is_one() -> None:
    assert token_similarity(np.tile([1.0, 2.0], (5, 1)), centered=False) == pytest.approx(1)
    with pytest.raises(NoData):
        token_similarity(np.tile([1.0, 2.0], (5, 1)), centered=True)
    with pytest.raises(NoData):
        token_similarity([[1.0, 2.0]], centered=False)


@pytest.mark.parametrize("shape", [(20, 9), (9, 20)])
def test_dimensions_are_those_of_pca(shape: tuple[int, int]) -> None:
    x = _random(*shape)
    pca = PCA().fit(x)
    dims = dimensions(x)
    # Roy and Vetterli: Shannon entropy of the singular values' shares.
    assert dims.effective_rank == pytest.approx(np.exp(entropy(pca.singular_values_[pca.singular_values_ > 1e-9])))
    variance = pca.explained_variance_
    assert dims.participation_ratio == pytest.approx(variance.sum() ** 2 / (variance**2).sum())


def test_as_many_dimensions_as_there_are_equal_ones() -> None:
    for k in (1, 2, 5):
        # Both ends of k axes: centered, with k equal singular values.
        x = np.concatenate([np.eye(8)[:k], -np.eye(8)[:k]])
        assert dimensions(x).effective_rank == pytest.approx(k)
        assert dimensions(x).participation_ratio == pytest.approx(k)


@given(_STATES, st.integers(0, 99), st.floats(0.1, 10))
def test_dimensions_have_their_bounds_and_survive_rotation(x: Array, seed: int, scale: float) -> None:
    n, d = x.shape
    if np.ptp(x, axis=0).max() < 1e-3:
        return
    dims = dimensions(x)
    assert 1 - 1e-6 <= dims.participation_ratio <= min(n - 1, d) + 1e-6
    assert 1 - 1e-6 <= dims.effective_rank <= min(n, d) * (1 + 1e-6)
    turned = scale * x @ (ortho_group.rvs(d, random_state=seed) if d > 1 else np.eye(1)) + 3
    assert dimensions(turned).participation_ratio == pytest.approx(dims.participation_ratio, rel=1e-6)
    assert dimensions(turned).effective_rank == pytest.approx(dims.effective_rank, rel=1e-4)


def test_states_that_do_not_vary_span_nothing() -> None:
    for states in (np.ones((5, 3)), np.ones((1, 3))):
        with pytest.raises(NoData):
            dimensions(states)


def test_kurtosis_of_one_loud_dimension() -> None:
    x = np.zeros((4, 6))
    x[:, 2] = [1, -1, 1, -1]
    assert outlier_kurtosis(x) == pytest.approx(6)
    assert outlier_kurtosis(np.ones((4, 6))) == pytest.approx(1)
    # Of one token with states of mean zero it is Pearson's.
    row = _random(1, 50)
    row -= row.mean()
    assert outlier_kurtosis(row) == pytest.approx(kurtosis(row[0], fisher=False))
    with pytest.raises(NoData):
        outlier_kurtosis(np.zeros((2, 2)))


@given(_STATES, st.floats(0.1, 10))
def test_kurtosis_has_its_bounds(x: Array, scale: float) -> None:
    if np.abs(x).max() > 1e-3:
        kurtosis = outlier_kurtosis(x)
        assert 1 - 1e-9 <= kurtosis <= x.shape[1] + 1e-9
        assert outlier_kurtosis(scale * x) == pytest.approx(kurtosis)


def test_massive_activations_are_found_where_they_are() -> None:
    x = np.sign(_random(10, 30))
    x[3, 7], x[0, 2], x[5, 5] = -500.0, 200.0, 99.0
    massive = massive_activations(x)
    assert [(entry.token, entry.dimension, entry.value, entry.ratio) for entry in massive] == [
        (3, 7, -500.0, 500.0),
        (0, 2, 200.0, 200.0),
    ]
    assert massive_per_token(x).tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert massive_per_token(x, 50).sum() == 3
    assert len(massive_activations(x, 50, limit=1)) == 1
    assert massive_activations(x, 1000) == []
    with pytest.raises(NoData):
        massive_per_token(np.zeros((2, 2)))


def test_cka_and_its_jackknife() -> None:
    """The error without new products is that of computing CKA anew without each cluster."""
    starts = np.array([0, 4, 9, 10, 17])
    x = _random(17, 6)
    y = x @ np.random.default_rng(5).normal(size=(6, 8)) + _random(17, 8, seed=3)
    value, error = cka_with_error(x, y, starts)
    assert value == pytest.approx(linear_cka(x, y))
    without = [
        linear_cka(np.delete(x, np.s_[a:b], axis=0), np.delete(y, np.s_[a:b], axis=0))
        for a, b in itertools.pairwise(starts.tolist())
    ]
    g = len(without)
    assert error == pytest.approx(np.sqrt((g - 1) / g * np.sum((np.array(without) - np.mean(without)) ** 2)))


@given(_STATES)
def test_cka_of_the_same_states_is_one(x: Array) -> None:
    if np.ptp(x, axis=0).max() > 1e-3:
        value, error = cka_with_error(x, x, [0, 1, len(x)])
        assert value == pytest.approx(1)
        assert error is None or error == pytest.approx(0, abs=1e-9)


def test_cka_without_variation_is_no_number() -> None:
    with pytest.raises(NoData):
        cka_with_error(np.ones((4, 2)), _random(4, 2), [0, 2, 4])


@pytest.mark.parametrize("states", [np.empty((0, 3)), np.zeros(3), [[np.nan, 1.0]]])
def test_what_are_no_states_is_refused(states: Any) -> None:
    for measure in (dimensions, outlier_kurtosis, massive_per_token):
        with pytest.raises(NoData):
            measure(states)
