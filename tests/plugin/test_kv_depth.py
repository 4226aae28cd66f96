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
