"""Baselines: what is written is read, damage is named, and worse is told from noise."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from gguf_harness.errors import OptionError, StoreError
from gguf_harness.inputs.baseline_names import check_name, find_baseline
from gguf_harness.inputs.pairing import Partner
from gguf_harness.judge.baseline_notes import missing, notes_of, uncompared
from gguf_harness.judge.baseline_reader import load_baseline
from gguf_harness.judge.baselines import (
    BASELINE_VERSION,
    PLACED_LIMIT,
    Baseline,
    Facts,
    build_baseline,
    save_baseline,
    why_unfit,
)
from gguf_harness.judge.regressions import (
    MATERIAL,
    Comparison,
    Now,
    compare,
    compare_row,
    is_compared,
    judge,
)
from gguf_harness.metrics.number_format import format_estimate
from gguf_harness.metrics.records import Estimate, Place, Row
from gguf_harness.metrics.registry import compared_by_window

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
    means = {metric: random.random(16) for metric in compared_by_window()}
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
        (_change("baseline_version", True), "has no baseline_version"),
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
        (_change(f"{MODEL}/estimates/kld_mean/n", 0), "has n = 0, expected at least 1"),
        (_change(f"{MODEL}/estimates/kld_mean/se", -0.1), "has se = -0.1, expected at least 0"),
        (_change(f"{MODEL}/estimates/kld_mean/clusters", 0), "has clusters = 0, expected at least 1"),
        (_change(f"{MODEL}/estimates/kld_mean/value", 10**400), "expected a finite number of usual size"),
        (_change(f"{MODEL}/estimates/kld_meen", {}), "has an estimate of 'kld_meen', which is not a metric"),
        (_change(f"{MODEL}/placed", {}), "has placed = '{}', expected list"),
        (_change(f"{MODEL}/placed", [3]), "has an estimate of '3', which is not a metric"),
        (
            _change(f"{MODEL}/placed", [{"metric": "attn_cosine", "layer": "2"}]),
            "has layer = '2', expected int or null",
        ),
        (_change(f"{MODEL}/placed", [{"metric": "attn_cosine", "layer": 2}]), "has value = 'None'"),
        (_change(f"{MODEL}/quantization", 7), "has quantization = '7', expected str or null"),
        (_change(f"{MODEL}/failed", [3]), "expected sentences"),
        (_change("engine", 3), "has engine = '3', expected str or null"),
        (_change("settings", {"prompts": 3}), "has prompts = '3', expected str"),
        (_change("reference", 3), "has reference = '3', expected str or null"),
        (_change(f"{MODEL}/windows", [0] * 16), "is damaged"),
        (_change(f"{MODEL}/windows", [True, *range(1, 16)]), "is damaged"),
        (_change(f"{MODEL}/means/ppl", [10**400] * 16), "whose ppl is damaged"),
        (_change(f"{MODEL}/windows", [-1, *range(15)]), "is damaged"),
        (_change(f"{MODEL}/means/ppl", [1.0]), "whose ppl is damaged: expected a number for each"),
        (_change(f"{MODEL}/means/ppl", ["1"] * 16), "whose ppl is damaged"),
        (_change(f"{MODEL}/means/ppl", [1e200] * 16), "whose ppl is damaged: expected a number for each, 0 to 700"),
        (_change(f"{MODEL}/means/same_top", [7] * 16), "whose same_top is damaged"),
        (_change(f"{MODEL}/means/delta_p_rms", [-0.1] * 16), "whose delta_p_rms is damaged"),
        (_change(f"{MODEL}/means/kld_mean", [-5] * 16), "whose kld_mean is damaged"),
        (_change("baseline_version", 0), "baseline_version = 0, expected 1 to 2"),
        (_change(f"{MODEL}/means", {}), "has ppl = 'None', expected list"),
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
        '{"baseline_version": 1e999}',
        '{"baseline_version": 1, "baseline_version": 1}',
        '{"baseline_version": ' + "9" * 5000 + "}",
        '{"baseline_version": 2, "models": {"\\ud800": {}}}',
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "<<<<<<< ours\n{}\n=======\n{}\n>>>>>>> theirs\n",
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


def test_a_mark_in_front_is_read_over(tmp_path: Path) -> None:
    """Some editors write one."""
    file = tmp_path / "main.json"
    file.write_text(json.dumps(_content()), encoding="utf-8-sig")
    assert load_baseline(file).name == "main"


def _placed_run(heads: int) -> dict[str, Any]:
    """A run whose suites recorded a metric of the whole, of a layer, a role, a prompt and of many heads."""
    run = _run()
    name = run["models"][1]["name"]
    row = {"model": name, "metric": "attn_cosine", "se": 0.01, "n": 10, "clusters": 5, "better": "higher"}
    places: list[dict[str, Any]] = [
        {"layer": 2, "value": 0.8},
        {"part": "attn_q", "value": 0.7},
        {"prompt": "fox", "value": 0.6},
        *({"layer": index // 32, "head": index % 32, "value": 0.5} for index in range(heads)),
    ]
    # The whole's comes first, and in the middle again: what is first counts, and no part may stand for it.
    rows = [row | {"value": 0.9}, *(row | place for place in places), row | {"value": 0.1}]
    nobody = row | {"metric": "resid_norm", "better": "neutral", "layer": 1, "value": 3.0}
    return run | {"estimates": [empty | one for one in [*rows, nobody] for empty in [{"prompt": None}]]}


def test_estimates_are_kept_by_metric_and_place(tmp_path: Path) -> None:
    run = _placed_run(3)
    save_baseline(tmp_path / "main.json", build_baseline(run, {}, {"prompts": "abc"}))
    baseline = load_baseline(tmp_path / "main.json")
    facts = baseline.models[run["models"][1]["name"]]
    assert facts.estimates["attn_cosine"]["value"] == 0.9
    assert {place: row["value"] for (_, place), row in facts.placed.items()} == {
        Place(layer=2): 0.8,
        Place(part="attn_q"): 0.7,
        Place(prompt="fox"): 0.6,
        Place(layer=0, head=0): 0.5,
        Place(layer=0, head=1): 0.5,
        Place(layer=0, head=2): 0.5,
    }
    assert baseline.settings == {"prompts": "abc"}


def test_tens_of_thousands_of_heads_stay_a_small_file(tmp_path: Path) -> None:
    """The coarse is kept before the fine, and how much was left out is said."""
    run = _placed_run(20_000)
    content = build_baseline(run, {})
    entry = content["models"][run["models"][1]["name"]]
    assert len(entry["placed"]) == PLACED_LIMIT
    assert [list(row)[1:2] for row in entry["placed"][:2]] == [["layer"], ["part"]]
    assert entry["placed_left_out"] == 20_003 - PLACED_LIMIT
    save_baseline(tmp_path / "main.json", content)
    assert (tmp_path / "main.json").stat().st_size < 400_000


def test_a_file_of_version_1_is_read_without_what_it_confused(tmp_path: Path) -> None:
    content = _content()
    content["baseline_version"] = 1
    del content["settings"]
    for table in content["models"].values():
        del table["placed"]
    row = {"value": 0.1, "se": 0.01, "n": 9, "clusters": 3}
    content["models"]["smollm2-135m-Q8_0"]["estimates"] |= {"attn_cosine": row, "weights_bytes": row}
    file = tmp_path / "old.json"
    file.write_text(json.dumps(content))
    baseline = load_baseline(file)
    facts = baseline.models["smollm2-135m-Q8_0"]
    assert "attn_cosine" not in facts.estimates
    assert {"kld_mean", "ppl", "weights_bytes"} <= set(facts.estimates)
    assert facts.quantization == "Q8_0"
    (note,) = baseline.notes
    assert note.endswith("1 metrics are not compared (attn_cosine); save the baseline again")


def test_a_model_that_failed_is_kept_as_one() -> None:
    run = _run()
    failed = {gate["model"]: gate["detail"] for gate in run["gates"] if gate["verdict"] == "fail"}
    assert failed
    models = build_baseline(run, {})["models"]
    assert {name for name, entry in models.items() if "failed" in entry} == set(failed)
    assert all(detail in models[name]["failed"] for name, detail in failed.items())


def test_only_what_was_measured_to_its_end_is_a_baseline() -> None:
    run = _run()
    assert why_unfit(run, unfinished=False) == ""
    assert why_unfit(run, unfinished=True) == "the session ended before all of its tests"
    assert why_unfit(run | {"tests": [], "estimates": []}, unfinished=False) == "this run measured nothing"
    test = {"id": "t", "model": "m", "outcome": "failed", "message": "It crashed.\nTwice."}
    reason = why_unfit(run | {"tests": [test, test | {"outcome": "error"}]}, unfinished=False)
    assert reason == "2 tests of m failed for another reason than a limit, the first with: It crashed"
    assert why_unfit(run | {"tests": []}, unfinished=False, failed=1) == "1 test failed without measuring anything"
    limit = {"model": "m", "verdict": "fail", "detail": "KL is high."}
    assert why_unfit(run | {"tests": [test | {"message": "m: KL is high."}], "gates": [limit]}, unfinished=False) == ""


def test_a_name_too_long_for_a_file_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="File name too long"):
        find_baseline("x" * 5000, tmp_path)


def test_a_missing_baseline_names_those_that_are_there(tmp_path: Path) -> None:
    save_baseline(tmp_path / "baselines" / "main.json", _content())
    assert find_baseline("main", tmp_path) == tmp_path / "baselines" / "main.json"
    assert find_baseline(str(tmp_path / "baselines" / "main.json"), Path("elsewhere")).is_file()
    with pytest.raises(OptionError, match="Known baselines: main"):
        find_baseline("mian", tmp_path)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "-x", "x\n", "é"])
def test_names_are_names_of_files(name: str) -> None:
    with pytest.raises(OptionError, match="is not a valid name for a baseline"):
        check_name(name)
    assert check_name("main-2026.01_a") == "main-2026.01_a"


def _facts(kld: np.ndarray, windows: range | None = None, **family: str) -> Facts:
    means = {metric: tuple(kld.tolist()) for metric in compared_by_window()}
    estimates = {
        metric: {
            "value": float(kld.mean()),
            "se": float(scipy_stats.sem(kld)),
            "n": 255 * len(kld),
            "clusters": len(kld),
        }
        for metric in compared_by_window()
    }
    return Facts("f" * 64, FAMILY | family, estimates, tuple(windows or range(len(kld))), means)


def _compare(
    old: Facts, new: Facts, metric: str = "kld_mean", corpus: tuple[str, int] = CORPUS, engine: str = "b1"
) -> Comparison:
    baseline = Baseline("main", "b1", CORPUS, "r" * 64, {"m": old})
    comparison = compare(metric, Now("m", new, engine, corpus, "r" * 64), baseline, 0.95)
    assert comparison is not None
    return comparison


def test_windows_are_compared_one_by_one() -> None:
    """The paired error equals scipy's paired t-test of what is beyond the material change."""
    random = np.random.default_rng(1)
    old = random.gamma(4, 0.02, 16)
    new = old + random.normal(0.002, 0.001, 16)
    comparison = _compare(_facts(old), _facts(new))
    assert comparison.windows == 16
    expected = scipy_stats.ttest_1samp(new - old, MATERIAL * old.mean(), alternative="greater")
    assert comparison.p_worse == pytest.approx(expected.pvalue)
    assert comparison.worse_by == pytest.approx((new - old).mean())
    difference = format_estimate((new - old).mean(), (new - old).std(ddof=1) / 4)
    assert f"worse by {difference} nats" in comparison.detail
    assert "paired over 16 windows" in comparison.detail
    unpaired = _compare(_facts(old), _facts(new), corpus=("d" * 64, 512))
    assert unpaired.p_worse > 0.1 > comparison.p_worse
    assert unpaired.windows == 0
    assert "not paired" in unpaired.detail
    assert unpaired.changes == (f"corpus ({'c' * 12} in windows of 512 -> {'d' * 12} in windows of 512)",)


