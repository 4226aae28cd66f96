"""Pairs of candidates: against SciPy's paired t-test, and what is drawn of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gguf_harness.metrics.multiple import holm
from gguf_harness.metrics.pairs import compare_pairs
from gguf_harness.report.charts.pair_charts import pair_charts
from gguf_harness.report.data import RunView
from gguf_harness.store.arrays import save_arrays
from tests.unit.test_text_charts import make_run

MODELS = ("m-F16", "m-Q8_0", "m-Q5_K_S", "m-Q5_K_M", "m-Q2_K")


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_it_is_the_paired_t_test(seed: int, windows: int) -> None:
    rng = np.random.default_rng(seed)
    samples = {name: rng.normal(index, 1, windows) for index, name in enumerate("abc")}
    pairs = compare_pairs({name: dict(enumerate(values.tolist())) for name, values in samples.items()})
    expected = [stats.ttest_rel(samples[a], samples[b]) for a, b in itertools.combinations("abc", 2)]
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair, test in zip(pairs, expected, strict=True):
        assert pair.p_value == pytest.approx(float(test.pvalue), rel=1e-9, abs=1e-300)
        assert pair.difference / pair.se == pytest.approx(float(test.statistic), rel=1e-9)
    assert [pair.p_adjusted for pair in pairs] == holm([pair.p_value for pair in pairs])


def test_only_common_windows_count() -> None:
    (pair,) = compare_pairs({"a": {1: 1.0, 2: 2.0, 9: 50.0}, "b": {2: 1.0, 1: 0.5, 3: 7.0}})
    assert (pair.windows, pair.difference) == (2, 0.75)
    assert compare_pairs({"a": {1: 1.0}, "b": {1: 2.0}}) == []
    (same,) = compare_pairs({"a": {1: 1.0, 2: 3.0}, "b": {1: 1.0, 2: 3.0}})
    assert (same.difference, same.p_value) == (0.0, 1.0)


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """Q5_K_S and Q5_K_M differ by chance only."""
    content = make_run({}, MODELS)
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.3, 16)
    content["arrays"] = []
    for name, mean in zip(MODELS[1:], (0.1, 0.2, 0.2, 0.9), strict=True):
        kld = mean + 0.1 * common + rng.normal(0, 0.002, 16)
        arrays = {"q": np.array([0.0, 1.0]), "kld": np.array([0.0, 1.0]), "window": np.arange(16)}
        save_arrays(tmp_path / f"{name}.npz", arrays | {"window_kld": kld, "window_nll": 3 + common + kld})
        content["arrays"].append({"model": name, "name": "kld_quantiles", "file": f"{name}.npz", "description": ""})
    return content


def test_the_chart_says_which_pairs_differ(run: dict[str, Any], tmp_path: Path) -> None:
    (chart,) = pair_charts(RunView(run), tmp_path)
    assert chart["title"] == "1 of 6 pairs cannot be told apart: Q5_K_S and Q5_K_M"
    kld, ppl = (figure["data"] for figure in chart["figures"])
    values = np.array(kld["values"], dtype=np.float64)
    assert np.isnan(values.diagonal()).all()
    np.testing.assert_allclose(values[~np.eye(4, dtype=bool)], -values.T[~np.eye(4, dtype=bool)])
    assert values[0, 3] == pytest.approx(-0.8, abs=0.01)
    assert np.array(kld["marked"]).sum() == 2
    assert kld["marked"][1][2]
    # The loss of a file is that of the text plus its KL here: the ratio of perplexities is exp of the difference.
    assert ppl["values"][3][0] == pytest.approx(np.expm1(values[3, 0]))
    assert len(chart["table"][1]) == 6


def test_one_candidate_has_no_pair(run: dict[str, Any], tmp_path: Path) -> None:
    run["arrays"] = run["arrays"][:1]
    assert pair_charts(RunView(run), tmp_path) == []
