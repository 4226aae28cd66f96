"""Neighbours against scikit-learn, recall against sets, TwoNN against known dimensions."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.neighbours import (
    directions,
    estimate_intrinsic_dimension,
    nearest_by_cosine,
    neighbour_recall,
    row_blocks,
)

Float32 = NDArray[np.float32]


def _random(n: int, d: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_neighbours_are_scikit_learns(block: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    keys, queries = _random(300, 12), _random(40, 12, seed=1)
    found = nearest_by_cosine(queries, row_blocks(keys, block), 5)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(keys.astype(np.float64))
    distances, rows = expected.kneighbors(queries.astype(np.float64))
    assert (found.rows == rows).all()
    assert np.abs((1 - found.cosines) - distances).max() < 1e-6


def test_a_key_is_not_its_own_neighbour() -> None:
    from sklearn.neighbors import NearestNeighbors

    keys, own = _random(200, 8), np.arange(0, 200, 3)
    found = nearest_by_cosine(keys[own], row_blocks(keys, 32), 4, own)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(keys)
    assert (found.rows == expected.kneighbors(keys[own], return_distance=False)[:, 1:]).all()


def test_zero_rows_are_nobodys_neighbours() -> None:
    keys = _random(50, 4)
    keys[10:20] = 0
    found = nearest_by_cosine(keys[:10], row_blocks(keys, 16), 39, np.arange(10))
    assert not np.isin(found.rows, np.arange(10, 20)).any()
    with pytest.raises(NoData, match="fewer than 40 neighbours"):
        nearest_by_cosine(keys[:10], row_blocks(keys, 16), 40, np.arange(10))
    with pytest.raises(NoData, match="1 of them without a direction"):
        nearest_by_cosine(keys[9:11], row_blocks(keys), 1)
    with pytest.raises(NoData, match="0 queries"):
        nearest_by_cosine(keys[:0], row_blocks(keys), 1)
    with pytest.raises(NoData, match="without a direction"):
        nearest_by_cosine(np.full((1, 4), np.nan, dtype=np.float32), row_blocks(keys), 1)


def test_equal_keys_come_in_the_order_of_their_rows() -> None:
    keys = np.repeat(_random(1, 4), 9, axis=0)
    found = nearest_by_cosine(keys[:1], row_blocks(keys, 2), 3)
    assert found.rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_directions_do_not_depend_on_scale(scale: float) -> None:
    rows = _random(20, 6)
    units, valid = directions((rows * np.float32(scale)).astype(np.float32))
    assert valid.all()
    assert units.dtype == np.float32
    assert np.abs(units - directions(rows)[0]).max() < 1e-6


@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(1, 8))
def test_neighbours_do_not_change_with_rotation_scale_or_blocks(seed: int, n: int, d: int) -> None:
    from scipy.stats import ortho_group

    keys = _random(n, d + 1, seed)
    rotation = ortho_group.rvs(d + 1, random_state=seed)
    turned = (3.5 * keys.astype(np.float64) @ rotation).astype(np.float32)
    own = np.arange(n)
    one, other = (nearest_by_cosine(m, row_blocks(m, s), 2, own) for m, s in ((keys, 5), (turned, 64)))
    assert np.abs(one.cosines - other.cosines).max() < 1e-5
    same = nearest_by_cosine(keys, row_blocks(keys, 5), 2, own)
    assert (same.rows == one.rows).all()


def test_memory_does_not_grow_with_keys() -> None:
    """By the formula of the module; blocks in float64, before they are rounded, are the test's own."""
    q, d, block, k = 64, 128, 512, 10
    queries = _random(q, d)

    def peak(blocks: int) -> int:
        tracemalloc.start()
        nearest_by_cosine(queries, ((i * block, _random(block, d, seed=i)) for i in range(blocks)), k)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    few, many = peak(2), peak(40)
    assert many < 1.05 * few
    assert many < 4 * (2 * q * d + 5 * block * d + 5 * q * block) + 20 * q * k + 8 * block * d