def test_only_windows_that_both_have_are_compared() -> None:
    old = np.linspace(0.1, 0.2, 20)
    comparison = _compare(_facts(old), _facts(old[5:15] + 0.01, range(5, 15)))
    assert comparison.windows == 10
    assert comparison.old == pytest.approx(old[5:15].mean())
    assert comparison.worse_by == pytest.approx(0.01)


def test_few_common_windows_are_not_enough_to_pair() -> None:
    """Two windows of sixteen would hide what sixteen of each show."""
    random = np.random.default_rng(8)
    old, new = random.gamma(4, 0.02, 16), random.gamma(4, 0.02, 16) + 0.1
    few = _compare(_facts(old), _facts(new, range(14, 30)))
    assert few.windows == 0
    assert few.p_worse < 1e-4
    assert few.changes == ("windows of the text (of the baseline's 16, 2 are in this run)",)
    assert _compare(_facts(old), _facts(new, range(8, 24))).windows == 8


def test_a_value_without_an_error_is_not_compared() -> None:
    """Nobody can tell what a difference means; it must not count as "the same"."""
    old = Facts("f" * 64, FAMILY, {"kld_mean": {"value": 0.1, "se": None, "n": 9, "clusters": 1}})
    now = Now("m", _facts(np.array([0.3, 0.4, 0.5])), "b1", ("d" * 64, 512), "r" * 64)
    assert compare("kld_mean", now, Baseline("main", "b1", CORPUS, "r" * 64, {"m": old}), 0.95) is None


