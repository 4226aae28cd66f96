"""Speed on a busy machine: no ratio, no claim, no gate, and every report says why."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gguf_harness.judge.claims import CLAIMS, judge_claims
from tests.busy import busy_core
from tests.plugin.conftest import ReadRun, RunSuite

pytestmark = [pytest.mark.model, pytest.mark.exclusive]

REASON = r"other processes took 0\.\d+ of 1 core during \d+ of \d+ repetitions"
RATIOS = {"pp_speed_ratio", "tg_speed_ratio", "load_ratio"}
GATES = """
[tg_tokens_per_s]
limit = 0.001
[pp_tokens_per_s]
limit_relative = 0.999
[tg_speed_ratio]
limit = 0.0001
[load_s]
limit = 1000
"""


def test_two_busy_processes_leave_no_word_on_speed(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    (pytester.path / "gates.toml").write_text(GATES, encoding="utf-8")
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0,Q4_0", "--gguf-threads=1", "--gguf-repetitions=2"]
    with busy_core():
        result = run_suite(*arguments, "--gguf-gates=gates.toml", "--gguf-inconclusive=fail", tests="test_speed.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    run = read_run()

    rows = {(row["model"], row["metric"]): row for row in run["estimates"]}
    assert not RATIOS & {metric for _, metric in rows}
    for metric in ("pp_tokens_per_s", "tg_tokens_per_s", "load_s"):
        for model in ("random-F32", "random-Q8_0", "random-Q4_0"):
            assert re.fullmatch(REASON, rows[model, metric]["doubt"])
    assert rows["random-Q8_0", "peak_memory_bytes"]["doubt"] is None

    gates = {(gate["model"], gate["metric"]): gate for gate in run["gates"]}
    for model in ("random-Q8_0", "random-Q4_0"):
        for metric in ("tg_tokens_per_s", "pp_tokens_per_s", "tg_speed_ratio", "load_s"):
            gate = gates[model, metric]
            assert (gate["verdict"], gate["value"], gate["bound"]) == ("inconclusive", None, None)
            assert re.search(rf"was not checked against its limit, at (least|most) .*: {REASON}\.$", gate["detail"])
    assert {finding.verdict for finding in judge_claims(run)} == {"not tested"}

    text = " ".join(str(result.stdout).split())
    about = r"its prompt speed and generation speed and load time \(marked \?\)"
    told = rf"random-Q8_0: no ratio, claim or gate on {about}: {REASON}\. The next run measures it again"
    assert re.search(told, text)
    assert re.search(r"random-Q8_0 .* \d+ \? +\d+\.\d \? .* incomplete", str(result.stdout))
    (page,) = pytester.path.glob("results/runs/*/report.html")
    html = page.read_text(encoding="utf-8")
    assert re.search(told, html)
    for words in ("its generation speed (", "x its"):
        assert words not in text
        assert words not in html.split("<script")[0]
    assert f"'{CLAIMS[-1].says}'" not in text

    # Nothing of it is kept: a quiet machine measures it by the next run, without --gguf-fresh.
    assert not list(pytester.path.glob("results/cache/speed/*/meta.json"))


def test_disturbed_rounds_are_named_in_benchmarks(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    """Whether they fail stays pytest-benchmark's business."""
    rounds = ["-k", "generation", "--gguf-tg=400", "--gguf-repetitions=3", "--benchmark-json=out.json"]
    rounds.append("--gguf-threads=1")
    with busy_core():
        result = run_suite(f"--models={llama_file}", *rounds, tests="test_benchmark.py")
    result.assert_outcomes(passed=1)
    (entry,) = json.loads((pytester.path / "out.json").read_text(encoding="utf-8"))["benchmarks"]
    info = entry["extra_info"]
    assert info["disturbed_rounds"] > 0
    assert re.search(r" of 1 core during \d of 3 repetitions$", info["disturbed_by"])
    assert f"random-F32: the benchmark tg400 was disturbed: {info['disturbed_by']}" in read_run()["warnings"]
