"""Errors of weights: against plain numpy, closed forms, and whatever the blocks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.errors import ModelError, NoData
from gguf_harness.gguf.weights import Weights
from gguf_harness.measure.weights.tasks import compare_weights
from gguf_harness.metrics.weight_errors import TensorError, compare_blocks, merge_errors, spread, summarize_error

Floats = NDArray[np.float32]


def write_tensors(path: Path, **tensors: NDArray[np.generic]) -> Weights:
    writer = GGUFWriter(path, "llama")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Weights([path])


def compare(candidate: Floats, reference: Floats, rows: int = 10**6) -> TensorError:
    starts = range(0, len(reference), rows)
    mean, sigma = spread(reference[i : i + rows] for i in starts)
    return compare_blocks(((candidate[i : i + rows], reference[i : i + rows]) for i in starts), mean, sigma)


@pytest.fixture(scope="module")
def pair() -> tuple[Floats, Floats]:
    random = np.random.default_rng(0)
    reference = random.standard_normal((40, 64)).astype(np.float32)
    reference[3, 5] = 20.0
    return reference + 0.1 * random.standard_normal((40, 64)).astype(np.float32), reference


def test_against_plain_numpy(pair: tuple[Floats, Floats]) -> None:
    a, b = (side.astype(np.float64) for side in pair)
    error = compare(*pair)
    assert error.weights == a.size
    assert error.relative_rmse == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-12)
    assert error.max_error == np.abs(a - b).max()
    assert error.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    assert error.snr_db == pytest.approx(10 * np.log10(b.var() + b.mean() ** 2) - 10 * np.log10(np.mean((a - b) ** 2)))
    distance = np.abs(b - b.mean()) / b.std()
    assert error.outliers == (distance > 6).sum() == 1
    assert error.largest_sigmas == pytest.approx(distance.max(), rel=1e-12)


@given(st.integers(1, 50))
def test_the_blocks_do_not_matter(pair: tuple[Floats, Floats], rows: int) -> None:
    whole, parts = compare(*pair), compare(*pair, rows)
    assert (parts.weights, parts.max_error, parts.outliers) == (whole.weights, whole.max_error, whole.outliers)
    for name in ("squared_error", "squared_reference", "squared_candidate", "product", "largest_sigmas"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-13)


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_bounds_and_scale(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, 3, 8)).astype(np.float32)
    error, scaled = compare(a, b), compare(a * np.float32(scale), b * np.float32(scale))
    assert error.cosine is not None
    assert error.relative_rmse is not None
    assert -1 <= error.cosine <= 1
    assert scaled.relative_rmse == pytest.approx(error.relative_rmse, rel=1e-5)
    assert scaled.cosine == pytest.approx(error.cosine, abs=1e-5)
    assert error.snr_db == pytest.approx(-20 * math.log10(error.relative_rmse), rel=1e-9, abs=1e-9)


def test_identical_weights_have_no_error(pair: tuple[Floats, Floats]) -> None:
    error = compare(pair[0], pair[0])
    assert (error.relative_rmse, error.max_error, error.cosine, error.snr_db) == (0.0, 0.0, 1.0, None)
    metrics = {estimate.metric: estimate.value for estimate in summarize_error(error)}
    assert metrics["weight_relative_rmse"] == 0
    assert "weight_snr_db" not in metrics


def test_known_noise_is_found() -> None:
    """Gaussian noise of 5 % of the weights' scale; the standard error of its RMS is RMS / sqrt(2 n)."""
    random, n = np.random.default_rng(1), 1 << 20
    b = random.standard_normal((1024, 1024), dtype=np.float32)
    a = b + np.float32(0.05) * random.standard_normal(b.shape, dtype=np.float32)
    error = compare(a, b)
    assert error.relative_rmse == pytest.approx(0.05, rel=6 / math.sqrt(n))
    assert error.snr_db == pytest.approx(-20 * math.log10(0.05), abs=0.05)
    assert error.cosine == pytest.approx(1 / math.sqrt(1 + 0.05**2), abs=1e-5)
    # Beyond six standard deviations is one in 5e8 of a normal distribution.
    assert error.outliers == 0


