"""How the steps of `make gpu-check` are run, cut and told. The processes are real; the steps are samples."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.gpu_check import __main__ as gpu_check
from tests.gpu_check.environment import ROOT, Setup, child_environment, read_setup
from tests.gpu_check.plan import STEPS, Step, run_steps
from tests.gpu_check.running import run_child
from tests.gpu_check.table import headline, report, table, write_report
from tests.gpu_check.verdicts import FAILED, NO_GPU, PASSED, Outcome, StepResult, exit_code

SAMPLES = "tests.gpu_check.samples"


def _setup(folder: Path, **more: Any) -> Setup:
    return Setup(str(folder), str(folder / "cache"), gpu=False, quick=True, python=sys.executable, **more)


def _step(name: str, **more: Any) -> Step:
    given: dict[str, Any] = {"limit_s": 20.0, "least_s": 0.1, "needs": ()} | more
    return Step(name.replace("_", "-"), name, f"{SAMPLES}:{name}", **given)


def _run(folder: Path, steps: list[Step], total_s: float = 60.0, **more: Any) -> dict[str, StepResult]:
    only = more.pop("only", frozenset())
    results = run_steps(steps, _setup(folder, **more), total_s, lambda *_: None, lambda _: None, only)
    return {result.name: result for result in results}


def _result(verdict: Any, *, absent: bool = False, name: str = "step") -> StepResult:
    return StepResult(name, "A step", Outcome(verdict, "why", {}, absent), 1.0, 5.0, "GPU")


# -- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([_result("pass")], PASSED),
        ([_result("pass"), _result("not run", absent=True)], PASSED),
        ([_result("pass"), _result("fail")], FAILED),
        ([_result("pass"), _result("not run")], FAILED),
        # Nothing passes by absence.
        ([_result("not run", absent=True)], FAILED),
        ([], FAILED),
    ],
)
def test_zero_means_that_all_passed_that_had_to_run(results: list[StepResult], code: int) -> None:
    assert exit_code(results) == code


def test_codes_are_apart_from_argparses() -> None:
    assert len({PASSED, FAILED, NO_GPU, 2}) == 4


# -- one step in its process ------------------------------------------------------------------------------------------


def test_a_step_that_sleeps_is_cut(tmp_path: Path) -> None:
    """Also where it ignores SIGTERM; the next step then runs, and the cut one has not passed."""
    start = time.monotonic()
    results = _run(tmp_path, [_step("sleep", limit_s=1.5), _step("passes")])
    assert time.monotonic() - start < 15
    outcome = results["sleep"].outcome
    assert outcome.verdict == "fail"
    assert outcome.reason == "cut after 2 s, its limit; it last said: about to sleep"
    assert results["passes"].outcome.verdict == "pass"
    assert exit_code(results.values()) == FAILED


def test_what_a_step_leaves_behind_is_ended(tmp_path: Path) -> None:
    (result,) = _run(tmp_path, [_step("leave_a_child")]).values()
    assert result.outcome.verdict == "pass"
    pid = int((tmp_path / "child.pid").read_text(encoding="ascii"))
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the child of the step still runs")


def test_a_crash_and_an_exception_are_failures_with_their_words(tmp_path: Path) -> None:
    results = _run(tmp_path, [_step("crash"), _step("raises"), _step("passes")])
    assert results["crash"].outcome.reason == "ended by SIGABRT; it last said: GGML_ASSERT(a == b) failed"
    assert results["raises"].outcome.reason == "RuntimeError: no kernel image is available"
    assert "Traceback" in (tmp_path / str(results["raises"].log)).read_text(encoding="utf-8")
    assert results["passes"].outcome.numbers["python"] == sys.executable


@pytest.mark.parametrize(
    "written", ["", "{", "[]", '{"verdict": "good", "reason": "", "numbers": {}, "absent": false}']
)
def test_what_is_no_outcome_is_a_failure(tmp_path: Path, written: str) -> None:
    result = tmp_path / "result.json"
    code = f"import pathlib; pathlib.Path({str(result)!r}).write_text({written!r})"
    outcome, _ = run_child(
        [sys.executable, "-c", code], result, tmp_path / "log", 20, child_environment(sys.executable)
    )
    assert outcome.verdict == "fail"
    assert outcome.reason.startswith("it left no result")


def test_the_result_of_an_earlier_run_is_not_taken(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(json.dumps(Outcome("pass", "old").to_json()), encoding="utf-8")
    outcome, _ = run_child([sys.executable, "-c", ""], result, tmp_path / "log", 20, {})
    assert outcome.verdict == "fail"
    outcome, _ = run_child([str(tmp_path / "none")], result, tmp_path / "log", 20, {})
    assert (outcome.verdict, "cannot be started" in outcome.reason) == ("fail", True)


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_steps_that_do_not_fit_any_more_have_not_passed(tmp_path: Path) -> None:
    results = _run(tmp_path, [_step("passes"), _step("raises", least_s=100.0)], total_s=50.0)
    outcome = results["raises"].outcome
    assert (outcome.verdict, outcome.absent) == ("not run", False)
    assert outcome.reason.startswith("out of time: 4")
    assert exit_code(results.values()) == FAILED


def test_a_step_is_given_no_more_than_what_is_left(tmp_path: Path) -> None:
    begun: list[float] = []
    steps = [_step("passes", limit_s=300.0)]
    run_steps(steps, _setup(tmp_path), 30.0, lambda _, limit_s: begun.append(limit_s), lambda _: None)
    assert 20 < begun[0] <= 25


def test_a_step_waits_for_those_that_it_needs(tmp_path: Path) -> None:
    steps = [
        _step("raises"),
        _step("refuses"),
        _step("passes", needs=("raises",)),
        _step("tell_found", needs=("refuses",)),
    ]
    results = _run(tmp_path, steps)
    assert results["passes"].outcome == Outcome("not run", "raises did not pass")
    # What is not here is nobody's fault, and neither is what needs it.
    assert results["tell-found"].outcome == Outcome("not run", "refuses did not pass", absent=True)


def test_later_steps_know_what_earlier_ones_found(tmp_path: Path) -> None:
    install = replace(_step("passes"), name="install")
    results = _run(tmp_path, [install, _step("tell_found", needs=("install",))])
    assert results["tell-found"].outcome.numbers["found"]["install"]["gpu"] is False
    assert results["tell-found"].outcome.numbers["executable"] == sys.executable


def test_one_step_can_be_asked_for(tmp_path: Path) -> None:
    results = _run(tmp_path, [_step("passes"), _step("raises")], only=frozenset({"passes"}))
    assert results["passes"].outcome.verdict == "pass"
    assert results["raises"].outcome.absent


def test_what_needs_a_gpu_is_not_tried_without_one(tmp_path: Path) -> None:
    (result,) = _run(tmp_path, [_step("passes", stands_in="needs a GPU")]).values()
    assert result.outcome == Outcome("not run", "needs a GPU", absent=True)


def test_the_steps_fit_together() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    for place, step in enumerate(STEPS):
        assert set(step.needs) <= set(names[:place]), step.name
        assert 0 < step.least_s < step.limit_s
        module, _, function = step.where.partition(":")
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        assert f"def {function}(setup: Setup) -> Outcome" in (ROOT / f"{module.replace('.', '/')}.py").read_text(
            encoding="utf-8"
        )


def test_what_runs_before_the_installation_needs_the_standard_library_alone() -> None:
    """A bare Python, isolated from everything that is installed, imports it."""
    import subprocess

    modules = ("__main__", "plan", "running", "verdicts", "table", "machine", "cuda_build", "environment", "child")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "\n".join(
        f"import tests.gpu_check.{module}" for module in modules
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_setup_comes_back(tmp_path: Path) -> None:
    setup = _setup(tmp_path, wheels="w", found={"machine": {"gpus": [{"name": "T4"}]}})
    setup.write(tmp_path / "setup.json")
    assert read_setup(tmp_path / "setup.json") == setup


def test_sessions_of_others_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/some")
    environment = child_environment(sys.executable)
    assert "PYTEST_ADDOPTS" not in environment
    assert environment["LD_LIBRARY_PATH"].endswith("/some")
    assert environment["PYTHONPATH"].endswith(str(ROOT))


# -- what people read -------------------------------------------------------------------------------------------------


def test_the_table_has_each_verdict_and_reason() -> None:
    long = Outcome("fail", "a reason that goes on " * 12)
    results = [
        _result("pass"),
        _result("not run", name="late"),
        StepResult("x", "Another", long, 2.0, 5.0, "CPU"),
    ]
    lines = table(results, width=90).splitlines()
    assert lines[0].startswith("pass    A step ")
    assert lines[1].startswith("not run A step ")
    assert lines[2].startswith("FAIL    Another")
    assert max(map(len, lines)) <= 90
    assert len(lines) > 4


def test_without_a_gpu_nothing_sounds_as_if_there_had_been_one() -> None:
    said = headline([_result("pass"), _result("pass")], gpu=False)
    assert said.startswith("NO GPU WAS CHECKED")
    assert headline([_result("pass"), _result("not run", name="late")], gpu=True) == (
        "GPU check: 1 passed, 0 failed, 1 not run; without a verdict: late."
    )


def test_the_report_is_json_with_all_numbers(tmp_path: Path) -> None:
    machine = StepResult("machine", "Machine", Outcome("pass", "T4", {"gpus": [{"name": "T4"}]}), 1.0, 5.0, "GPU")
    content = report([machine, _result("fail")], {"gpu": True, "started": "now"})
    write_report(tmp_path / "gpu-check.json", content)
    back = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))
    assert back == content
    assert (back["verdict"], back["machine"]["gpus"]) == ("fail", [{"name": "T4"}])
    assert [step["outcome"]["verdict"] for step in back["steps"]] == ["pass", "fail"]
    assert list(tmp_path.iterdir()) == [tmp_path / "gpu-check.json"]


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "devises"], "there is no step 'devises'; expected one of analytics"),
        (["--wheels", "/none"], "--wheels=/none: there is no such folder"),
        (["--sdist", "/none.tar.gz"], "--sdist=/none.tar.gz: there is no such file"),
        (["--seconds", "0"], "must be above 0"),
        (["--gpus", "2"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_machine_without_a_gpu_has_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """NVML is real where there is no driver; on a machine with one it is made to find none."""
    monkeypatch.setattr(gpu_check, "find_gpus", lambda: ([], "NVML: Driver Not Loaded"))
    assert gpu_check.main(["--folder", str(tmp_path / "out")]) == NO_GPU
    said = capsys.readouterr().out
    assert said.startswith("There is no NVIDIA GPU here: NVML: Driver Not Loaded.\n  Nothing was checked.")
    assert not (tmp_path / "out").exists()
