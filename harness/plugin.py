"""The pytest plugin: options, parametrization over models, fixtures, the run and its report.

It is loaded in every pytest session of an environment: nothing heavy is imported, and nothing is done, until a test
asks for a model.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.errors import HarnessError
from harness.options import add_options
from harness.report.data import visible
from harness.reporting import Reporting
from harness.run import new_run_id
from harness.state import STATE, State

if TYPE_CHECKING:
    from harness.ladder import PlannedModel

_FIXTURES: Final = (
    "models",
    "engines",
    "servers",
    "corpus",
    "texts",
    "attention",
    "record",
    "baselines",
    "benchmarks",
    "tensors",
    "ablation",
    "analytics",
    "embeddings",
    "layers",
)
_MODELS: Final = frozenset({"model", "candidate", "any_candidate"})
_PARAMETERS: Final = _MODELS | {"prompt"}
_BASELINE_TESTS: Final = "test_baseline.py"
_BENCHMARK_TESTS: Final = "test_benchmark.py"
_BENCHMARK_OPTIONS: Final = tuple(
    f"benchmark_{name}" for name in ("only", "save", "autosave", "json", "compare", "compare_fail", "histogram")
)
_FIXTURE_NAMES: Final = _PARAMETERS | {
    "reference",
    "runner",
    "ladder",
    "corpus_pass",
    "analytics",
    "embeddings",
    "layers_of",
}


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
        _compare_by_name(config)
        if getattr(config.option, "dist", "no") == "load":
            # Tests of one model belong together: each process would load every model otherwise.
            config.option.dist = "loadgroup"
        try:
            _ = state.options, state.ladder, state.prompts, state.partners, state.words
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which run it belongs to."""
    node.workerinput["gguf_run_id"] = node.config.stash[STATE].run_id


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests that were not asked for: they are not even skipped. pytest does not ask for a file that is named.

    Without a baseline there is nothing to compare with. Benchmarks measure again what test_speed.py measures.
    """
    if not _in_suites(collection_path):
        return None
    wanted = {
        _BASELINE_TESTS: config.getoption("--gguf-baseline") is not None,
        _BENCHMARK_TESTS: any(config.getoption(option, None) for option in _BENCHMARK_OPTIONS),
    }
    return None if wanted.get(collection_path.name, True) else True


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Take the clock rate of this moment for no difference: pytest-benchmark warns of another machine otherwise.

    With `filterwarnings = error`, that would end the session.
    """
    if not (_any_given(config) or any(_in_suites(Path(arg.split("::")[0]).absolute()) for arg in config.args)):
        return
    stored = compared_benchmark["machine_info"].get("cpu", {})
    moment = {name: stored[name] for name in ("hz_actual", "hz_actual_friendly") if name in stored}
    machine_info.get("cpu", {}).update(moment)


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
            "any_candidate": [pytest.param(model, id=model.name) for model in state.ladder.candidates],
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


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Report from this process, unless it is one of xdist's workers."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Reporting(session.config.stash[STATE]), "harness.plugin.reporting")


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


def _in_suites(path: Path) -> bool:
    """Whether a file is of the suites that come along, in a checkout or installed."""
    places = Path(__file__).parent.parent / "suites", Path(__file__).parent / "suites"
    return any(path.is_relative_to(place) for place in places)


def _model_name(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    parameters = callspec.params if callspec else {}
    planned: PlannedModel | None = next((found for name in sorted(_MODELS) if (found := parameters.get(name))), None)
    if planned is None and not _ours(item) & _MODELS:
        planned = item.config.stash[STATE].ladder.reference
    return planned.name if planned is not None else None


def _compare_by_name(config: pytest.Config) -> None:
    """`--benchmark-compare=a` is what `--benchmark-save=a` saved; pytest-benchmark takes numbers and patterns."""
    named = getattr(config.option, "benchmark_compare", None)
    if isinstance(named, str) and re.fullmatch(r"[A-Za-z][\w.-]*", named) and not Path(named).exists():
        config.option.benchmark_compare = f"*_{named}"


def _any_given(config: pytest.Config) -> bool:
    """Whether the person used any option of ours: a session without is none of our business until a test asks."""
    return any(name in {"models", "reference"} or name.startswith("gguf_") for name in _given(config))


def _given(config: pytest.Config) -> list[str]:
    prefixes = ("--models", "--reference", "--gguf-")
    arguments = [str(argument) for argument in config.invocation_params.args]
    addopts = config.getini("addopts")
    arguments += addopts if isinstance(addopts, list) else str(addopts).split()
    return [a.lstrip("-").replace("-", "_").split("=")[0] for a in arguments if a.startswith(prefixes)]