def _row(value: float, **place: Any) -> Row:
    estimate = Estimate("attn_cosine", value, 24, 0.001, None, 24, place=Place(**place))
    return Row.of(estimate, suite="attention", test="t", model="new", reference="r")


def test_rows_are_compared_by_metric_and_place() -> None:
    estimates = {"attn_cosine": {"value": 0.99, "se": 0.001, "n": 24, "clusters": 24}}
    placed = {("attn_cosine", Place(2, 7)): {"value": 0.8, "se": 0.001, "n": 24, "clusters": 24}}
    old = Facts("f" * 64, FAMILY, estimates, placed=placed)
    baseline = Baseline("main", "b1", CORPUS, None, {"old": old}, settings={"prompts": "a", "gone": "x"})

    def against(row: Row) -> Comparison | None:
        return compare_row(row, baseline, "old", 0.95, {"prompts": "b"})

    whole, head = against(_row(0.9)), against(_row(0.9, layer=2, head=7))
    assert whole is not None
    assert head is not None
    assert (whole.old, head.old) == (0.99, 0.8)
    assert whole.p_worse < 1e-6
    assert head.p_better < 1e-6
    assert whole.changes == ("prompts (a -> b)",)
    assert (head.layer, head.head, head.part) == (2, 7, None)
    assert "attention cosine (layer 2, head 7) is 0.9, in the baseline 'main' (old) it was 0.8" in head.detail
    assert against(_row(0.9, layer=1)) is None


