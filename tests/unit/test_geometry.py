"""Anisotropy, recall, TwoNN, Procrustes and CKA against scipy, closed forms, sets and resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.geometry import (
    align,
    estimate_intrinsic_dimension,
    neighbour_recall,
    rank_correlation,
    summarize_anisotropy,
    variance_share,
)
from gguf_harness.metrics.kernels.cka import linear_cka
from gguf_harness.metrics.kernels.nearest import nearest_by_cosine, row_blocks
from gguf_harness.metrics.records import Estimate

Float32 = NDArray[np.float32]


def _random(n: int, d: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def _pair(n: int = 300, d: int = 8, noise: float = 0.5, seed: int = 0) -> tuple[Float32, Float32]:
    reference = _random(n, d, seed) * np.arange(1, d + 1, dtype=np.float32)
    candidate = (reference + noise * _random(n, d, seed + 1)).astype(np.float32)
    return candidate, reference.astype(np.float32)


def test_anisotropy_is_a_mean() -> None:
    cosines = np.array([0.1, 0.3, -0.1, 0.5])
    estimate = summarize_anisotropy(cosines)
    assert estimate.value == pytest.approx(0.2)
    assert estimate.n == 4
    assert estimate.se == pytest.approx(np.std(cosines, ddof=1) / 2)
    for bad in (np.array([]), np.array([0.1, np.nan])):
        with pytest.raises(NoData):
            summarize_anisotropy(bad)


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    random = np.random.default_rng(0)
    a = random.standard_normal(500)
    b = np.round(a + random.standard_normal(500), 1)
    estimate = rank_correlation(a, b)
    assert estimate.value == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)
    assert rank_correlation(np.exp(a), b).value == pytest.approx(estimate.value, abs=1e-12)
    assert rank_correlation(a, a).value == 1
    assert rank_correlation(a, -a).value == -1
    for bad in (a[:3], np.zeros(500), np.full(500, np.nan)):
        with pytest.raises(NoData):
            rank_correlation(bad, b[: len(bad)])
    with pytest.raises(ValueError, match="different pairs"):
        rank_correlation(a, b[:4])


def test_the_error_of_rank_correlation_is_its_spread() -> None:
    found = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        a = random.standard_normal(80)
        found.append(rank_correlation(a, 0.8 * a + 0.6 * random.standard_normal(80)))
    errors = [estimate.se or 0 for estimate in found]
    assert np.mean(errors) == pytest.approx(np.std([estimate.value for estimate in found]), rel=0.15)


def test_variance_share_is_that_of_singular_values() -> None:
    rows = _pair()[1] + np.float32(100)
    values = np.linalg.svd(rows.astype(np.float64) - rows.mean(0, dtype=np.float64), compute_uv=False) ** 2
    for count in (1, 3, 8, 20):
        estimate = variance_share(rows, count, "embedding_variance_pc1")
        assert estimate.value == pytest.approx(values[:count].sum() / values.sum(), rel=1e-5)
    assert variance_share(rows, 8, "embedding_variance_pc1").value == pytest.approx(1)
    flat = np.ones((5, 3), dtype=np.float32) * np.float32(0.1)
    for bad in (rows[:1], flat, np.where(rows > 101, np.nan, rows)):
        with pytest.raises(NoData):
            variance_share(bad, 1, "embedding_variance_pc1")


def _bootstrap(of: object, n: int, resamples: int = 200) -> float:
    assert callable(of)
    random = np.random.default_rng(0)
    return float(np.std([of(random.integers(n, size=n)) for _ in range(resamples)], ddof=1))


def test_errors_are_those_of_the_bootstrap() -> None:
    candidate, reference = _pair(n=600, noise=2.0)
    aligned = align(candidate, reference)
    share = variance_share(reference, 1, "embedding_variance_pc1")
    for estimate, of in (
        (aligned.procrustes_error, lambda rows: align(candidate[rows], reference[rows]).procrustes_error.value),
        (aligned.cka, lambda rows: align(candidate[rows], reference[rows]).cka.value),
        (share, lambda rows: variance_share(reference[rows], 1, "embedding_variance_pc1").value),
    ):
        assert estimate.n == 600
        assert estimate.se == pytest.approx(_bootstrap(of, 600), rel=0.25), estimate.metric


@pytest.mark.parametrize("block", [64, 4096])
def test_procrustes_is_scipys(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    from scipy.linalg import orthogonal_procrustes
    from scipy.spatial import procrustes

    monkeypatch.setattr("gguf_harness.metrics.kernels.moments._BLOCK", block)
    candidate, reference = _pair()
    aligned = align(candidate, reference)
    a, b = (side.astype(np.float64) - side.mean(0, dtype=np.float64) for side in (candidate, reference))
    rotation, _ = orthogonal_procrustes(a, b)
    assert np.abs(aligned.rotation - rotation).max() < 1e-6
    disparity = procrustes(reference.astype(np.float64), candidate.astype(np.float64))[2]
    assert aligned.procrustes_error.value == pytest.approx(math.sqrt(disparity), rel=1e-6)
    rest = np.linalg.norm(aligned.apply(candidate) - reference) / np.linalg.norm(b)
    assert aligned.procrustes_error.value == pytest.approx(rest, rel=1e-6)
    assert aligned.cka.value == pytest.approx(linear_cka(candidate, reference), rel=1e-9)


def test_a_space_lies_on_itself() -> None:
    rows = _random(500, 64) + np.float32(3)
    aligned = align(rows, rows)
    assert aligned.procrustes_error.value < 1e-7
    assert aligned.procrustes_error.se == 0
    assert aligned.cka.value == pytest.approx(1, abs=1e-12)
    assert (aligned.cka.se or 0) < 1e-9
    assert np.abs(aligned.apply(rows) - rows).max() < 1e-5


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_rotation_scale_and_shift_change_nothing(seed: int, d: int, scale: float, shift: float) -> None:
    from scipy.stats import ortho_group

    candidate, reference = _pair(n=40, d=d + 1, seed=seed)
    rotation = ortho_group.rvs(d + 1, random_state=seed)
    turned = (scale * (candidate.astype(np.float64) @ rotation + shift)).astype(np.float32)
    one, other = align(candidate, reference), align(turned, reference)
    for a, b in ((one.procrustes_error, other.procrustes_error), (one.cka, other.cka)):
        assert 0 <= a.value <= 1
        assert a.value == pytest.approx(b.value, abs=1e-4)
    # Both are symmetric.
    back = align(reference, candidate)
    assert back.procrustes_error.value == pytest.approx(one.procrustes_error.value, abs=1e-6)
    assert back.cka.value == pytest.approx(one.cka.value, abs=1e-6)
    assert align(turned, candidate).procrustes_error.value < 1e-4


def test_more_dimensions_are_zeros_in_the_others() -> None:
    candidate, reference = _pair(d=6)
    wide = np.concatenate([candidate, np.zeros((300, 5), dtype=np.float32)], axis=1)
    turned = (wide.astype(np.float64) @ np.linalg.qr(np.random.default_rng(0).standard_normal((11, 11)))[0]).astype(
        np.float32
    )
    plain = align(candidate, reference)
    for one, other in ((align(turned, reference), plain), (align(reference, turned), align(reference, candidate))):
        assert one.procrustes_error.value == pytest.approx(other.procrustes_error.value, rel=1e-5)
        assert one.cka.value == pytest.approx(other.cka.value, rel=1e-5)
    assert align(turned, reference).apply(turned).shape == (300, 11)


def test_what_cannot_be_aligned_is_said() -> None:
    rows = _random(10, 3)
    with pytest.raises(ValueError, match="different rows"):
        align(rows, rows[:5])
    for bad in (rows[:1], np.zeros_like(rows), np.full_like(rows, np.inf)):
        with pytest.raises(NoData):
            align(bad, bad)


def test_estimates_have_names() -> None:
    aligned = align(*_pair(), "word_procrustes_error", "word_cka")
    assert [type(estimate) for estimate in (aligned.procrustes_error, aligned.cka)] == [Estimate, Estimate]
    assert (aligned.procrustes_error.metric, aligned.cka.metric) == ("word_procrustes_error", "word_cka")


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
