"""Sessions that use the harness: parametrization over models, fixtures, the run and its report.

`plugin.py` registers this module if one of our options is given, one of our suites is to run, or the project uses our
fixtures.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from gguf_harness.errors import PLAIN, HarnessError, is_utf8
from gguf_harness.inputs.command_line import TYPED, given_options
from gguf_harness.inputs.typed_command import typed_command
from gguf_harness.judge.outcomes import attempt_of, begin_attempt, describe_failure
from gguf_harness.judge.plan import planned_suite, suite_of
from gguf_harness.pytest_plugin.distribution import ModelGroups, can_group, send_groups
from gguf_harness.pytest_plugin.interrupts import absorbed
from gguf_harness.pytest_plugin.items import PARAMETERS, model_name, ours_of
from gguf_harness.pytest_plugin.order import order_of_models
from gguf_harness.pytest_plugin.reporting import Reporting
from gguf_harness.pytest_plugin.state import FINDINGS, STATE, State, only_plans
from gguf_harness.report.data import visible
from gguf_harness.store.run_draft import new_run_id

_FIXTURES: Final = "gguf_harness.fixtures"
_GROUPS: Final = "gguf_harness.pytest_plugin.distribution"
_SHARDING: Final = "gguf_harness.pytest_plugin.sharding"
_NO_CANDIDATES: Final = "no candidates: give several --models, or --gguf-quants=default"
_NO_ADAPTER: Final = "no LoRA adapter that fits: give --gguf-lora=FILE"
_NOTHING: Final = {
    "cached": "no types of the KV cache to compare: give --gguf-kv=default, or pairs such as q8_0/q8_0",
    "adapted": _NO_ADAPTER,
    "adapted_reference": _NO_ADAPTER,
    "adapted_candidate": f"{_NO_ADAPTER}, and a quantized base: several --models, or --gguf-quants=default",
}
_BASELINE_TESTS: Final = "test_baseline.py"
_BENCHMARK_TESTS: Final = "test_benchmark.py"
_BENCHMARK_OPTIONS: Final = tuple(
    f"benchmark_{name}" for name in ("only", "save", "autosave", "json", "compare", "compare_fail", "histogram")
)


def pytest_configure(config: pytest.Config) -> None:
    """Register markers and fixtures; check the given options, so that a mistake ends the session now."""
    config.addinivalue_line("markers", "metric(name): the metric that a test measures first of all")
    _register_fixtures(config.pluginmanager)
    workerinput = getattr(config, "workerinput", {})
    typed = os.environ.pop(TYPED, None)  # read once: a session within this one has been typed otherwise
    state = State(config, workerinput.get("gguf_run_id") or new_run_id(), workerinput.get("workerid", "main"))
    state.command = typed_command(config.invocation_params.args, typed, os.environ.get("PYTEST_ADDOPTS"))
    config.stash[STATE] = state
    if state.process != "main":
        # Threads that spin while they wait take the processors from the other processes: with two of these on two
        # cores, a token of `tiny` took up to 300 times as long. Nothing is timed under -n.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given_options(config) or any(suite_of(Path(argument.split("::")[0]).absolute()) for argument in config.args):
        state.extend()
    if can_group(config):
        config.pluginmanager.register(ModelGroups(state), _GROUPS)
    if config.getoption("--gguf-shard") is not None and not _only_informs(config):
        from gguf_harness.pytest_plugin.sharding import Sharding

        with _usage_errors():
            if state.options.shard is not None:
                config.pluginmanager.register(Sharding(state, state.options.shard), _SHARDING)
    _compare_by_name(config)
    _refuse_names_for_xdist(config)
    if given_options(config) and not _only_informs(config):
        from gguf_harness.pytest_plugin.checks import check_options

        with _usage_errors():
            check_options(state, measures=_measures(config))
            if state.options.ray is not None and _measures(config):
                from gguf_harness.pytest_plugin.on_cluster import start_cluster

                start_cluster(state)


def _register_fixtures(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register every module of our fixtures that a conftest has not registered yet."""
    package = importlib.import_module(_FIXTURES)
    for module_info in pkgutil.iter_modules(package.__path__, f"{_FIXTURES}."):
        if not module_info.ispkg:
            module = importlib.import_module(module_info.name)
            if not pluginmanager.is_registered(module):
                pluginmanager.register(module, module_info.name)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Write the results of the session despite Ctrl-C, then end it."""
    if session.config.stash[STATE].draft is None:
        return (yield)
    with absorbed("Interrupted: results are being written. Press Ctrl-C again to stop that, too.") as pressed:
        yield
    if pressed and session.exitstatus != pytest.ExitCode.INTERRUPTED:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
        with pytest.raises(KeyboardInterrupt) as excinfo:
            signal.default_int_handler(signal.SIGINT, None)  # as pytest would have done
        session.config.hook.pytest_keyboard_interrupt(excinfo=excinfo)
    return None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the Ray cluster; one that the session has started ends."""
    state = config.stash.get(STATE, None)
    if state is not None and state.cluster is not None:
        from gguf_harness.pytest_plugin.on_cluster import end_cluster

        end_cluster(state)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker its run, and whether to send the models of its tests."""
    node.workerinput["gguf_run_id"] = node.config.stash[STATE].run_id
    node.workerinput["gguf_start"] = str(node.config.invocation_params.dir)
    cluster = node.config.stash[STATE].cluster
    node.workerinput["gguf_cluster"] = cluster.to_text() if cluster is not None else None
    node.workerinput["gguf_groups"] = node.config.pluginmanager.hasplugin(_GROUPS)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests that were not requested, without a skip. pytest does not call this for files named explicitly.

    Baseline tests need a baseline. Benchmarks repeat the measurements of test_speed.py.
    """
    if collection_path.name not in {_BASELINE_TESTS, _BENCHMARK_TESTS} or suite_of(collection_path) is None:
        return None
    wanted = {
        _BASELINE_TESTS: config.getoption("--gguf-baseline") is not None,
        _BENCHMARK_TESTS: any(config.getoption(option, None) for option in _BENCHMARK_OPTIONS),
    }
    return None if wanted[collection_path.name] else True


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    """Ignore the current clock rate: otherwise pytest-benchmark warns about a different machine.

    With `filterwarnings = error`, that would end the session.
    """
    stored = compared_benchmark["machine_info"].get("cpu", {})
    moment = {name: stored[name] for name in ("hz_actual", "hz_actual_friendly") if name in stored}
    machine_info.get("cpu", {}).update(moment)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Show the tested models and their reference."""
    state = config.stash[STATE]
    # pytest calls this even when it ends the session because of that problem.
    if state.problem is not None or not any(ours_of(item) for item in items):
        return []
    ladder = state.ladder
    candidates = ", ".join(visible(model.name) for model in ladder.candidates) or "none"
    notes = [f"note: {visible(note)}" for note in ladder.notes]
    notes += [] if state.foresight is None else state.foresight.lines()
    return [f"reference: {visible(ladder.reason)}", f"candidates: {candidates}", *notes]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize `model` over all models, `candidate` over all but the reference, and `prompt` over the prompts."""
    wanted = ours_of(metafunc.definition) & PARAMETERS - _parametrized(metafunc)
    if not wanted:
        return
    state = metafunc.config.stash[STATE]
    try:
        values_by_name: dict[str, list[Any]] = {
            "model": [pytest.param(model, id=model.name) for model in state.ladder.models],
            "candidate": [pytest.param(model, id=model.name) for model in state.ladder.candidates],
            "any_candidate": [pytest.param(model, id=model.name) for model in state.ladder.candidates],
            "cached": [
                *(pytest.param(model, id=model.name) for model in state.ladder.cached),
                *(
                    pytest.param(model, id=model.name, marks=pytest.mark.skip(reason=why))
                    for model, why in state.ladder.impossible
                ),
            ],
            "adapted": [pytest.param(model, id=model.name) for model in state.ladder.adapted],
            "adapted_reference": [pytest.param(model, id=model.name) for model in state.ladder.adapted_references],
            "adapted_candidate": [pytest.param(model, id=model.name) for model in state.ladder.adapted_candidates],
            "prompt": [pytest.param(prompt, id=prompt.id) for prompt in state.prompts.prompts],
        }
    except HarnessError as error:
        # Only the default model can be missing here: given models were checked in pytest_configure.
        state.problem, values_by_name = error, {}
    values = {name: values_by_name.get(name, []) for name in sorted(wanted)}
    if not all(values.values()):
        reason = _NOTHING.get(next((name for name in values if not values[name]), ""), _NO_CANDIDATES)
        none = pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))
        values = {name: [none] for name in values}
    for name, parameters in values.items():
        metafunc.parametrize(name, parameters, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order tests by model, and plan what the reference's pass must store."""
    ours = [item for item in items if ours_of(item)]
    if not ours:
        return
    state = config.stash[STATE]
    state.extend()
    from gguf_harness.pytest_plugin.checks import check_folders, check_metrics

    with _usage_errors():
        if state.problem is not None:
            raise state.problem
        check_metrics(ours)
        if _measures(config):
            check_folders(state.options)
            if any("corpus_pass" in ours_of(item) for item in ours):
                from gguf_harness.pytest_plugin.text_check import check_windows

                check_windows(state.options, state.ladder)
    state.suites = {suite for item in items if (suite := planned_suite(item.path)) is not None}
    state.comparisons = sum("baseline" in item.fixturenames for item in ours if isinstance(item, pytest.Function))
    state.divergence = any({"candidate", "corpus_pass"} <= ours_of(item) for item in ours)
    order = order_of_models(state.ladder, until_decided=state.divergence and bool(state.early_limits))
    chosen = set(ours)
    places = [index for index, item in enumerate(items) if item in chosen]
    ours.sort(key=lambda item: order.get(model_name(item) or "", -1))
    for place, item in zip(places, ours, strict=True):
        items[place] = item
    if getattr(config, "workerinput", {}).get("gguf_groups"):
        send_groups(
            config,
            {
                item.nodeid: (model_name(item) or "", item.path.parent.name, item.originalname)
                for item in ours
                if isinstance(item, pytest.Function)
            },
        )
    state.is_ordered = True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Forecast how long the selected tests will take, and leave out what --gguf-budget has no time for."""
    config, state = session.config, session.config.stash[STATE]
    # pytest calls this even when it ends the session because of a problem in collection.
    if not (state.is_ordered and state.suites and state.process == "main" and _measures(config)):
        return
    from gguf_harness.pytest_plugin.foresight import foresee

    ours = [item for item in session.items if isinstance(item, pytest.Function) and ours_of(item)]
    with _usage_errors():
        left_out = set(foresee(state, [(item, model_name(item)) for item in ours]))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in session.items if item in left_out])
        session.items[:] = [item for item in session.items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start without results: those of an earlier attempt at this test do not count."""
    if ours_of(item):
        begin_attempt(item, FINDINGS)
        foresight = item.config.stash[STATE].foresight
        if foresight is not None and (why := foresight.too_late_for(item.nodeid, model_name(item))) is not None:
            pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show our own errors as plain messages without a traceback; add the model to the report."""
    report = yield
    ours = ours_of(item)
    if ours or isinstance(call.excinfo and call.excinfo.value, HarnessError):
        describe_failure(report, call, of_prompt="prompt" in ours)
    if ours:
        # Attributes of a report travel to xdist's controller, unlike items.
        report.gguf_model = model_name(item)  # type: ignore[attr-defined]
        report.gguf_suite = item.path.parent.name  # type: ignore[attr-defined]
        report.gguf_attempt = attempt_of(item)  # type: ignore[attr-defined]
        foresight = item.config.stash[STATE].foresight
        if foresight is not None:
            foresight.reported(report)
        report.gguf_suites = sorted(item.config.stash[STATE].suites)  # type: ignore[attr-defined]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Register reporting in this process, unless it is an xdist worker."""
    if not hasattr(session.config, "workerinput"):
        _write_plainly(session.config)
        session.config.pluginmanager.register(
            Reporting(session.config.stash[STATE]), "gguf_harness.pytest_plugin.session.reporting"
        )


def _write_plainly(config: pytest.Config) -> None:
    """Write `+/-` where the terminal has no `±`: pytest would escape it, in the sentences of failures too."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    stream = reporter._tw._file if reporter is not None else None  # noqa: SLF001 - there is no public way
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=PLAIN)


def _parametrized(metafunc: pytest.Metafunc) -> set[str]:
    """Names that a test or its project parametrizes itself, such as models by name with `indirect=True`."""
    names = {name for call in metafunc._calls for name in call.params}  # noqa: SLF001 - no public API
    for mark in metafunc.definition.iter_markers("parametrize"):
        given = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
        # Anything else is a mistake that pytest reports.
        names |= {str(name).strip() for name in (given.split(",") if isinstance(given, str) else tuple(given or ()))}
    return names


def _refuse_names_for_xdist(config: pytest.Config) -> None:
    """Refuse arguments that are not UTF-8: xdist cannot send them to its workers and would fail with a traceback."""
    if getattr(config.option, "dist", "no") == "no":
        return
    for argument in map(str, config.invocation_params.args):
        if not is_utf8(argument):
            raise pytest.UsageError(
                f"{visible(argument)}: pytest -n cannot pass on an argument that is not UTF-8.\n"
                "  Name the folder, or a pattern such as 'folder/*.gguf', or run without -n."
            )


def _compare_by_name(config: pytest.Config) -> None:
    """Let `--benchmark-compare=a` find `--benchmark-save=a`; pytest-benchmark takes only numbers and patterns."""
    named = getattr(config.option, "benchmark_compare", None)
    if isinstance(named, str) and re.fullmatch(r"[A-Za-z][\w.-]*", named) and not Path(named).exists():
        config.option.benchmark_compare = f"*_{named}"


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """End the session with exit code 4 and a message for mistakes of the user."""
    try:
        yield
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None


def _measures(config: pytest.Config) -> bool:
    """Whether tests will run here; for xdist's workers, the controller has done the checks."""
    return not (only_plans(config) or hasattr(config, "workerinput"))


def _only_informs(config: pytest.Config) -> bool:
    """Whether pytest only prints information and ends: then nothing is resolved, least of all on a hub."""
    names = ("help", "version", "markers", "showfixtures", "show_fixtures_per_test", "cacheshow")
    return any(config.getoption(name, False) for name in names)