def test_only_quality_of_whole_models_is_held_against_a_baseline() -> None:
    assert is_compared(_row(0.9))
    assert not is_compared(_row(0.9, layer=1))
    assert not is_compared(_row(0.9, prompt="fox"))
    assert not is_compared(_row(0.9, part="attn_q"))

    def row(metric: str, se: float | None = 0.1, reference: str | None = "r") -> Row:
        return Row.of(Estimate(metric, 1.0, 9, se, None, 3), suite="s", test="t", model="m", reference=reference)

    assert is_compared(row("bleu"))
    assert not is_compared(row("bleu", se=None))
    assert not is_compared(row("bleu", reference=None))
    unheld = ("tg_tokens_per_s", "load_s", "peak_memory_bytes", "kld_p99", "ppl", "heads_removable", "floor_kld_mean")
    assert not any(is_compared(row(metric)) for metric in unheld)


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
    comparison = _compare(_facts(old), _facts(old + 0.05), metric)
    assert comparison.old == pytest.approx(value(old.mean()))
    assert comparison.new == pytest.approx(value(old.mean() + 0.05))
    worse = metric != "same_top"
    assert (comparison.p_worse < 1e-6) == worse
    assert (comparison.p_better < 1e-6) == (not worse)


def test_a_measurement_does_not_differ_from_itself() -> None:
    old = np.random.default_rng(3).gamma(4, 0.02, 16)
    for metric in compared_by_window():
        comparison = _compare(_facts(old), _facts(old), metric)
        assert (comparison.worse_by, comparison.p_worse, comparison.p_better, comparison.changes) == (0, 1, 1, ())


