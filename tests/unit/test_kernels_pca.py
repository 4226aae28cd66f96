"""Principal components against numpy's SVD; moments against numpy's mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.moments import centred_blocks, moments
from gguf_harness.metrics.kernels.pca import axis_signs, principal_axes, principal_subspace

Array = NDArray[np.float64]


def _rows(n: int, d: int, seed: int = 0) -> Array:
    # Variances that are apart, so that axes are unique.
    return np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(5, 1, d) + 100


@pytest.mark.parametrize(("n", "d"), [(60, 7), (5, 40), (50, 50), (3000, 4)])
def test_principal_axes_are_those_of_the_svd(n: int, d: int) -> None:
    rows = _rows(n, d)
    _, s, vt = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    mean, axes, shares = principal_axes(rows, 3)
    assert mean == pytest.approx(rows.mean(0))
    assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-9
    assert np.abs(np.abs(np.einsum("kd,dk->k", vt[:3], axes)) - 1).max() < 1e-9
    assert axes.max(axis=0) == pytest.approx(np.abs(axes).max(axis=0))
    assert shares == pytest.approx((s**2 / (s**2).sum())[:3], rel=1e-9)
    leading = principal_subspace(rows, mean, 3)
    # The same plane, whatever the axes in it.
    assert np.abs(leading @ leading.T - axes @ axes.T).max() < 1e-9


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_axes_do_not_see_scale_and_shift_and_turn_with_the_rows(seed: int, scale: float, shift: float) -> None:
    from scipy.stats import ortho_group

    rows = _rows(12, 4, seed)
    rotation = ortho_group.rvs(4, random_state=seed)
    _, axes, shares = principal_axes(rows, 2)
    _, moved, moved_shares = principal_axes(scale * rows + shift, 2)
    _, turned, _ = principal_axes(rows @ rotation, 2)
    assert moved == pytest.approx(axes, abs=1e-6)
    assert moved_shares == pytest.approx(shares, abs=1e-9)
    assert np.abs(np.einsum("dk,dk->k", rotation @ turned, axes)) == pytest.approx(1, abs=1e-6)


def test_axes_beyond_the_rank_are_zero() -> None:
    _, axes, shares = principal_axes(_rows(2, 5), 4)
    assert not axes[:, 1:].any()
    assert shares.tolist() == [pytest.approx(1), 0, 0, 0]


def test_signs_point_to_the_largest_entry() -> None:
    axes = np.array([[0.1, -0.9], [0.8, -0.6], [0.0, 0.0]])
    assert axis_signs(axes).tolist() == [-1, 1, 1]


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 5))
def test_moments_are_numpys(seed: int, n: int, d: int) -> None:
    rows = np.random.default_rng(seed).normal(3, 2, (n, d)).astype(np.float32)
    mean, square = moments(rows, "rows")
    assert mean == pytest.approx(rows.mean(0, dtype=np.float64))
    assert square == pytest.approx(n * rows.astype(np.float64).var(0).sum())


def test_blocks_are_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_harness.metrics.kernels.moments._BLOCK", 4)
    rows = _rows(10, 3)
    blocks = list(centred_blocks(rows, rows.mean(0)))
    assert [len(block) for block in blocks] == [4, 4, 2]
    assert (np.concatenate(blocks) == rows - rows.mean(0)).all()


@pytest.mark.parametrize("rows", [np.ones((5, 3)), np.ones((1, 3)), np.ones((5, 0)), np.full((5, 3), np.nan)])
def test_rows_without_moments_are_said(rows: Array) -> None:
    for measure in (lambda: moments(rows, "word_cka"), lambda: principal_axes(rows, 1)):
        with pytest.raises(NoData):
            measure()
