"""How long a session takes is told before it starts, and --gguf-budget fits it into a time; on tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite

pytestmark = pytest.mark.model

SMALL = ("--models=tiny", "--gguf-quants=Q8_0,Q4_0,Q2_K", "--gguf-ctx=64")
AT_ONCE = """
import gguf_harness.pytest_plugin.foresight as foresight
import gguf_harness.measure.forecast.expected as expected
import gguf_harness.measure.forecast.forecast as forecast
foresight._WORTH_S = forecast._SHOWN_FROM_S = 0.0
"""


@pytest.fixture
def always_foreseen(pytester: pytest.Pytester) -> tuple[str, ...]:
    """Options with which short sessions are foreseen, too."""
    pytester.makepyfile(at_once=AT_ONCE)
    pytester.syspathinsert()
    return "-p", "at_once"


def test_a_short_session_is_not_foreseen(run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester) -> None:
    result = run_suite(*SMALL[:1], "--gguf-quants=Q8_0", tests="test_file.py")
    result.stdout.no_fnmatch_line("*forecast:*")
    run = read_run()
    assert (run["forecast"], run["budget"]) == (None, None)
    assert not list(pytester.path.glob("results/cache/forecast/*"))


def test_a_session_tells_what_it_will_take_and_learns(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, always_foreseen: tuple[str, ...]
) -> None:
    arguments = ("--models=tiny", "--gguf-quants=Q8_0", "--gguf-ctx=64", *always_foreseen)
    first = run_suite(*arguments, tests="test_divergence.py")
    first.stdout.fnmatch_lines(["forecast: about * s: quant *"])
    run = read_run()
    by_name = {row["name"]: row for row in run["forecast"]["measurements"]}
    assert {"models/quantized", "passes/reference", "passes/candidate", "passes/floor", "tests/quant"} == {*by_name}
    assert all(row["actual_s"] > 0 for row in by_name.values())
    assert run["forecast"]["timing_s"] > 0
    # Parts do not take longer than the whole.
    assert sum(row["actual_s"] for row in by_name.values()) <= run["forecast"]["actual_s"] + 0.1
    (table,) = pytester.path.glob("results/cache/durations/*.jsonl")
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    (learned,) = (row for row in rows if row["kind"] == "passes/candidate")
    assert learned["seconds"] == pytest.approx(by_name["passes/candidate"]["actual_s"], abs=1e-3)

    # What is in the cache takes no time; what it took is known now.
    run_suite(*arguments, tests="test_divergence.py")
    again = read_run()["forecast"]
    assert {row["name"] for row in again["measurements"]} == {"tests/quant"}
    # Six windows of the same file take longer than four, and at most half as long again: its start comes on top.
    run_suite(*arguments, "--gguf-chunks=6", tests="test_divergence.py")
    more = {row["name"]: row for row in read_run()["forecast"]["measurements"]}
    # What was learned once counts half.
    four = learned["expected"] * (learned["seconds"] / learned["expected"]) ** 0.5
    assert four < more["passes/candidate"]["predicted_s"] < 1.5 * four


def test_a_budget_leaves_out_and_says_so(run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(slow=AT_ONCE + "expected.TESTS_S = {'quant': 3000.0}\n")
    pytester.syspathinsert()
    # Tests of each subject seem to take 3000 s: there is time for the reference and one candidate.
    result = run_suite(*SMALL, "--gguf-budget=9000s", "-p", "slow", "--gguf-chunks=6", tests="test_divergence.py")
    # Q2_K keeps no limit.
    result.assert_outcomes(passed=2, failed=3, deselected=8)
    result.stdout.fnmatch_lines(
        ["candidates: tiny-Q2_K", "forecast: about *", "budget: 2 h 30 min: without tiny-Q8_0, tiny-Q4_0"]
    )
    run = read_run()
    assert run["budget"]["seconds"] == 9000
    assert {row["model"] for row in run["budget"]["left_out"]} == {"tiny-Q8_0", "tiny-Q4_0"}
    assert run["settings"]["chunks"] == 6
    assert {row["model"] for row in run["planned"]} == {"tiny-Q8_0", "tiny-Q4_0", "tiny-Q2_K"}
    assert {row["model"] for row in run["gates"]} == {"tiny-Q2_K"}
    assert any("--gguf-budget=2 h 30 min: without tiny-Q8_0, tiny-Q4_0" in warning for warning in run["warnings"])
    report = next(pytester.path.glob("results/runs/*/report.html")).read_text()
    assert "left out for the budget" in report
    assert not list(pytester.path.glob("results/cache/models/*/Q4_0.gguf"))


def test_fewer_windows_are_the_first_of_more(run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester) -> None:
    """A budget chooses options: its numbers are those of a run with these options, and come from the same cache."""
    arguments = ("--models=tiny", "--gguf-quants=Q2_K", "--gguf-ctx=64")
    run_suite(*arguments, "--gguf-chunks=4", tests="test_perplexity.py", quick=False)
    few = read_run()
    pytester.makepyfile(slow=AT_ONCE + COSTLY)
    pytester.syspathinsert()
    result = run_suite(*arguments, "--gguf-budget=5600s", "-p", "slow", tests="test_perplexity.py", quick=False)
    result.stdout.fnmatch_lines(["budget: 1 h 33 min: 4 of 16 windows of the text (--gguf-chunks)"])
    budgeted = read_run()
    assert budgeted["settings"]["chunks"] == 4
    assert budgeted["estimates"] == few["estimates"]


COSTLY = """
from gguf_harness.measure.forecast.scales import Effort
expected.EFFORTS = {**expected.EFFORTS, "passes/reference": lambda scale: Effort(seconds=1200.0 * scale.windows)}
"""


def test_what_would_end_too_late_is_not_begun(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester
) -> None:
    """The reference's pass takes all the time: those of candidates are left out, and no gate fails or passes by it."""
    pytester.makepyfile(slow=AT_ONCE + LATE)
    pytester.syspathinsert()
    result = run_suite(*SMALL, "--gguf-budget=2h", "-p", "slow", tests="test_divergence.py")
    outcomes = result.parseoutcomes()
    assert outcomes["skipped"] == 12
    assert "failed" not in outcomes
    assert result.ret == 0
    run = read_run()
    assert run["gates"] == []
    assert len(run["budget"]["left_out"]) == 12
    assert any("time was over before" in warning for warning in run["warnings"])
    assert " (left out for the budget of 2 h, which is over" in " ".join(result.stdout.str().split())