# -- recall -----------------------------------------------------------------------------------------------------------


def test_recall_of_sets() -> None:
    reference = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    candidate = np.array([[4, 3, 9, 10], [8, 7, 6, 5]])
    estimate = neighbour_recall(candidate, reference)
    assert (estimate.metric, estimate.value, estimate.n) == ("neighbour_recall", 0.75, 2)
    assert estimate.se == pytest.approx(np.std([0.5, 1.0], ddof=1) / math.sqrt(2))
    assert neighbour_recall(reference, reference).value == 1
    assert neighbour_recall(reference, reference).se == 0
    with pytest.raises(NoData):
        neighbour_recall(reference[:0], reference[:0])
    with pytest.raises(ValueError, match="different shape"):
        neighbour_recall(reference[:, :2], reference)


@given(st.integers(0, 10_000))
def test_recall_is_symmetric_and_a_share(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (np.stack([random.permutation(12)[:4] for _ in range(6)]) for _ in range(2))
    expected = np.mean([len(set(x) & set(y)) / 4 for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    assert neighbour_recall(a, b).value == pytest.approx(expected)
    assert neighbour_recall(a, b).value == neighbour_recall(b, a).value


# -- intrinsic dimension ----------------------------------------------------------------------------------------------


def _dimension(rows: Float32) -> tuple[float, float]:
    estimate = estimate_intrinsic_dimension(nearest_by_cosine(rows, row_blocks(rows), 2, np.arange(len(rows))).cosines)
    assert estimate.se is not None
    return estimate.value, estimate.se


@pytest.mark.parametrize("d", [2, 4, 8])
def test_dimension_of_a_sphere(d: int) -> None:
    """Directions in d + 1 dimensions fill a sphere of d; turned into more, its dimension stays."""
    rows = _random(3000, d + 1, seed=d)
    value, se = _dimension(rows)
    assert abs(value - d) < 4 * se + 0.06 * d
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((40, d + 1)))[0]
    turned = (rows.astype(np.float64) @ basis.T).astype(np.float32)
    assert _dimension(turned)[0] == pytest.approx(value, rel=1e-3)


def test_dimension_is_that_of_the_line_of_facco() -> None:
    """-ln(1 - F) over ln mu is a line through the origin whose slope is the dimension (their equation 7)."""
    rows = _random(4000, 6)
    cosines = nearest_by_cosine(rows, row_blocks(rows), 2, np.arange(len(rows))).cosines
    chords = np.sqrt(2 - 2 * cosines.astype(np.float64))
    mu = np.sort(np.log(chords[:, 1] / chords[:, 0]))
    kept = int(0.9 * len(mu))
    x, y = mu[:kept], -np.log(1 - np.arange(1, kept + 1) / len(mu))
    slope = float(x @ y) / float(x @ x)
    assert estimate_intrinsic_dimension(cosines).value == pytest.approx(slope, rel=0.05)


def test_the_error_of_the_dimension_is_its_spread() -> None:
    values, errors = [], []
    for seed in range(120):
        logs = np.random.default_rng(seed).exponential(1 / 3, size=50)
        first = np.full(50, 0.01)
        chords = np.stack([first, first * np.exp(logs)], axis=1)
        estimate = estimate_intrinsic_dimension(1 - chords**2 / 2)  # type: ignore[arg-type]
        values.append(estimate.value)
        errors.append(estimate.se or 0)
    assert np.mean(values) == pytest.approx(3, abs=0.15)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


def test_rows_that_are_twice_there_have_no_dimension() -> None:
    rows = np.repeat(_random(20, 5), 2, axis=0)
    with pytest.raises(NoData, match="0 rows"):
        _dimension(rows)
    mixed = np.concatenate([rows, _random(500, 5, seed=3)])
    assert _dimension(mixed)[0] == pytest.approx(_dimension(_random(500, 5, seed=3))[0], rel=0.1)
