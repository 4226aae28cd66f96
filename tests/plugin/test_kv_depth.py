"""suites/kv by depth, as a person runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite

pytestmark = pytest.mark.model

GATE = "[nll_slope]\nlimit = {}\n"


def test_what_a_cache_costs_at_each_depth(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    """With a limit on the slope, which is decided for each cache."""
    limits = Path("slope.toml")
    limits.write_text(GATE.format(0.5), encoding="utf-8")
    arguments = [f"--models={llama_file}", "--gguf-kv=f16/f16,q8_0/q8_0,q4_0/f16", f"--gguf-gates={limits}"]
    result = run_suite(*arguments, "--gguf-ctx=64", suite="kv", tests="test_depth.py")
    assert result.ret == 0
    result.assert_outcomes(passed=4)
    run = read_run()
    rows = {(row["model"], row["metric"], row["part"]): row for row in run["estimates"]}
    caches = ["random-F32 [kv=q8_0/q8_0]", "random-F32 [kv=q4_0/f16]"]
    for name in caches:
        parts = [part for model, metric, part in rows if (model, metric) == (name, "kld_by_position")]
        assert parts == ["1", "2-3", "4-7", "8-15", "16-31", "32-62"]
        row = rows[name, "kld_by_position", "8-15"]
        assert (row["n"], row["clusters"], row["reference"]) == (32, 4, "random-F32")
        assert rows[name, "nll_slope", None]["detail"].startswith("for each doubling of the context; p = ")
        assert rows[name, "kld_slope", None]["clusters"] == 4
    assert rows[caches[0], "kld_by_position", "32-62"]["value"] < rows[caches[1], "kld_by_position", "32-62"]["value"]
    gates = {gate["model"]: gate["verdict"] for gate in run["gates"] if gate["metric"] == "nll_slope"}
    assert gates == dict.fromkeys(caches, "pass")
    report = next(Path("results/runs").glob("*/report.html")).read_text(encoding="utf-8")
    assert "kv-depth" in report


def test_windows_that_are_too_short_for_a_slope_are_a_skip(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(
        f"--models={llama_file}", "--gguf-kv=f16/f16,q8_0/q8_0", "--gguf-ctx=16", "-rs", suite="kv",
        tests="test_depth.py",
    )  # fmt: skip
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*A slope over depth is taken from position 16 on*"])


def test_facts_and_texts_with_a_cache(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    arguments = [f"--models={llama_file}", "--gguf-kv=f16/f16,q4_0/q4_0,q8_0/f16", "--gguf-ctx=256", "-k"]
    result = run_suite(*arguments, "facts or texts_stay", "--gguf-batch=512", suite="kv")
    assert result.ret == 0
    result.assert_outcomes(passed=5, skipped=2)
    run = read_run()
    rows = {(row["model"], row["metric"], row["part"]): row for row in run["estimates"]}
    plain, rough = "random-F32", "random-F32 [kv=q4_0/q4_0]"
    for part in (None, "0 %", "50 %", "90 %"):
        changed = rows[rough, "needle_logprob", part]["value"] - rows[plain, "needle_logprob", part]["value"]
        assert rows[rough, "needle_change", part]["value"] == pytest.approx(changed, abs=1e-9)
        assert rows[rough, "needle_change", part]["clusters"] == 6
    assert rows[plain, "needle_lift", None]["detail"] == "6 facts in a text each of 256 tokens"
    same = rows[rough, "tokens_until_different", None]
    assert same["n"] == 2
    assert same["detail"].startswith("2 prompts, 8 tokens at most, ")
    shares = [rows[rough, "text_survival", f"{tokens} tokens"]["value"] for tokens in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    report = next(Path("results/runs").glob("*/report.html")).read_text(encoding="utf-8")
    assert "kv-needles" in report
    assert "kv-texts" in report


def test_mixed_pairs_of_the_grid_are_left_to_the_tests_that_are_quick(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(f"--models={llama_file}", "-k", "texts_stay", "-rs", suite="kv")
    result.assert_outcomes(passed=2, skipped=6)
    result.stdout.fnmatch_lines(["*measured where --gguf-kv names the pair of types*"])


def test_speed_with_a_filled_cache(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    arguments = [f"--models={llama_file}", "--gguf-kv=f16/f16,q8_0/q8_0", "--gguf-depths=16", "--gguf-threads=1"]
    result = run_suite(*arguments, suite="kv", tests="test_speed.py")
    assert result.ret == 0
    run = read_run()
    rows = {(row["model"], row["metric"], row["part"]): row for row in run["estimates"]}
    for name in ("random-F32", "random-F32 [kv=q8_0/q8_0]"):
        for metric in ("pp_at_depth", "tg_at_depth"):
            row = rows[name, metric, "d16"]
            assert row["value"] > 0
            assert row["detail"].startswith("pp8, " if metric.startswith("pp") else "tg4, ")
    # On a busy machine there is no ratio, and it says so.
    ratios = [row for (_, metric, _), row in rows.items() if metric.endswith("_ratio")]
    assert len(ratios) == 2 or "skipped" in result.parseoutcomes()
    report = next(Path("results/runs").glob("*/report.html")).read_text(encoding="utf-8")
    assert "kv-speed" in report


def test_depths_beyond_the_context_are_an_error(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(
        f"--models={llama_file}", "--gguf-kv=f16/f16", "--gguf-depths=600", suite="kv", tests="test_speed.py"
    )
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*was made for 512 tokens, but 600 (--gguf-depths)*"])


def test_a_limit_asks_for_all_pairs_of_the_grid(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    """Otherwise it would never be decided for those that are skipped."""
    limits = Path("texts.toml")
    limits.write_text("[tokens_until_different]\nlimit = 0.5\n", encoding="utf-8")
    arguments = [f"--models={llama_file}", "--gguf-kv=default", f"--gguf-gates={limits}", "-k", "q8_0/q4_0"]
    run_suite(*arguments, suite="kv", tests="test_texts.py").assert_outcomes(passed=1, deselected=7)
    gated = {gate["model"] for gate in read_run()["gates"] if gate["metric"] == "tokens_until_different"}
    assert gated == {"random-F32 [kv=q8_0/q4_0]"}
