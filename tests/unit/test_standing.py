"""Where models stand: one verdict over what was planned, in the same words wherever a run is shown."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.report.badge import badge_message
from gguf_harness.report.data import RunView
from gguf_harness.report.github import annotation_lines
from gguf_harness.report.html import write_html
from gguf_harness.report.markdown import render_markdown
from gguf_harness.report.standing import Standings
from gguf_harness.report.terminal import render_terminal
from tests.unit.test_report import STORED

RUN: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
NAME = "smollm2-135m-Q4_K_M"
METRICS = ("kld_mean", "same_top", "ppl_ratio", "delta_p_rms")
TESTS = {
    "kld_mean": "test_distribution_stays_close_to_reference",
    "same_top": "test_most_likely_token_stays_the_same",
    "ppl_ratio": "test_perplexity_stays_close_to_reference",
    "delta_p_rms": "test_probability_of_the_correct_token",
}


def _run(*decided: str, **changes: Any) -> dict[str, Any]:
    """The stored run with one candidate, four planned gates, and these of them decided: as passes."""
    run = copy.deepcopy(RUN)
    for part, key in (("models", "name"), ("tests", "model"), ("gates", "model"), ("estimates", "model")):
        run[part] = [row for row in run[part] if row[key] == NAME or row[key].endswith("F16")]
    gate = next(gate for gate in run["gates"] if gate["model"] == NAME)
    run["arrays"] = []
    run["planned"] = [
        {"model": NAME, "suite": "quant", "test": test, "metric": metric} for metric, test in TESTS.items()
    ]
    run["tests"] = [_test(TESTS[metric]) for metric in decided]
    run["gates"] = [
        gate
        | {
            "metric": metric,
            "verdict": "pass",
            "detail": f"{metric} is fine.",
            "test": _id(TESTS[metric]),
            "suite": "quant",
        }
        for metric in decided
    ]
    run["session"] = {"selected": 4, "ran": len(decided), "stopped": None, "exit_status": 0}
    return run | changes


def _id(name: str) -> str:
    return f"suites/quant/test_x.py::{name}[{NAME}]"


def _test(name: str, outcome: str = "passed", **more: Any) -> dict[str, Any]:
    row = {"id": _id(name), "suite": "quant", "model": NAME, "outcome": outcome, "message": "", "duration_s": 0.0}
    return row | more


def _verdict(run: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    model = next(model for model in RunView(run).candidates if model.name == NAME)
    return model.verdict, model.reasons


def _shown(run: dict[str, Any], folder: Path) -> dict[str, str]:
    """What each way of showing a run says, as one line of plain text."""
    write_html(run, STORED, folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8").split('<section aria-labelledby="h-prices"')[0]
    texts = {
        "terminal": render_terminal(run, width=140, color=False),
        "page": page.replace("&#39;", "'").replace("&lt;", "<"),
        "markdown": render_markdown(run).replace("\\", "").replace("&lt;", "<"),
    }
    return {name: " ".join(text.split()) for name, text in texts.items()}


def test_a_pass_is_over_all_that_was_planned(tmp_path: Path) -> None:
    run = _run(*METRICS)
    assert _verdict(run) == ("pass", ())
    assert badge_message(RunView(run)) == ("Q4_K_M passes", "pass")
    assert RunView(run).headline().startswith("Smallest candidate that passes every gate")


@pytest.mark.parametrize("decided", [(), ("kld_mean",), METRICS[:3]])
def test_what_was_not_decided_is_incomplete_wherever_a_run_is_shown(decided: tuple[str, ...], tmp_path: Path) -> None:
    run = _run(*decided)
    verdict, (reason,) = _verdict(run)
    assert verdict == "incomplete"
    assert reason.startswith(f"{len(decided)} of 4 gates decided; not decided: ")
    assert "delta_p_rms (test_probability_of_the_correct_token did not run" in reason
    assert badge_message(RunView(run)) == ("Q4_K_M is incomplete", "some")
    for name, text in _shown(run, tmp_path).items():
        assert "passes every gate" not in text, name
        assert f"{len(decided)} of 4 gates decided" in text, name
        assert "Incomplete: planned gates were not decided" in text, name
    assert any(line.startswith(f"::warning title={NAME} is incomplete::") for line in annotation_lines(run))


def test_what_is_inconclusive_is_not_counted_as_decided() -> None:
    run = _run("kld_mean", "ppl_ratio")
    gates = [gate | ({"verdict": "inconclusive"} if gate["metric"] == "kld_mean" else {}) for gate in run["gates"]]
    verdict, (reason, *_) = _verdict(run | {"gates": gates})
    assert verdict == "incomplete"
    assert reason.startswith("1 of 4 gates decided; inconclusive: kld_mean; not decided: ")


def test_why_a_gate_was_not_decided_is_said() -> None:
    skipped = _test(TESTS["same_top"], "skipped", message="there is no data")
    run = _run("kld_mean", "ppl_ratio", "delta_p_rms")
    for test, why in (
        (None, "test_most_likely_token_stays_the_same did not run"),
        (skipped, "test_most_likely_token_stays_the_same was skipped: there is no data"),
        (_test(TESTS["same_top"]), "test_most_likely_token_stays_the_same passed without deciding it"),
        # A rerun that was interrupted has no outcome.
        (_test(TESTS["same_top"], "rerun"), "test_most_likely_token_stays_the_same did not run"),
    ):
        changed = run | {"tests": run["tests"] + ([test] if test else [])}
        assert _verdict(changed) == ("incomplete", (f"3 of 4 gates decided; not decided: same_top ({why})",))
    told = f"{NAME}: same_top has a limit, and this test did not decide on it: it was skipped."
    failed = _test(TESTS["same_top"], "failed", kind="undecided", message=told)
    assert _verdict(run | {"tests": [*run["tests"], failed]}) == (
        "incomplete",
        ("3 of 4 gates decided; not decided: same_top (it was skipped)",),
    )


def test_an_interrupted_run_says_how_far_it_came(tmp_path: Path) -> None:
    session = {"selected": 14, "ran": 3, "stopped": "KeyboardInterrupt", "exit_status": 2}
    run = _run("kld_mean", finished=False, session=session)
    assert RunView(run).headline() == "Interrupted: 3 of 14 tests ran (KeyboardInterrupt)"
    assert "same_top, ppl_ratio, delta_p_rms (the run was interrupted)" in _verdict(run)[1][0]
    assert badge_message(RunView(run)) == ("interrupted", "none")
    for name, text in _shown(run, tmp_path).items():
        assert "3 of 14 tests ran" in text, name
        assert "passes every gate" not in text, name
    assert "::error title=gguf-harness::Interrupted: 3 of 14 tests ran (KeyboardInterrupt)" in annotation_lines(run)
    # What is decided in full is a pass still, but no headline.
    assert _verdict(_run(*METRICS, finished=False, session=session))[0] == "pass"
    # A session that was killed leaves no reason, one of an older version nothing.
    assert RunView(run | {"session": session | {"stopped": None}}).headline() == "Interrupted: 3 of 14 tests ran"
    assert RunView(run | {"session": None}).headline() == "Interrupted"


def test_kinds_of_failure_have_their_own_words(tmp_path: Path) -> None:
    mine = _test("test_mine", "failed", kind="assertion", summary="AssertionError: assert 23.1 < 20", message="long")
    run = _run(*METRICS)
    run["tests"].append(mine)
    assert _verdict(run) == ("fail", (f"test_mine[{NAME}] failed: AssertionError: assert 23.1 < 20",))
    for name, text in _shown(run, tmp_path).items():
        assert "could not be measured" not in text.lower(), name
        assert f"test_mine[{NAME}] failed: AssertionError: assert 23.1 < 20" in text, name
    fixture = _test("test_mine", "error", kind="fixture", summary="RuntimeError: boom")
    assert _verdict(_run(*METRICS) | {"tests": [fixture]})[1] == (
        f"a fixture of test_mine[{NAME}] failed: RuntimeError: boom",
    )
    measured = _test("test_mine", "failed", kind="measurement", summary="It died.", message="It died.\n  Try again.")
    run = _run(*METRICS) | {"tests": [measured]}
    assert _verdict(run) == ("error", ("It died.\n  Try again.",))
    assert f"{NAME}: could not be measured. It died." in _shown(run, tmp_path)["terminal"]
    baseline = _test("test_mine", "failed", kind="baseline", summary="It has no such model.", message="x")
    assert _verdict(_run(*METRICS) | {"tests": [baseline]})[0] == "fail"


def test_a_prompt_that_was_refused_is_no_failure() -> None:
    run = _run(*METRICS)
    run["tests"].append(_test("test_text_of_a_prompt", "skipped", kind="prompt", summary="No system role."))
    assert _verdict(run) == ("pass", ())
    assert badge_message(RunView(run))[1] == "pass"


def test_the_worst_comes_first_and_the_rest_behind_it() -> None:
    run = _run("kld_mean", "same_top")
    run["gates"][0] |= {"verdict": "fail", "detail": "KL is too large."}
    run["gates"][1] |= {"verdict": "inconclusive", "detail": "Nobody knows."}
    run["tests"] += [_test(TESTS["ppl_ratio"], "error", kind="measurement", summary="It died.", message="It died.")]
    standing = Standings(run).of(NAME)
    assert (standing.verdict, standing.reasons) == ("fail", ("KL is too large.",))
    assert standing.others[0] == "could not be measured: It died."
    assert standing.others[1].startswith(
        "1 of 4 gates decided; inconclusive: same_top; not decided: ppl_ratio (test_perp"
    )
    run["gates"][0]["verdict"] = "pass"
    assert Standings(run).of(NAME).verdict == "error"
    run["tests"].pop()
    assert Standings(run).of(NAME).verdict == "incomplete"
    run["planned"] = run["planned"][:2]
    assert (Standings(run).of(NAME).verdict, Standings(run).of(NAME).reasons) == ("inconclusive", ("Nobody knows.",))


def test_without_limits_a_model_is_measured_and_not_passed(tmp_path: Path) -> None:
    run = _run() | {"planned": []}
    assert _verdict(run) == ("", ())
    assert badge_message(RunView(run)) == ("not gated", "none")
    for name, text in _shown(run, tmp_path).items():
        assert "Measured, not gated: no limit was set for what was measured" in text, name
        assert "measured, not gated" in text, name
    nothing = run | {"estimates": []}
    assert RunView(nothing).candidates[0].label == "not measured, not gated"


def test_the_reference_stays_the_reference_whatever_fails() -> None:
    run = _run(*METRICS)
    name = next(model["name"] for model in run["models"] if model["reference"])
    run["tests"].append(_test("test_mine", "failed", kind="assertion", summary="assert 1 < 0") | {"model": name})
    (reference,) = (model for model in RunView(run).models if model.is_reference)
    assert reference.verdict == "reference"
    assert f"{name}: reference; test_mine[{NAME}] failed: assert 1 < 0" in render_terminal(run, width=140, color=False)
    assert badge_message(RunView(run)) == ("Q4_K_M passes, other tests fail", "fail")
    assert "other tests failed" in RunView(run).headline()
    # Also where its file could not be read, so that the run knows nothing else of it.
    run["models"] = [model for model in run["models"] if not model["reference"]]
    view = RunView(run | {"reference": name})
    assert view.reference == name
    assert [model.name for model in view.candidates] == [NAME]


def test_a_session_that_failed_for_another_reason_is_not_green() -> None:
    run = _run(*METRICS)
    run["session"]["exit_status"] = 1
    assert badge_message(RunView(run)) == ("Q4_K_M passes, other tests fail", "fail")


def test_comparisons_with_a_baseline_are_planned_too() -> None:
    planned = [
        {"model": NAME, "suite": "quant", "test": "test_no_worse_than_the_baseline", "metric": metric}
        for metric in ("kld_mean", "same_top")
    ]
    made = {"model": NAME, "metric": "kld_mean", "outcome": "same", "detail": "The same.", "changes": []}
    run = _run(*METRICS, baseline={"name": "main", "planned": planned, "comparisons": [made]})
    assert _verdict(run) == (
        "incomplete",
        (
            "5 of 6 gates and comparisons decided; not decided: same_top against the baseline"
            " (test_no_worse_than_the_baseline did not run)",
        ),
    )
    # Whether a test that ended had to find something is its own matter.
    skipped = _test("test_no_worse_than_the_baseline", "skipped", message="no such model")
    skipped["id"] = f"suites/quant/test_baseline.py::test_no_worse_than_the_baseline[same_top-{NAME}]"
    assert _verdict(run | {"tests": [*run["tests"], skipped]})[0] == "pass"


def test_attempts_are_told() -> None:
    run = _run(*METRICS)
    run["tests"][0] |= {"attempts": 3}
    assert RunView(run).attempt_notes() == [
        f"test_distribution_stays_close_to_reference[{NAME}]: passed at attempt 3; only the last one counts"
    ]


def test_a_run_of_an_older_version_reads_as_before() -> None:
    assert "planned" not in RUN
    assert {model.verdict for model in RunView(RUN).models} == {"reference", "pass", "fail"}
