"""Collect test reports into the run, and write the results: run.json, report, summaries for CI."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

from gguf_harness.errors import HarnessError, StoreError
from gguf_harness.judge.outcomes import FailedLater, Kind, message_of
from gguf_harness.pytest_plugin.junit import add_suite_properties, readable, writes_junit
from gguf_harness.pytest_plugin.state import BASELINE_PROPERTY, ESTIMATE_PROPERTY, GATE_PROPERTY, State, only_plans
from gguf_harness.pytest_plugin.summary import write_summary
from gguf_harness.store.run_draft import Course, Findings, RunDraft, TestRecord
from gguf_harness.store.runs import BASELINE_COPY, write_bytes
from gguf_harness.store.text_files import read_bytes

__all__ = ["Reporting"]

_CRASHED: Final[str] = "???"
"""The phase that xdist reports for a test that crashed its worker."""


class Reporting:
    """Collects test reports into the run. Registered in the reporting process, not in xdist's workers."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._problem: HarnessError | None = None
        self._summary_problem: HarnessError | None = None
        self._next_save = 0.0
        self._course = Course()
        self._repeating: set[str] = set()
        self._planned: set[str] = set()
        self._problems: list[str] = []

    # First, because the writer of JUnit files must read the changed properties.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take rows, verdicts and outcome of one of our tests; track the progress of the session."""
        self._follow(report)
        if str(report.when) == _CRASHED:  # which pytest does not have
            self._keep_crashed(report)
        if not hasattr(report, "gguf_model") or only_plans(self._state.config):
            return
        draft = self._state.draft = self._state.draft or _new_draft(self._state, self._course)
        self._plan(draft, report.gguf_suites)
        identifier = report.nodeid
        if report.when == "call" or report.outcome != "passed":
            draft.tests[identifier] = _test_record(report)
        if report.when == "teardown" and identifier not in self._repeating:
            draft.findings[identifier] = _findings(report)
            self._save_now_and_then(draft)
        if writes_junit(self._state.config):
            model: str | None = report.gguf_model
            together = self._state.options.holm
            report.user_properties = readable(report.user_properties, model, together=together)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which tests are to run; with xdist, none are collected here."""
        self._course.selected |= {item.nodeid for item in session.items}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:  # noqa: ARG002
        """The same for an xdist worker; all workers collect the same tests."""
        self._course.selected |= set(ids)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Record Ctrl-C, pytest.exit, or anything that ends a session like them."""
        told = str(excinfo.value)
        self._course.stopped = f"{excinfo.typename}: {told}" if told else excinfo.typename

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Record an internal error, in pytest or a plugin."""
        self._course.stopped = f"an internal error of pytest, {excinfo.typename}: {excinfo.value}"

    def _keep_crashed(self, report: pytest.TestReport) -> None:
        """Record a test that crashed an xdist worker: xdist reports it, but without its model."""
        groups = self._state.config.pluginmanager.get_plugin("gguf_harness.pytest_plugin.distribution")
        model, suite = groups.about(report.nodeid) if groups is not None else (None, "")
        if self._state.draft is not None and model is not None:
            message = str(report.longrepr)
            record = TestRecord(report.nodeid, suite, model, "failed", message, 0.0, "measurement", message)
            self._state.draft.tests[report.nodeid] = record

    def _follow(self, report: pytest.TestReport) -> None:
        """Count a test once it has its final outcome: reruns report more than once."""
        identifier = report.nodeid
        outcome: str = report.outcome
        if outcome == "rerun":  # by pytest-rerunfailures
            self._repeating.add(identifier)
        elif report.when == "setup":
            self._repeating.discard(identifier)
        # xdist reports a test that crashed a worker once.
        if report.when not in {"setup", "call"} and identifier not in self._repeating:
            self._course.ended.add(identifier)

    def _plan(self, draft: RunDraft, suites: list[str]) -> None:
        """Add the planned gates of a suite when its first report arrives."""
        if set(suites) <= self._planned:
            return
        from gguf_harness.judge.plan import plan_comparisons, plan_gates

        self._planned |= set(suites)
        ladder = self._state.planned_ladder
        draft.planned = plan_gates(self._planned, ladder, self._state.gates)
        if self._state.options.baseline is not None:
            draft.planned_comparisons = plan_comparisons(self._planned, ladder)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Decide what needs the whole run; after all workers are closed, write run.json and the report."""
        self._begin_empty_part(session)
        draft = self._state.draft
        self._hold_against_baseline(session, draft)
        if draft is not None:
            # pytest's reason for -x and --maxfail; it raises no exception that a plugin could see.
            stop = session.shouldfail or session.shouldstop
            if stop and not self._course.selected <= self._course.ended:
                self._course.stopped = self._course.stopped or str(stop)
            self._settle(session, draft)
            if writes_junit(session.config) and (run := self._save(draft, settled=True)) is not None:
                add_suite_properties(session.config, run)
        yield
        if draft is not None:
            self._write(session, draft)
        elif (name := session.config.getoption("--gguf-save-baseline")) and not session.config.option.collectonly:
            self._end_badly(session, [f"The baseline {name!r} was not saved: this run measured nothing."])

    def _begin_empty_part(self, session: pytest.Session) -> None:
        """Begin the run of a part, with --gguf-shard, that none of our tests belongs to: it can be merged all the same.

        Such a part is no failure: pytest's exit code for "no tests" would break an array of jobs.
        """
        shard = self._state.shard
        if shard is None or only_plans(session.config):
            return
        if self._state.draft is None:
            self._state.draft = _new_draft(self._state, self._course)
            self._plan(self._state.draft, shard["plan"]["suites"])
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and shard["plan"]["tests"]["count"]:
            session.exitstatus = pytest.ExitCode.OK

    def _settle(self, session: pytest.Session, draft: RunDraft) -> None:
        """Decide what needs the whole run, and fail the tests that fail only by that."""
        from gguf_harness.report.settling import left_undecided, settle

        self._look_back(draft)
        options = self._state.options
        # Those of a part would be decided over too few.
        late = [] if draft.shard else settle(draft, holm=options.holm, failing=options.failing_verdicts)
        for failure in late:
            properties = [(GATE_PROPERTY, json.dumps(gate)) for gate in failure.gates]
            self._fail(session, draft.tests[failure.test], failure.kind, failure.message, properties)
        for failure in left_undecided(draft):
            self._fail(session, draft.tests[failure.test], failure.kind, failure.message, [])
        self._end_without_check(session, draft)

    def _look_back(self, draft: RunDraft) -> None:
        """Store what was forecast beside what it took, and what the budget left out."""
        foresight = self._state.foresight
        if foresight is None:
            return
        if draft.course.complete:
            foresight.forecast.learn()
        draft.forecast, draft.budget = foresight.forecast.to_json(), foresight.to_json()
        draft.warnings += foresight.warnings()

    def _end_without_check(self, session: pytest.Session, draft: RunDraft) -> None:
        """Fail the session where something that was asked for was checked by no test."""
        from gguf_harness.report.settling import unchecked

        problems: list[str] = []
        if draft.shard is None:
            problems, elsewhere = unchecked(self._state.gates, self._planned, draft.gates)
            draft.warnings += [elsewhere] if elsewhere else []
        if self._state.options.reference is not None and not self._state.ladder.candidates:
            problems.append("--reference was given, but there is no candidate to compare with it")
        if problems and self._planned and draft.course.complete:
            draft.warnings += [f"{problem}: the session fails." for problem in problems]
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _hold_against_baseline(self, session: pytest.Session, draft: RunDraft | None) -> None:
        """Judge the comparisons with --gguf-baseline; a run without any comparison must not look like a pass."""
        # Only on request: reading options takes time, and another project's session has none.
        if self._state.config.getoption("--gguf-baseline") is None or session.config.option.collectonly:
            return
        from gguf_harness.judge.baseline_notes import notes_of, nothing_compared, uncompared
        from gguf_harness.judge.regressions import judge

        baseline, partners = self._state.baseline, self._state.partners
        if baseline is None or self._state.shard is not None:
            # The comparisons of all parts are judged together, with the copy of the baseline that goes along.
            return
        comparisons = judge(draft.comparisons) if draft is not None else []
        problems = []
        if draft is not None:
            absent = uncompared(
                partners,
                baseline,
                comparisons,
                [row["model"] for findings in draft.findings.values() for row in findings.estimates],
            )
            problems = [f"{one['model']}: {one['detail']}." for one in absent]
            draft.settle(draft.gates, [*comparisons, *absent])
            draft.baseline_notes = notes_of(partners, baseline, comparisons)
        if not comparisons and not problems:
            problems = [nothing_compared(baseline, partners)]
            if draft is not None:
                draft.baseline_notes += problems
        self._end_badly(session, problems)

    def _end_badly(self, session: pytest.Session, problems: list[str]) -> None:
        """Report a problem that belongs to no test at the end, and end with a nonzero exit code."""
        self._problems += problems
        if problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _fail(
        self, session: pytest.Session, test: TestRecord, kind: Kind, message: str, properties: list[tuple[str, str]]
    ) -> None:
        """Fail a test that had passed, with an additional report, followed by one for its teardown."""
        from gguf_harness.judge.verdicts import name_briefly
        from gguf_harness.metrics.registry import METRICS

        test.fail(kind, message)
        location = (test.id.split("::")[0], None, test.id.split("::")[-1])
        gates = [json.loads(value) for name, value in properties if name == GATE_PROPERTY]
        failing = [gate for gate in gates if gate["verdict"] in self._state.options.failing_verdicts]
        named = "; ".join(name_briefly(gate, METRICS.get(gate["metric"])) for gate in failing)
        told = FailedLater(message, f"GateFailed: {named}" if named else message, location[0])
        report = pytest.TestReport(test.id, location, {}, "failed", told, "call")
        session.config.hook.pytest_runtest_logreport(report=report)
        words = readable(properties, test.model)
        closing = pytest.TestReport(test.id, location, {}, "passed", None, "teardown", user_properties=words)
        session.config.hook.pytest_runtest_logreport(report=closing)
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, session: pytest.Session, draft: RunDraft) -> None:
        draft.course.exit_status = int(session.exitstatus)
        if draft.shard is not None:
            draft.shard = draft.shard | {"failed": session.testsfailed}
        run = self._save(draft, settled=True, last=True)
        if run is not None:
            from gguf_harness.report.badge import render_badge
            from gguf_harness.report.html import write_html
            from gguf_harness.store.runs import write_text

            try:
                self._keep_baseline(draft)
                self._draw_charts(session, run, draft.folder)
                write_html(run, draft.folder, draft.folder / "report.html")
                self._state.report = draft.folder / "report.html"
                write_text(draft.folder / "badge.svg", render_badge(run))
                self._save_baseline(session, run, draft.folder)
            except HarnessError as error:
                self._problem = error
            self._summarize(run)
        if self._problem is not None and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _keep_baseline(self, draft: RunDraft) -> None:
        """Store the baseline with the run of a part: where parts are merged, it may not be at hand."""
        if draft.shard is not None and self._state.options.baseline is not None:
            content = read_bytes(self._state.options.baseline, "Baseline", StoreError)
            write_bytes(draft.folder / BASELINE_COPY, content)

    def _draw_charts(self, session: pytest.Session, run: dict[str, Any], folder: Path) -> None:
        """Store the charts of other plugins with the run; a chart that cannot be drawn is left out with a warning."""
        if self._state.charts:
            from gguf_harness.report.charts.kept import keep_charts
            from gguf_harness.report.data import RunView

            self._end_badly(session, keep_charts(self._state.charts, RunView(run), folder))

    def _summarize(self, run: dict[str, Any]) -> None:
        """Write GitHub's step summary; the run is complete without it, so a problem here fails nothing."""
        file = os.environ.get("GITHUB_STEP_SUMMARY")
        if file:
            from gguf_harness.report.github import append_summary

            try:
                append_summary(run, Path(file))
            except HarnessError as error:
                self._summary_problem = error

    def _save_baseline(self, session: pytest.Session, run: dict[str, Any], folder: Path) -> None:
        options = self._state.options
        if options.save_baseline is None:
            return
        from gguf_harness.judge.baselines import build_baseline, save_baseline, why_unfit
        from gguf_harness.store.arrays import load_arrays
        from gguf_harness.store.runs import run_file

        if reason := why_unfit(run, unfinished=not run["finished"], failed=session.testsfailed):
            self._end_badly(session, [f"The baseline {options.save_baseline!r} was not saved: {reason}."])
            return
        means = {
            entry["model"]: load_arrays(run_file(folder, entry["file"]))
            for entry in run["arrays"]
            if entry["name"] == "window_means"
        }
        path = options.results / "baselines" / f"{options.save_baseline}.json"
        save_baseline(path, build_baseline(run, means, self._state.baseline_settings))
        self._state.saved_baseline = path

    def _save_now_and_then(self, draft: RunDraft) -> None:
        """Save the run for a killed session, in at most a thirtieth of the time: a run can grow to megabytes."""
        started = time.monotonic()
        if started >= self._next_save:
            self._save(draft)
            self._next_save = time.monotonic() + 30 * (time.monotonic() - started)

    def _save(self, draft: RunDraft, *, settled: bool = False, last: bool = False) -> dict[str, Any] | None:
        """Store the run; a full disk must not end the session, and is reported at its end."""
        try:
            run = draft.save(settled=settled, last=last)
        except HarnessError as error:
            self._problem = error
            return None
        self._problem = None
        return run

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table, the verdicts and the path of the report."""
        write_summary(terminalreporter, self._state, unstored=self._problem, problems=self._problems)
        if self._summary_problem is not None:
            terminalreporter.write_line(f"There is no step summary. {self._summary_problem}")


def _new_draft(state: State, course: Course) -> RunDraft:
    from gguf_harness.engine.machine import describe_machine
    from gguf_harness.inputs.commit import commit_of

    state.extend()  # xdist's controller collects nothing, and may only now learn that the session is ours
    ladder = state.ladder
    return RunDraft(
        folder=state.run_folder,
        command=state.command,
        settings=state.options.to_json(),
        machine=describe_machine(),
        reference_reason=ladder.reason,
        reference=ladder.reference.name if ladder.reference else None,
        baseline=state.baseline.name if state.baseline else None,
        git=commit_of(Path(state.config.invocation_params.dir)),
        course=course,
        shard=state.shard,
    )


def _test_record(report: pytest.TestReport) -> TestRecord:
    outcome: str = report.outcome
    if outcome == "failed" and report.when != "call":
        outcome = "error"
    return TestRecord(
        report.nodeid,
        getattr(report, "gguf_suite", ""),
        getattr(report, "gguf_model", None),
        outcome,
        message_of(report),
        report.duration,
        kind=getattr(report, "gguf_kind", None),
        summary=getattr(report, "gguf_summary", None),
        attempts=getattr(report, "gguf_attempt", 1),
    )


def _findings(report: pytest.TestReport) -> Findings:
    """The results that a test stored in its properties."""
    findings, identifier, suite = Findings(), report.nodeid, getattr(report, "gguf_suite", "")
    for name, value in report.user_properties:
        if name == ESTIMATE_PROPERTY:
            findings.estimates.append(json.loads(str(value)))
        elif name == GATE_PROPERTY:
            findings.gates.append({"test": identifier, "suite": suite, **json.loads(str(value))})
        elif name == BASELINE_PROPERTY:
            findings.comparisons.append({"test": identifier, **json.loads(str(value))})
    return findings
