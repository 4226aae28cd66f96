"""Baselines: what is written is read, damage is named, and worse is told from noise."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness.baselines import (
    BASELINE_VERSION,
    Baseline,
    Facts,
    build_baseline,
    check_name,
    find_baseline,
    load_baseline,
    save_baseline,
)
from harness.errors import OptionError, StoreError
from harness.metrics.windows import COMPARED
from harness.regressions import MATERIAL, Comparison, Now, compare, judge

STORED = Path(__file__).parent.parent / "data" / "run-smollm2" / "run.json"
FAMILY = {"architecture": "llama", "parameters": "1000", "vocab_sha256": "aa"}
CORPUS = ("c" * 64, 512)


def _run() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return content


def _content() -> dict[str, Any]:
    run = _run()
    name = run["models"][1]["name"]
    random = np.random.default_rng(0)
    means = {metric: random.random(16) for metric in COMPARED}
    return build_baseline(run, {name: means | {"window": np.arange(16)}})


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    run, content = _run(), _content()
    file = tmp_path / "main.json"
    save_baseline(file, content)
    baseline = load_baseline(file)
    assert baseline.name == "main"
    assert baseline.engine == run["engine"]["llama_cpp"]
    assert baseline.corpus == (run["corpus"]["sha256"], 512)
    assert baseline.reference == run["models"][0]["sha256"]
    assert set(baseline.models) == {model["name"] for model in run["models"]}
    facts = baseline.models[run["models"][1]["name"]]
    row = next(r for r in run["estimates"] if r["model"] == run["models"][1]["name"] and r["metric"] == "kld_mean")
    assert facts.estimates["kld_mean"] == {key: row[key] for key in ("value", "se", "n", "clusters")}
    assert facts.means is not None
    assert facts.windows == tuple(range(16))
    assert len(facts.means["same_top"]) == 16
    # Small, and a change of a number is a change of a line.
    text = file.read_text(encoding="utf-8")
    assert len(text) < 60_000
    assert (
        sum(line.lstrip().startswith('"kld_mean": [') and line.rstrip(",").endswith("]") for line in text.splitlines())
        == 1
    )


def test_a_run_without_results_is_no_baseline() -> None:
    with pytest.raises(StoreError, match="measured nothing"):
        build_baseline(_run() | {"estimates": []}, {})


def _change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


MODEL = "models/smollm2-135m-Q8_0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("baseline_version", 99), "baseline version 99, this harness reads up to"),
        (_change("baseline_version", "1"), "has no baseline_version"),
        (_change("models", []), "has models = '\\[\\]', expected dict"),
        (_change("corpus", "pydoc"), "expected dict or null"),
        (_change("corpus/n_ctx", "512"), "has n_ctx = '512', expected int"),
        (_change("reference", "other"), "names 'other' as the reference"),
        (_change(f"{MODEL}/sha256", 3), "has sha256 = '3', expected str"),
        (_change(f"{MODEL}/estimates/kld_mean", None), "expected float or int"),
        (_change(f"{MODEL}/estimates/kld_mean/value", "low"), "has value = 'low'"),
        (_change(f"{MODEL}/estimates/kld_mean/n", True), "has n = 'True', expected int"),
        (_change(f"{MODEL}/windows", [0] * 16), "is damaged"),
        (_change(f"{MODEL}/windows", [-1, *range(15)]), "is damaged"),
        (_change(f"{MODEL}/means/ppl", [1.0]), "whose ppl is damaged: expected a number for each"),
        (_change(f"{MODEL}/means/ppl", ["1"] * 16), "whose ppl is damaged"),
        (_change(f"{MODEL}/means", {}), "has kld_mean = 'None', expected list"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    content = copy.deepcopy(_content())
    change(content)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=message):
        load_baseline(file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        "{}",
        '{"baseline_version": 1}',
        "[" * 100_000,
        '{"baseline_version": NaN}',
        "\x00\xff",
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match=r"save the baseline again|is not UTF-8 text"):
        load_baseline(file)


_KEYS = st.sampled_from(["baseline_version", "models", "corpus", "reference", "engine", "estimates", "means"])
_LEAVES = st.none() | st.booleans() | st.floats() | st.text()


@given(st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner)))
def test_no_json_is_a_crash(content: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "any.json"
        file.write_text(json.dumps({"baseline_version": BASELINE_VERSION, "models": {"m": content}, "corpus": content}))
        with pytest.raises(StoreError):
            load_baseline(file)


def test_a_missing_baseline_names_those_that_are_there(tmp_path: Path) -> None:
    save_baseline(tmp_path / "baselines" / "main.json", _content())
    assert find_baseline("main", tmp_path) == tmp_path / "baselines" / "main.json"
    assert find_baseline(str(tmp_path / "baselines" / "main.json"), Path("elsewhere")).is_file()
    with pytest.raises(OptionError, match="Known baselines: main"):
        find_baseline("mian", tmp_path)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "-x", "x\n", "é"])
def test_names_are_names_of_files(name: str) -> None:
    with pytest.raises(OptionError, match="is no name for a baseline"):
        check_name(name)
    assert check_name("main-2026.01_a") == "main-2026.01_a"


def _facts(kld: np.ndarray, windows: range | None = None, **family: str) -> Facts:
    means = {metric: tuple(kld.tolist()) for metric in COMPARED}
    estimates = {
        metric: {
            "value": float(kld.mean()),
            "se": float(scipy_stats.sem(kld)),
            "n": 255 * len(kld),
            "clusters": len(kld),
        }
        for metric in COMPARED
    }
    return Facts("f" * 64, FAMILY | family, estimates, tuple(windows or range(len(kld))), means)


def _compare(
    old: Facts, new: Facts, metric: str = "kld_mean", corpus: tuple[str, int] = CORPUS, engine: str = "b1"
) -> Comparison:
    baseline = Baseline("main", "b1", CORPUS, "r" * 64, {"m": old})
    found = compare(metric, Now("m", new, engine, corpus, "r" * 64), baseline, 0.95)
    assert found is not None
    return found


def test_windows_are_compared_one_by_one() -> None:
    """The paired error equals scipy's paired t-test of what is beyond the material change."""
    random = np.random.default_rng(1)
    old = random.gamma(4, 0.02, 16)
    new = old + random.normal(0.002, 0.001, 16)
    found = _compare(_facts(old), _facts(new))
    assert found.windows == 16
    expected = scipy_stats.ttest_1samp(new - old, MATERIAL * old.mean(), alternative="greater")
    assert found.p_worse == pytest.approx(expected.pvalue)
    assert found.worse_by == pytest.approx((new - old).mean())
    assert f"worse by {(new - old).mean():.3g} ±" in found.detail
    assert "paired over 16 windows" in found.detail
    unpaired = _compare(_facts(old), _facts(new), corpus=("d" * 64, 512))
    assert unpaired.p_worse > 0.1 > found.p_worse
    assert unpaired.windows == 0
    assert "not paired" in unpaired.detail
    assert unpaired.changes == (f"corpus ({'c' * 12} in windows of 512 -> {'d' * 12} in windows of 512)",)


