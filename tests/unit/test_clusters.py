"""Means and ratios over clusters of different size, against equal windows and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_harness.errors import NoData
from gguf_harness.metrics.clusters import (
    by_layer,
    cluster_mean,
    cluster_ratio,
    layers_and_means,
    over_layers,
)
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.stats import mean_with_errors


def test_equal_clusters_are_windows() -> None:
    samples = np.random.default_rng(0).normal(size=(7, 5))
    expected, found = mean_with_errors(samples), cluster_mean(samples.ravel(), np.arange(0, 40, 5))
    assert (found.n, found.clusters) == (35, 7)
    for name in ("value", "se", "se_iid"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12)


def test_errors_of_unequal_clusters_are_the_spread_of_means() -> None:
    """3000 draws of 30 clusters of 1 to 9 tokens, each with an effect of its own."""
    random = np.random.default_rng(1)
    values, ratios, errors, ratio_errors = [], [], [], []
    for _ in range(3000):
        lengths = random.integers(1, 10, 30)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        effect = np.repeat(random.normal(size=30), lengths)
        a = 3 + effect + random.normal(size=starts[-1])
        b = 2 + 0.5 * effect + 0.3 * random.normal(size=starts[-1])
        mean, ratio = cluster_mean(a, starts), cluster_ratio(a, b, starts)
        values.append(mean.value)
        ratios.append(ratio.value)
        errors.append(mean.se or 0.0)
        ratio_errors.append(ratio.se or 0.0)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.06)
    assert np.mean(ratio_errors) == pytest.approx(np.std(ratios), rel=0.06)


def test_a_ratio_to_itself_is_exact() -> None:
    values = np.random.default_rng(2).uniform(1, 2, 12)
    ratio = cluster_ratio(values, values, [0, 3, 12])
    assert ratio.value == 1
    assert ratio.se == pytest.approx(0, abs=1e-15)


def test_one_cluster_has_no_clustered_error_and_empty_ones_do_not_count() -> None:
    assert cluster_mean([1.0, 2.0], [0, 2]).se is None
    assert cluster_mean([1.0, 2.0], [0, 1, 1, 2]).clusters == 2


@pytest.mark.parametrize("samples", [[], [1.0, np.nan], [np.inf]])
def test_no_data_is_no_number(samples: list[float]) -> None:
    with pytest.raises(NoData):
        cluster_mean(samples, [0, len(samples)])


def test_a_ratio_to_zero_is_no_number() -> None:
    with pytest.raises(NoData, match="ratio"):
        cluster_ratio([1.0], [0.0], [0, 1])


def test_what_is_not_known_is_left_out() -> None:
    nan = np.nan
    values = [[nan, nan, nan], [1.0, nan, 3.0]]
    estimates = by_layer("resid_norm", values, [0, 2, 3], [0, 1])
    assert list(estimates) == [1]
    assert (estimates[1].value, estimates[1].n, estimates[1].clusters, estimates[1].place) == (2.0, 2, 2, Place(1))
    whole = over_layers("resid_norm", values, [0, 2, 3], [0, 1])
    assert whole is not None
    assert (whole.value, whole.place, whole.detail) == (2.0, WHOLE, "mean of 1 layers")
    assert over_layers("resid_norm", values, [0, 2, 3], [0]) is None
    assert layers_and_means({"resid_norm": np.array(values)}, [0, 2, 3], [0, 1]) == [estimates[1], whole]
    with pytest.raises(NoData, match="None of these metrics is known"):
        layers_and_means({"resid_norm": np.array(values)}, [0, 2, 3], [0])