def test_a_metric_that_the_file_has_no_windows_of_is_compared_by_its_value() -> None:
    """It may have begun to be compared by window after the baseline was saved."""
    facts = _facts(np.random.default_rng(3).gamma(4, 0.02, 16))
    assert facts.means is not None
    older = replace(facts, means={metric: means for metric, means in facts.means.items() if metric != "kld_mean"})
    assert (_compare(older, facts).windows, _compare(older, facts, "ppl").windows) == (0, 16)


def test_the_rounding_of_another_processor_is_no_regression() -> None:
    """All windows worse by one part in ten thousand: significant, and nothing."""
    old = np.random.default_rng(4).gamma(4, 0.02, 16)
    assert _compare(_facts(old), _facts(old * 1.0001)).p_worse > 0.99
    assert _compare(_facts(old), _facts(old * 1.01)).p_worse < 0.01


def test_what_else_changed_is_named() -> None:
    old = np.random.default_rng(5).gamma(4, 0.02, 16)
    comparison = _compare(_facts(old), _facts(old, vocab_sha256="bb", parameters="2000"), engine="b2")
    assert comparison.changes == ("llama.cpp (b1 -> b2)", "parameters (1000 -> 2000)", "vocabulary (aa -> bb)")
    assert comparison.windows == 0


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
    judged = judge(_compare(_facts(old), _facts(new)).to_json() for new in (1.2 * old, 0.8 * old, old, old + 1e-9))
    assert [comparison["outcome"] for comparison in judged] == ["worse", "better", "same", "same"]
    assert all(comparison["p_adjusted"] <= 1 for comparison in judged)


def test_what_is_missing_counts_as_nothing_else() -> None:
    old = np.random.default_rng(7).gamma(4, 0.02, 16)
    worse = _compare(_facts(old), _facts(1.2 * old)).to_json()
    judged = judge([missing("m", "ppl", "main", "nothing was compared."), worse])
    assert [comparison["outcome"] for comparison in judged] == ["missing", "worse"]


def test_rows_of_other_suites_do_not_hide_what_the_corpus_shows() -> None:
    """A hundred rows that show nothing would correct away a p-value of 0.01."""
    worse = _compare(_facts(np.ones(4)), _facts(np.ones(4))).to_json() | {"p_worse": 0.01, "p_better": 0.99}
    rows = [worse | {"metric": "attn_cosine", "p_worse": 0.5} for _ in range(100)]
    judged = judge([worse, *rows])
    assert [one["outcome"] for one in judged] == ["worse", *["same"] * 100]


def test_every_candidate_is_accounted_for() -> None:
    bare = Facts("f" * 64, FAMILY, {}, failed=("KL was high.",))
    baseline = Baseline("main", "b1", CORPUS, None, {"a": bare, "b": bare}, notes=("old",))
    partners = {
        "a": Partner("a", "name", "same name"),
        "c": Partner("b", "type", "same type Q8_0, same family"),
        "d": Partner(None, "none", "no reason"),
    }
    made = [{"model": "c", "partner": "b", "metric": "ppl"}]
    absent = uncompared(partners, baseline, made, ["a", "c", "d", None, "reference"])
    assert [(one["model"], one["outcome"]) for one in absent] == [("a", "missing"), ("d", "missing")]
    assert "Models of the baseline: a, b. Candidates of this run: a, c, d." in absent[1]["detail"]
    assert "--gguf-baseline-map=OLD=d" in absent[1]["detail"]
    assert uncompared(partners, baseline, made, ["c"]) == []
    assert notes_of(partners, baseline, made) == [
        "old",
        "c was compared with b of the baseline: same type Q8_0, same family",
        "b itself failed when the baseline was saved: KL was high.",
        "no candidate was compared with these models of the baseline: a",
    ]