def test_rounding_to_a_grid_has_the_error_of_a_uniform_distribution() -> None:
    """A step of q leaves q / sqrt(12) (Bennett, 1948)."""
    b = np.random.default_rng(2).standard_normal((512, 512), dtype=np.float32)
    step = np.float32(1 / 16)
    error = compare(np.round(b / step) * step, b)
    assert math.sqrt(error.squared_error / error.weights) == pytest.approx(step / math.sqrt(12), rel=0.01)
    assert error.max_error <= step / 2


def test_tensors_together_are_one_tensor(pair: tuple[Floats, Floats]) -> None:
    a, b = pair
    together = merge_errors([compare(a[:7], b[:7]), compare(a[7:], b[7:])], "both")
    whole = compare(a, b)
    assert together.name == "both"
    assert together.relative_rmse == pytest.approx(whole.relative_rmse, rel=1e-12)
    assert together.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert (together.weights, together.max_error) == (whole.weights, whole.max_error)
    with pytest.raises(NoData):
        merge_errors([], "none")


def test_zeros_have_no_direction() -> None:
    zero, one = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    assert compare(zero, zero).relative_rmse == 0
    assert compare(zero, zero).cosine is None
    assert compare(one, zero).relative_rmse is None
    assert compare(one, zero).snr_db is None
    assert compare(zero, one).relative_rmse == 1
    assert {estimate.metric for estimate in summarize_error(compare(one, zero))} >= {"weight_max_error", "weight_bits"}
    assert compare(one, one).outliers == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_no_data(pair: tuple[Floats, Floats], bad: float, side: int) -> None:
    arrays = [pair[0].copy(), pair[1].copy()]
    arrays[side][0, 0] = bad
    with pytest.raises(NoData, match="'blk' has weights that are not finite"), np.errstate(all="ignore"):
        compare_blocks([(arrays[0], arrays[1])], 0.0, 1.0, "blk")


def test_nothing_is_no_data() -> None:
    with pytest.raises(NoData, match="no weights"):
        spread([])
    with pytest.raises(NoData, match="'x' has no weights"):
        compare_blocks([], 0.0, 1.0, "x")
    with pytest.raises(ValueError, match="different size"):
        compare_blocks([(np.ones(3), np.ones(1))], 0.0, 1.0)


def test_of_files(tmp_path: Path, pair: tuple[Floats, Floats]) -> None:
    reference = write_tensors(tmp_path / "r.gguf", a=pair[1], exps=pair[1].reshape(5, 8, 64), norm=pair[1][0])
    candidate = write_tensors(
        tmp_path / "c.gguf", a=pair[0].astype(np.float16), exps=pair[0].reshape(5, 8, 64), norm=pair[1][0]
    )
    error = compare_weights(candidate, reference, "a")
    half = pair[0].astype(np.float16).astype(np.float32)
    assert error.relative_rmse == pytest.approx(compare(half, pair[1]).relative_rmse, rel=1e-12)
    assert (error.type, error.reference_type, error.bits) == ("F16", "F32", 16)
    for block in (1, 64, 1000, 10**9):
        errors = compare_weights(candidate, reference, "exps", block)
        assert errors.relative_rmse == pytest.approx(compare(*pair).relative_rmse, rel=1e-12)
    assert compare_weights(candidate, reference, "norm").squared_error == 0


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    reference = write_tensors(tmp_path / "r.gguf", a=np.ones((4, 8), np.float32))
    candidate = write_tensors(tmp_path / "c.gguf", a=np.ones((8, 4), np.float32))
    with pytest.raises(ModelError, match=r"'a' has shape \[8, 4\], in the reference \[4, 8\]"):
        compare_weights(candidate, reference, "a")
