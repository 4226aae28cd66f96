"""The pytest plugin: options, parametrization over models, fixtures, the run and its report.

It is loaded in every pytest session of an environment: nothing heavy is imported, and nothing is done, until a test
asks for a model.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.errors import HarnessError
from harness.options import add_options
from harness.report.data import visible
from harness.run import RunDraft, TestRecord, new_run_id
from harness.state import BASELINE_PROPERTY, ESTIMATE_PROPERTY, GATE_PROPERTY, STATE, State

if TYPE_CHECKING:
    from harness.ladder import PlannedModel

_FIXTURES: Final = ("models", "engines", "servers", "corpus", "texts", "record", "baselines", "layers")
_MODELS: Final = frozenset({"model", "candidate"})
_PARAMETERS: Final = _MODELS | {"prompt"}
_BASELINE_TESTS: Final = "test_baseline.py"
_FIXTURE_NAMES: Final = _PARAMETERS | {"reference", "runner", "ladder", "corpus_pass", "layers_of"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group `gguf`."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register markers and fixtures; check the options that were given, so that a mistake ends the session now."""
    config.addinivalue_line("markers", "metric(name): the metric that a test measures first of all")
    for name in _FIXTURES:
        module = importlib.import_module(f"harness.fixtures.{name}")
        config.pluginmanager.register(module, module.__name__)
    workerinput = getattr(config, "workerinput", {})
    state = State(config, workerinput.get("gguf_run_id") or new_run_id(), workerinput.get("workerid", "main"))
    config.stash[STATE] = state
    if _any_given(config):
        if getattr(config.option, "dist", "no") == "load":
            # Tests of one model belong together: each process would load every model otherwise.
            config.option.dist = "loadgroup"
        try:
            _ = state.options, state.ladder, state.prompts, state.baseline
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which run it belongs to."""
    node.workerinput["gguf_run_id"] = node.config.stash[STATE].run_id


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without a baseline there is nothing to compare with: those tests are not even skipped."""
    suite = Path(__file__).parent.parent / "suites", Path(__file__).parent / "suites"
    if collection_path.name != _BASELINE_TESTS or not any(collection_path.is_relative_to(place) for place in suite):
        return None
    return True if config.getoption("--gguf-baseline") is None else None


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Say which models are tested, and what they are compared with."""
    state = config.stash[STATE]
    # pytest asks even when it ends the session because of that problem.
    if state.problem is not None or not any(_ours(item) for item in items):
        return []
    ladder = state.ladder
    candidates = ", ".join(visible(model.name) for model in ladder.candidates) or "none"
    return [f"reference: {visible(ladder.reason)}", f"candidates: {candidates}"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize `model` over all models, `candidate` over all but the reference, and `prompt` over the prompts."""
    wanted = _ours(metafunc.definition) & _PARAMETERS
    if not wanted:
        return
    state = metafunc.config.stash[STATE]
    try:
        found: dict[str, list[Any]] = {
            "model": [pytest.param(model, id=model.name) for model in state.ladder.models],
            "candidate": [pytest.param(model, id=model.name) for model in state.ladder.candidates],
            "prompt": [pytest.param(prompt, id=prompt.id) for prompt in state.prompts.prompts],
        }
    except HarnessError as error:
        # Only the default model can be missing here: what a person names was checked in pytest_configure.
        state.problem, found = error, {}
    values = {name: found.get(name, []) for name in sorted(wanted)}
    if not all(values.values()):
        reason = "no candidates: give several --models, or --gguf-quants=default"
        none = pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))
        values = {name: [none] for name in values}
    for name, parameters in values.items():
        metafunc.parametrize(name, parameters, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order tests by model, the reference first, and plan what the reference's pass has to keep."""
    ours = [item for item in items if _ours(item)]
    if not ours:
        return
    state = config.stash[STATE]
    if state.problem is not None:
        raise pytest.UsageError(str(state.problem))
    state.comparisons = sum("baseline" in item.fixturenames for item in ours if isinstance(item, pytest.Function))
    state.divergence = any({"candidate", "corpus_pass"} <= _ours(item) for item in ours)
    order = {model.name: index for index, model in enumerate(state.ladder.models)}
    chosen = set(ours)
    places = [index for index, item in enumerate(items) if item in chosen]
    ours.sort(key=lambda item: order.get(_model_name(item) or "", -1))
    # The mark is xdist's: without it, pytest does not know it.
    with_xdist = config.pluginmanager.hasplugin("xdist")
    for place, item in zip(places, ours, strict=True):
        items[place] = item
        if with_xdist:
            item.add_marker(pytest.mark.xdist_group(f"gguf-{_model_name(item) or 'session'}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show our own errors as the message that they are, without a traceback; tell the report its model."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, HarnessError):
        report.longrepr = str(call.excinfo.value)
    if _ours(item):
        # Attributes of a report travel to xdist's controller, unlike items.
        report.gguf_model = _model_name(item)  # type: ignore[attr-defined]
    return report


class _Reporting:
    """Collects test reports into the run. Registered in the process that reports, not in xdist's workers."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._problem: HarnessError | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take rows, verdicts and outcome of a test of ours."""
        if not hasattr(report, "gguf_model"):
            return
        draft = self._state.draft = self._state.draft or _new_draft(self._state)
        if report.when == "call" or report.outcome != "passed":
            draft.tests[_test_id(report)] = _test_record(report)
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == ESTIMATE_PROPERTY:
                    draft.estimates.append(json.loads(str(value)))
                elif name == GATE_PROPERTY:
                    draft.gates.append({"test": _test_id(report), **json.loads(str(value))})
                elif name == BASELINE_PROPERTY:
                    draft.comparisons.append({"test": _test_id(report), **json.loads(str(value))})
            self._save(draft, finished=False)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Settle what needs the whole run; when all that measures is closed, write run.json and the report."""
        draft = self._state.draft
        if draft is not None:
            self._settle(session, draft)
        yield
        if draft is not None:
            self._write(session, draft)

    def _settle(self, session: pytest.Session, draft: RunDraft) -> None:
        """Holm's correction over gates, and over comparisons with a baseline; what fails by it alone fails now."""
        from harness.verdicts import adjust

        options = self._state.options
        draft.gates = adjust(draft.gates, enforce=options.holm)
        wrong = [gate for gate in draft.gates if options.holm and gate["verdict"] in options.failing_verdicts]
        if draft.comparisons:
            from harness.regressions import judge

            draft.comparisons = judge(draft.comparisons)
            wrong += [comparison for comparison in draft.comparisons if comparison["outcome"] == "worse"]
        messages: dict[str, list[str]] = {}
        for finding in wrong:
            messages.setdefault(finding["test"], []).append(f"{finding['model']}: {finding['detail']}")
        for test, lines in messages.items():
            if draft.tests[test].outcome == "passed":
                self._fail(session, draft.tests[test], "\n".join(lines))

    def _fail(self, session: pytest.Session, test: TestRecord, message: str) -> None:
        """Fail a test that has passed, with a report of its own."""
        test.outcome, test.message = "failed", message
        location = (test.id.split("::")[0], None, test.id.split("::")[-1])
        report = pytest.TestReport(test.id, location, {}, "failed", message, "call")
        session.config.hook.pytest_runtest_logreport(report=report)
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write(self, session: pytest.Session, draft: RunDraft) -> None:
        run = self._save(draft, finished=True)
        if run is not None:
            from harness.report.html import write_html

            try:
                write_html(run, draft.folder, draft.folder / "report.html")
                self._state.report = draft.folder / "report.html"
                self._save_baseline(run, draft.folder)
            except HarnessError as error:
                self._problem = error
        if self._problem is not None and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _save_baseline(self, run: dict[str, Any], folder: Path) -> None:
        options = self._state.options
        if options.save_baseline is None:
            return
        from harness.baselines import build_baseline, save_baseline
        from harness.measure.arrays import load_arrays

        means = {
            entry["model"]: load_arrays(folder / entry["file"])
            for entry in run["arrays"]
            if entry["name"] == "window_means"
        }
        path = options.results / "baselines" / f"{options.save_baseline}.json"
        save_baseline(path, build_baseline(run, means))
        self._state.saved_baseline = path

    def _save(self, draft: RunDraft, *, finished: bool) -> dict[str, Any] | None:
        """The stored run; a full disk must not end the session, and is said at its end."""
        try:
            run = draft.save(finished=finished)
        except HarnessError as error:
            self._problem = error
            return None
        self._problem = None
        return run

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table, the verdicts and the path of the report."""
        if self._problem is not None:
            terminalreporter.section("gguf-harness")
            terminalreporter.write_line(f"The results of this run could not be stored. {self._problem}", red=True)
        if self._state.report is None:
            return
        from harness.report.terminal import render_terminal
        from harness.store import load_run

        run = load_run(self._state.run_folder / "run.json")
        writer = terminalreporter._tw  # noqa: SLF001 - pytest offers no public way to its width and colours
        terminalreporter.section("gguf-harness")
        terminalreporter.write(render_terminal(run, width=writer.fullwidth, color=writer.hasmarkup) + "\n")
        terminalreporter.write_line(f"report: {_shown(self._state.report)}")
        terminalreporter.write_line(f"run:    {_shown(self._state.run_folder / 'run.json')}")
        if self._state.saved_baseline is not None:
            terminalreporter.write_line(f"saved:  {_shown(self._state.saved_baseline)}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Report from this process, unless it is one of xdist's workers."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Reporting(session.config.stash[STATE]), "harness.plugin.reporting")


def _new_draft(state: State) -> RunDraft:
    from harness.machine import describe_machine

    ladder = state.ladder
    return RunDraft(
        folder=state.run_folder,
        command=["pytest", *(str(argument) for argument in state.config.invocation_params.args)],
        settings=state.options.to_json(),
        machine=describe_machine(),
        reference_reason=ladder.reason,
        reference=ladder.reference.name if ladder.reference else None,
        baseline=state.baseline.name if state.baseline else None,
    )


def _test_record(report: pytest.TestReport) -> TestRecord:
    suite = Path(report.nodeid.split("::")[0]).parent.name
    outcome: str = report.outcome
    if outcome == "failed" and report.when != "call":
        outcome = "error"
    message = ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        message = str(report.longrepr[2]).removeprefix("Skipped: ")
    elif report.outcome != "passed":
        message = report.longreprtext
    return TestRecord(_test_id(report), suite, getattr(report, "gguf_model", None), outcome, message, report.duration)


def _test_id(report: pytest.TestReport) -> str:
    """Without the group that xdist appends."""
    return report.nodeid.split("@gguf-")[0]


def _ours(item: pytest.Item) -> set[str]:
    """The fixtures of ours that a test uses.

    Another project may well have a fixture `model` of its own, or parametrize one directly: none of our business.
    """
    # The only way to tell whose a fixture is.
    definitions = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}  # noqa: SLF001
    direct = {
        name.strip()
        for mark in item.iter_markers("parametrize")
        for name in (mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0])
    }
    return {
        name
        for name, found in definitions.items()
        if found and name not in direct and found[-1].func.__module__.startswith("harness.fixtures.")
    } & _FIXTURE_NAMES


def _model_name(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    parameters = callspec.params if callspec else {}
    planned: PlannedModel | None = parameters.get("candidate") or parameters.get("model")
    if planned is None and not _ours(item) & _MODELS:
        planned = item.config.stash[STATE].ladder.reference
    return planned.name if planned is not None else None


def _any_given(config: pytest.Config) -> bool:
    """Whether the person used any option of ours: a session without is none of our business until a test asks."""
    return any(name in {"models", "reference"} or name.startswith("gguf_") for name in _given(config))


def _given(config: pytest.Config) -> list[str]:
    prefixes = ("--models", "--reference", "--gguf-")
    arguments = [str(argument) for argument in config.invocation_params.args]
    addopts = config.getini("addopts")
    arguments += addopts if isinstance(addopts, list) else str(addopts).split()
    return [a.lstrip("-").replace("-", "_").split("=")[0] for a in arguments if a.startswith(prefixes)]


def _shown(path: Path) -> str:
    """Relative to where the person is, if it is below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
