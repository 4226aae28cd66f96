"""Neighbours against scikit-learn and a sort of everything."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.nearest import Nearest, nearest_by_cosine, row_blocks

Float32 = NDArray[np.float32]


def _random(n: int, d: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_neighbours_are_scikit_learns(block: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    keys, queries = _random(300, 12), _random(40, 12, seed=1)
    neighbours = nearest_by_cosine(queries, row_blocks(keys, block), 5)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(keys.astype(np.float64))
    distances, rows = expected.kneighbors(queries.astype(np.float64))
    assert (neighbours.rows == rows).all()
    assert np.abs((1 - neighbours.cosines) - distances).max() < 1e-6


def test_a_key_is_not_its_own_neighbour() -> None:
    from sklearn.neighbors import NearestNeighbors

    keys, own = _random(200, 8), np.arange(0, 200, 3)
    neighbours = nearest_by_cosine(keys[own], row_blocks(keys, 32), 4, own)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(keys)
    assert (neighbours.rows == expected.kneighbors(keys[own], return_distance=False)[:, 1:]).all()


def test_zero_rows_are_nobodys_neighbours() -> None:
    keys = _random(50, 4)
    keys[10:20] = 0
    neighbours = nearest_by_cosine(keys[:10], row_blocks(keys, 16), 39, np.arange(10))
    assert not np.isin(neighbours.rows, np.arange(10, 20)).any()
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
    neighbours = nearest_by_cosine(keys[:1], row_blocks(keys, 2), 3)
    assert neighbours.rows.tolist() == [[0, 1, 2]]


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


@given(st.integers(0, 10_000), st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_the_nearest_of_blocks_are_those_of_all(seed: int, k: int, sizes: list[int]) -> None:
    """Distances that are often equal: the first rows come first, however they are cut in blocks and mixed there."""
    random = np.random.default_rng(seed)
    distances = random.integers(0, 3, (4, sum(sizes))).astype(np.float64)
    nearest, first = Nearest(4, k, np.float64), 0
    for size in sizes:
        rows = np.stack([first + random.permutation(size) for _ in range(4)])
        nearest.add(rows, np.take_along_axis(distances, rows, axis=1))
        first += size
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    assert (nearest.rows == order).all()
    assert (nearest.distances == np.take_along_axis(distances, order, axis=1)).all()