LATE = """
import pytest
from gguf_harness.pytest_plugin.state import STATE

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    result = yield
    item.config.stash[STATE].foresight.started -= 8000.0
    return result
"""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("soon", "*'soon' is not a time such as 90s, 10m, 1h30m, or 600 for seconds*"),
        ("", "*'' is not a time such as*"),
        ("-5", "*'-5' is not a time such as*"),
        ("0", "*is not a time to wait*"),
    ],
)
def test_a_budget_is_a_time(pytester: pytest.Pytester, given: str, message: str) -> None:
    result = pytester.runpytest_subprocess(f"--gguf-budget={given}", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_budget_that_is_too_short_says_what_would_do(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    result = run_suite(*SMALL, "--gguf-budget=1s", tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--gguf-budget=1 s is too short: the least that is worth measuring, 1 candidate, * takes about * s."]
    )
    assert not list(Path(pytester.path).glob("results/runs/*/run.json"))


def test_a_budget_is_of_one_process(run_suite: RunSuite) -> None:
    pytest.importorskip("xdist")
    result = run_suite(*SMALL, "--gguf-budget=1m", "-n2", tests="test_file.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gguf-budget plans the time of one process, and pytest -n is for several.*"])


UNEXPECTED = """
take = forecast.Forecast.measured
def measured(self, job, seconds):
    expected = take(self, job, seconds)
    if job.measurement.counted and not expected:
        with open("unexpected.txt", "a") as out:
            out.write(f"{job.name} {job.topic and job.topic.name}\\n")
    return expected
forecast.Forecast.measured = measured
"""


@pytest.mark.parametrize(
    ("suite", "options"),
    [
        ("kv", ("--gguf-quants=Q8_0", "--gguf-kv=q8_0/q8_0", "-k", "not speed and not facts")),
        ("lora", ("--gguf-quants=Q8_0",)),
    ],
)
def test_all_that_variants_need_is_foreseen_and_found_again(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, suite: str, options: tuple[str, ...]
) -> None:
    pytester.makepyfile(watched=AT_ONCE + UNEXPECTED)
    pytester.syspathinsert()
    arguments = ("--models=tiny", *options, "--gguf-ctx=64", "-p", "watched")
    first = run_suite(*arguments, suite=suite)
    first.stdout.fnmatch_lines([f"forecast: about * s: {suite} *"])
    rows = {row["name"]: row for row in read_run()["forecast"]["measurements"]}
    assert not (pytester.path / "unexpected.txt").exists(), (pytester.path / "unexpected.txt").read_text()
    # Two prompts are too few for a number of tests: these measure nothing.
    assert [name for name, row in rows.items() if row["actual_s"] == 0] == []
    assert len(rows) > 8
    run_suite(*arguments, suite=suite)
    assert [row["name"] for row in read_run()["forecast"]["measurements"]] == [f"tests/{suite}"]


def test_a_budget_leaves_out_variants_of_files(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester
) -> None:
    """The reference's own cache is measured first; a limit on what is left out stays open."""
    pytester.makepyfile(slow=AT_ONCE + "expected.TESTS_S = {'kv': 3000.0}\n")
    pytester.syspathinsert()
    kv = "--gguf-kv=f16/f16,q8_0/q8_0,q4_0/q4_0"
    arguments = ("--models=tiny", "--gguf-quants=Q8_0,Q2_K", kv, "--gguf-ctx=64", "-p", "slow")
    result = run_suite(*arguments, "--gguf-budget=7000s", suite="kv", tests="test_divergence.py")
    result.stdout.fnmatch_lines(["budget: 1 h 56 min: *without *tiny-Q8_0 [[]kv=q8_0/q8_0], *"])
    run = read_run()
    measured = {row["model"] for row in run["estimates"]}
    assert measured == {"tiny-F16 [kv=q8_0/q8_0]", "tiny-Q2_K [kv=q8_0/q8_0]"}
    left_out = {row["model"] for row in run["budget"]["left_out"]}
    assert left_out == {f"{file} [kv=q4_0/q4_0]" for file in ("tiny-F16", "tiny-Q8_0", "tiny-Q2_K")} | {
        "tiny-Q8_0 [kv=q8_0/q8_0]"
    }


def test_tests_that_skip_themselves_go_with_their_subjects(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    """Of the grid that is measured by default, texts are continued with two caches only."""
    pytester.makepyfile(slow=AT_ONCE + "expected.TESTS_S = {'kv': 3000.0}\n")
    pytester.syspathinsert()
    arguments = ("--models=tiny", "--gguf-quants=Q8_0", "--gguf-ctx=64", "-p", "slow")
    result = run_suite(*arguments, "--gguf-budget=5000s", suite="kv", tests="test_texts.py")
    outcomes = result.parseoutcomes()
    # One of the reference's, one of the candidate's, of ten.
    assert {name: outcomes.get(name, 0) for name in ("skipped", "deselected", "errors")} == {
        "skipped": 1,
        "deselected": 8,
        "errors": 0,
    }