def test_only_windows_that_both_have_are_compared() -> None:
    old = np.linspace(0.1, 0.2, 20)
    found = _compare(_facts(old), _facts(old[5:15] + 0.01, range(5, 15)))
    assert found.windows == 10
    assert found.old == pytest.approx(old[5:15].mean())
    assert found.worse_by == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("ppl", math.exp),
        ("delta_p_rms", math.sqrt),
        ("same_top", lambda mean: mean),
    ],
)
def test_metrics_are_functions_of_window_means(metric: str, value: Callable[[float], float]) -> None:
    random = np.random.default_rng(2)
    old = random.uniform(0.4, 0.6, 12)
    found = _compare(_facts(old), _facts(old + 0.05), metric)
    assert found.old == pytest.approx(value(old.mean()))
    assert found.new == pytest.approx(value(old.mean() + 0.05))
    worse = metric != "same_top"
    assert (found.p_worse < 1e-6) == worse
    assert (found.p_better < 1e-6) == (not worse)


def test_a_measurement_does_not_differ_from_itself() -> None:
    old = np.random.default_rng(3).gamma(4, 0.02, 16)
    for metric in COMPARED:
        found = _compare(_facts(old), _facts(old), metric)
        assert (found.worse_by, found.p_worse, found.p_better, found.changes) == (0, 1, 1, ())


def test_the_rounding_of_another_processor_is_no_regression() -> None:
    """All windows worse by one part in ten thousand: significant, and nothing."""
    old = np.random.default_rng(4).gamma(4, 0.02, 16)
    assert _compare(_facts(old), _facts(old * 1.0001)).p_worse > 0.99
    assert _compare(_facts(old), _facts(old * 1.01)).p_worse < 0.01


def test_what_else_changed_is_named() -> None:
    old = np.random.default_rng(5).gamma(4, 0.02, 16)
    found = _compare(_facts(old), _facts(old, vocab_sha256="bb", parameters="2000"), engine="b2")
    assert found.changes == ("llama.cpp (b1 -> b2)", "parameters (1000 -> 2000)", "vocabulary (aa -> bb)")
    assert found.windows == 0


def test_a_baseline_may_not_have_it() -> None:
    now = Now("other", _facts(np.ones(4)), "b1", CORPUS, None)
    assert compare("kld_mean", now, Baseline("main", "b1", CORPUS, None, {"m": _facts(np.ones(4))}), 0.95) is None
    bare = Facts("f" * 64, FAMILY, {})
    assert compare("kld_mean", now, Baseline("main", "b1", CORPUS, None, {"other": bare}), 0.95) is None


def test_many_comparisons_rarely_call_anything_worse() -> None:
    """Simulation: 12 comparisons of nothing but noise; any that is called worse is a false alarm."""
    random = np.random.default_rng(6)
    alarms = 0
    for _ in range(300):
        found = []
        for _ in range(12):
            old = random.gamma(4, 0.02, 12)
            found.append(_compare(_facts(old), _facts(old + random.normal(0, 0.003, 12))).to_json())
        alarms += any(comparison["outcome"] == "worse" for comparison in judge(found))
    assert alarms / 300 < 0.08


def test_what_is_worse_and_what_is_better_is_told() -> None:
    old = np.random.default_rng(7).gamma(4, 0.02, 16)
    found = judge(_compare(_facts(old), _facts(new)).to_json() for new in (1.2 * old, 0.8 * old, old, old + 1e-9))
    assert [comparison["outcome"] for comparison in found] == ["worse", "better", "same", "same"]
    assert all(comparison["p_adjusted"] <= 1 for comparison in found)
