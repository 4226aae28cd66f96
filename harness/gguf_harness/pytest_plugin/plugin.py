"""The entry point: pytest loads it in every session of an environment, also those of other projects.

In other projects' sessions it only registers options that begin with `--gguf-` and imports nothing heavy. `session.py`
has the rest. It is loaded when one of our options is given, one of our suites is to run, or the project requests our
fixtures.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
import shlex
import sys
from collections.abc import Generator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

from gguf_harness.inputs.command_line import (
    add_options,
    add_short_names,
    given_options,
    unknown_options,
    with_full_names,
)
from gguf_harness.pytest_plugin import hooks

_PACKAGE: Final = Path(__file__).parent.parent
_SUITES: Final = _PACKAGE / "suites"
_SESSION: Final = "gguf_harness.pytest_plugin.session"
_FIXTURES: Final = "gguf_harness.fixtures"


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks for metrics and charts of other plugins."""
    pluginmanager.add_hookspecs(hooks)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options of the group `gguf`, and the setting with which a project requests our fixtures."""
    add_options(parser)
    parser.addini("gguf_fixtures", "use the fixtures of gguf-harness in tests of your own", type="bool", default=False)
    config = pluginmanager.get_plugin("pytestconfig")
    # A conftest names this plugin without it being installed: too late to change pytest's arguments.
    if config is not None and any(name.endswith("conftest.py") for name, _ in pluginmanager.list_name_plugin()):
        variable = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
        words = [*variable, *config.getini("addopts"), *map(str, config.invocation_params.args)]
        add_short_names(parser, words, config.option)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Take `--models` and `--reference` as ours if no other plugin or conftest has registered them.

    Until now, pytest has taken the values of these unknown options for paths, and looked for conftests there.
    """
    given = list(args)
    result = yield
    args[:] = with_full_names(parser, given, early_config.option)
    if args != given:
        paths = parser.parse_known_args(args, namespace=copy.copy(early_config.option)).file_or_dir
        if paths != early_config.known_args_namespace.file_or_dir:
            early_config.known_args_namespace.file_or_dir = paths
            early_config.pytest_load_initial_conftests(early_config)
            # A conftest loaded only now may have options of these names.
            args[:] = with_full_names(parser, given, early_config.option)
    # pytest would name the option, and every other one of its own.
    if (problem := unknown_options(args, also_short=False)) is not None:
        raise pytest.UsageError(problem)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Load the rest if this session uses the harness."""
    if _is_ours(config):
        config.pluginmanager.register(importlib.import_module(_SESSION), _SESSION)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """End our session without a traceback when Ctrl-C comes where pytest does not handle it, such as at its end."""
    try:
        return (yield)
    except KeyboardInterrupt:
        # xdist ends its workers with an interrupt: that is nothing to tell anybody.
        if not config.pluginmanager.hasplugin(_SESSION) or hasattr(config, "workerinput"):
            raise
        sys.stderr.write("\n!!!!!!!!!! KeyboardInterrupt !!!!!!!!!!\n")
        return pytest.ExitCode.INTERRUPTED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In other projects' sessions, show our errors as plain messages, and say how to enable our fixtures."""
    report = yield
    if call.excinfo is None or item.config.pluginmanager.hasplugin(_SESSION):
        return report
    from gguf_harness.errors import HarnessError

    error = call.excinfo.value
    if isinstance(error, HarnessError):
        from gguf_harness.judge.outcomes import describe_failure

        describe_failure(report, call, of_prompt=False)
    elif isinstance(error, pytest.FixtureLookupError) and error.msg is None and _has_fixture(str(error.argname)):
        hint = (
            f"gguf-harness has a fixture {error.argname!r}. For its fixtures in tests of your own, set `gguf_fixtures ="
            ' true` in the configuration of pytest, put "gguf_harness.fixtures" into the pytest_plugins of your'
            " conftest.py, or give an option such as --models."
        )
        report.sections.append(("gguf-harness", hint))
    return report


def _is_ours(config: pytest.Config) -> bool:
    """Whether this session uses the harness; otherwise it must not be affected."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:  # xdist's controller decides for its workers
        return "gguf_run_id" in workerinput
    return bool(
        config.getini("gguf_fixtures")
        or config.pluginmanager.hasplugin(_FIXTURES)
        or given_options(config)
        or any(_leads_to_suites(config, argument) for argument in config.args)
    )


def _leads_to_suites(config: pytest.Config, argument: str) -> bool:
    """Whether a given path, or package (`--pyargs`), contains tests of one of our suites."""
    name = argument.partition("::")[0]
    path = Path(os.path.normpath(config.invocation_params.dir / name))
    if config.option.pyargs and name.partition(".")[0] == "gguf_harness":
        path = _PACKAGE.parent.joinpath(*name.split("."))
    # In a checkout the package has a link to the top-level folder, whose path users give.
    for suites in {_SUITES, _SUITES.resolve()}:
        if path.is_relative_to(suites):
            return True
        if suites.is_relative_to(path):
            way = [folder for folder in (suites, *suites.parents) if folder != path and folder.is_relative_to(path)]
            if not any(_is_passed_over(config, folder) for folder in way):
                return True
    return False


def _is_passed_over(config: pytest.Config, folder: Path) -> bool:
    """Whether pytest skips a folder by default, such as a virtual environment in the project's folder."""
    if any(fnmatch(folder.name, pattern) for pattern in config.getini("norecursedirs")):
        return True
    return not config.option.collect_in_virtualenv and (folder / "pyvenv.cfg").is_file()


def _has_fixture(name: str) -> bool:
    """Whether a fixture is one of ours; searched in the source, since importing takes time and memory."""
    definition = re.compile(rf"^@pytest\.fixture\b.*\ndef {re.escape(name)}\(", re.MULTILINE)
    return any(definition.search(file.read_text(encoding="utf-8")) for file in (_PACKAGE / "fixtures").glob("*.py"))
