"""The ratio of means against finite differences and resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.kernels.standard_errors import iid_se


@given(st.integers(0, 1000), st.integers(2, 20), st.floats(0.1, 10))
def test_the_influence_is_the_derivative_by_a_samples_weight(seed: int, n: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    a, b = scale * random.normal(size=n), random.uniform(1, 2, n)
    ratio, influence = ratio_of_means(a, b)
    assert ratio == pytest.approx(np.average(a / b, weights=b))
    assert influence.sum() == pytest.approx(0, abs=1e-9 * scale * n)
    weights = np.ones(n)
    weights[0] += 1e-6
    slope = ((weights @ a) / (weights @ b) - ratio) / 1e-6
    assert influence[0] == pytest.approx(n * slope, rel=1e-3, abs=1e-4)


def test_its_error_is_the_spread_of_many_samples() -> None:
    random = np.random.default_rng(0)
    b = random.gamma(4, 1, (3000, 60))
    a = 0.5 * b + random.normal(size=b.shape)
    parts = [ratio_of_means(*pair) for pair in zip(a, b, strict=True)]
    errors = [iid_se(influence) or 0 for _, influence in parts]
    assert np.mean(errors) == pytest.approx(np.std([ratio for ratio, _ in parts]), rel=0.05)


def test_the_shape_of_the_samples_does_not_matter() -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    ratio, influence = ratio_of_means(a, b)
    assert (ratio, influence.tolist()) == (2.5, (a - 2.5).tolist())
    ratio, influence = ratio_of_means(b, b)
    assert ratio == 1
    assert not influence.any()
