"""In other people's sessions the plugin is a guest: it imports next to nothing, takes no name, and changes nothing."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from _pytest.fixtures import FixtureFunctionDefinition

import gguf_harness.fixtures

PLUGIN = "gguf_harness.pytest_plugin.plugin"
WITHOUT = f"-pno:{PLUGIN}"
LIGHT = {
    "gguf_harness.pytest_plugin.hooks",
    "gguf_harness",
    "gguf_harness.gguf",
    "gguf_harness.gguf.types",
    "gguf_harness.inputs",
    "gguf_harness.inputs.command_line",
    "gguf_harness.inputs.option_values",
    "gguf_harness.inputs.subject_values",
    "gguf_harness.pytest_plugin",
    PLUGIN,
}
MOST_CPU_S = 0.030
TURNS = 14
COMPARED_TURNS = 7

LOOK = """
import json, os, sys
from pathlib import Path

def look(session):
    definitions = session._fixturemanager._get_all_fixture_defs()
    return {
        "modules": sorted(sys.modules),
        "fixtures": sorted({d.argname for d in definitions if d.func.__module__.startswith("gguf_harness")}),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
        "options": sorted(session.config._parser._opt2dest),
    }

def pytest_sessionfinish(session):
    name = getattr(session.config, "workerinput", {}).get("workerid", "main")
    with open(f"seen-{name}.json", "w") as file:
        json.dump(look(session), file)
"""


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As in an environment that somebody uses: what was compiled is not compiled again, and no checkout is on the path.

    A plain folder `fixtures` of a project would lose against the package of that name in the checkout.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(gguf_harness.__file__).parent.parent))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.getbasetemp() / "bytecode"))


def fixture_names() -> list[str]:
    """Names of all fixtures of ours."""
    names = set()
    for found in pkgutil.iter_modules(gguf_harness.fixtures.__path__, "gguf_harness.fixtures."):
        if not found.ispkg:
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if isinstance(value, FixtureFunctionDefinition):
                    names.add(value._fixture_function_marker.name or name)
    return sorted(names)


def _seen(pytester: pytest.Pytester, process: str = "main") -> dict[str, Any]:
    seen: dict[str, Any] = json.loads((pytester.path / f"seen-{process}.json").read_text())
    return seen


@pytest.mark.parametrize("distributed", [False, True], ids=["one-process", "xdist"])
def test_a_session_of_others_gets_light_modules_and_nothing_else(pytester: pytest.Pytester, distributed: bool) -> None:
    pytester.makeconftest(LOOK)
    pytester.makepyfile("def test_plain(): pass\ndef test_other(): pass")
    more = ["-n", "2"] if distributed else []
    process = "gw0" if distributed else "main"
    pytester.runpytest_subprocess(WITHOUT, "-W", "error", *more).assert_outcomes(passed=2)
    without = [_seen(pytester), _seen(pytester, process)]
    pytester.runpytest_subprocess("-W", "error", *more).assert_outcomes(passed=2)
    for before, now in zip(without, [_seen(pytester), _seen(pytester, process)], strict=True):
        assert set(now["modules"]) - set(before["modules"]) == LIGHT
        assert now["fixtures"] == []
        assert {option for option in set(now["options"]) - set(before["options"]) if "gguf" not in option} == set()
    assert _seen(pytester, process)["children"] == []
    assert not (pytester.path / "results").exists()


def _cpu_seconds(command: Sequence[str], folder: Path, environment: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime


@pytest.mark.exclusive
def test_a_session_of_others_takes_hardly_longer(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """In turns; pytest-benchmark for comparison.

    What else runs on the machine only adds: the least of each is compared, and where a single fast run decides that,
    the median over the turns. What we really add is in both.
    """
    (tmp_path / "test_plain.py").write_text("def test_plain(): pass\n")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    variants = {"none": [], "ours": ["-p", PLUGIN], "pytest-benchmark": ["-p", "pytest_benchmark.plugin"]}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(TURNS + 1):
        for name, plugin in variants.items():
            if name == "pytest-benchmark" and turn > COMPARED_TURNS:
                continue
            spent = _cpu_seconds([*command, *plugin], tmp_path, environment)
            times[name] += [spent] if turn else []  # the first compiles
    least = {name: min(spent) for name, spent in times.items()}
    added = {name: round(1000 * (least[name] - least["none"]), 1) for name in ("ours", "pytest-benchmark")}
    record_property("added_ms", added)
    print(f"ms of CPU added to a session of {1000 * least['none']:.0f} ms: {added}")
    by_turn = statistics.median(ours - none for ours, none in zip(times["ours"], times["none"], strict=True))
    assert min(least["ours"] - least["none"], by_turn) <= MOST_CPU_S, times


def test_help_and_lists_show_no_name_that_others_may_have(pytester: pytest.Pytester) -> None:
    told = str(pytester.runpytest_subprocess("--help").stdout)
    before = str(pytester.runpytest_subprocess("--help", WITHOUT).stdout)
    options = {line.split()[0] for line in set(told.splitlines()) - set(before.splitlines()) if line.startswith("  --")}
    assert {option.partition("=")[0] for option in options} >= {"--gguf-models", "--gguf-reference", "--gguf-ctx"}
    assert all(option.startswith("--gguf-") for option in options)
    assert "gguf_fixtures (bool)" in told
    for shown in ("--fixtures", "--markers"):
        told = str(pytester.runpytest_subprocess(shown, "--no-header").stdout)
        assert not re.search(r"gguf|metric\(name\)", told)
    assert "corpus_pass" in str(pytester.runpytest_subprocess("--fixtures", "-o", "gguf_fixtures=true").stdout)
    assert "metric(name)" in str(pytester.runpytest_subprocess("--markers", "-o", "gguf_fixtures=true").stdout)


def _own_fixtures(names: Sequence[str], indent: str = "") -> str:
    self = "self" if indent else ""
    return "".join(
        f"\n{indent}@pytest.fixture\n{indent}def {name}({self}):\n{indent}    return 'own {name}'\n" for name in names
    )


def _own_tests(names: Sequence[str], indent: str = "") -> str:
    self = "self, " if indent else ""
    return "".join(
        f"\n{indent}def test_{name}({self}{name}):\n{indent}    assert {name} == 'own {name}'\n" for name in names
    )


@pytest.mark.parametrize("opted_in", [False, True], ids=["guest", "opted-in"])
@pytest.mark.parametrize("place", ["conftest", "module", "class"])
def test_a_project_keeps_its_fixtures_whatever_their_names(
    pytester: pytest.Pytester, place: str, opted_in: bool
) -> None:
    names = fixture_names()
    assert {"model", "candidate", "reference", "server", "record", "prompt", "corpus", "gate", "attention"} <= {*names}
    if place == "conftest":
        pytester.makeconftest("import pytest\n" + _own_fixtures(names))
        pytester.makepyfile(_own_tests(names))
    elif place == "module":
        pytester.makepyfile("import pytest\n" + _own_fixtures(names) + _own_tests(names))
    else:
        inside = _own_fixtures(names, "    ") + _own_tests(names, "    ")
        pytester.makepyfile(f"import pytest\n\nclass TestOwn:\n{inside}")
    settings = ["-o", f"gguf_fixtures={str(opted_in).lower()}", "--strict-markers", "--strict-config"]
    result = pytester.runpytest_subprocess("-W", "error", *settings)
    result.assert_outcomes(passed=len(names))
    result.stdout.no_fnmatch_line("reference:*")
    assert not (pytester.path / "results").exists()


@pytest.mark.parametrize("ours_first", [False, True], ids=["theirs-first", "ours-first"])
def test_own_fixtures_are_kept_beside_a_suite_of_ours(
    pytester: pytest.Pytester, llama_file: Path, ours_first: bool
) -> None:
    """Theirs in their folder's conftest, ours in the suite, whichever is collected first."""
    names = fixture_names()
    folder = pytester.mkdir("theirs")
    (folder / "conftest.py").write_text("import pytest\n" + _own_fixtures(names))
    (folder / "test_theirs.py").write_text(_own_tests(names))
    arguments = ["theirs", "gguf_harness.suites.quant.test_file"]
    arguments = ["--pyargs", *(reversed(arguments) if ours_first else arguments), f"--models={llama_file}"]
    result = pytester.runpytest_subprocess(*arguments, "-W", "error", "-rA")
    result.stdout.fnmatch_lines(["PASSED *test_file*random-F32*"])
    result.assert_outcomes(passed=len(names) + 1)


WAYS = {
    "setting": ("[pytest]\ngguf_fixtures = true\n", "", []),
    "conftest": ("", "pytest_plugins = ['gguf_harness.fixtures']\n", []),
    "plugin": ("", "", ["-p", "gguf_harness.fixtures"]),
    "option": ("", "", ["--gguf-chunks=16"]),
    "all": (
        "[pytest]\ngguf_fixtures = true\n",
        "pytest_plugins = ['gguf_harness.fixtures', 'gguf_harness.fixtures.record']\n",
        ["-p", "gguf_harness.fixtures", "--gguf-chunks=16"],
    ),
}


@pytest.mark.parametrize("autoload", [True, False], ids=["autoload", "named-only"])
@pytest.mark.parametrize("way", WAYS)
def test_a_project_opts_in(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, way: str, autoload: bool
) -> None:
    settings, conftest, arguments = WAYS[way]
    if not autoload:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        if not conftest and "gguf_harness.fixtures" not in arguments:
            arguments = [*arguments, "-p", PLUGIN]
    pytester.makeini(settings or "[pytest]\n")
    pytester.makeconftest(conftest + LOOK)
    pytester.makepyfile(
        """
        def test_mine(ladder, model, request):
            assert model.name == ladder.models[0].name
            assert len(request._fixturemanager.getfixturedefs("ladder", request.node)) == 1
        """
    )
    result = pytester.runpytest_subprocess("-W", "error", "-k", "tiny-F16", "--strict-markers", *arguments)
    result.assert_outcomes(passed=1, deselected=6)
    assert _seen(pytester)["fixtures"] == fixture_names()


def test_who_asks_without_opting_in_is_told_how(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_mine(model): pass\ndef test_typo(nothing_of_that_name): pass")
    for more in ([], ["-n", "2"]):
        result = pytester.runpytest_subprocess("-W", "error", *more)
        result.assert_outcomes(errors=2)
        result.stdout.fnmatch_lines(["*fixture 'model' not found", "*- gguf-harness -*", "*gguf_fixtures = true*"])
        assert str(result.stdout).count("gguf_fixtures = true") == 1


def test_errors_of_ours_are_messages_in_other_peoples_sessions(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import gguf_harness\n\ndef test_api():\n    gguf_harness.attention('missing.gguf', 'The cat')\n"
    )
    result = pytester.runpytest_subprocess("-W", "error")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["There is no model 'missing.gguf'*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*raise *")


@pytest.mark.parametrize("folder", ["package", "plain"])
@pytest.mark.parametrize(
    "arguments", [[], ["--import-mode=importlib"], ["-n", "2"]], ids=["default", "importlib", "xdist"]
)
def test_a_project_may_have_folders_called_as_ours(
    pytester: pytest.Pytester, folder: str, arguments: list[str]
) -> None:
    """The source root of the checkout is called `harness`, and folders there `suites` and `fixtures`."""
    for name in ("harness", "suites", "fixtures"):
        path = pytester.mkpydir(name) if folder == "package" else pytester.mkdir(name)
        (path / f"{name}_code.py").write_text("ANSWER = 42\n")
        (path / f"test_{name}.py").write_text(
            f"from {name}.{name}_code import ANSWER\nimport {name}\n\n\ndef test_theirs():\n"
            f"    assert ANSWER == 42\n    assert {str(pytester.path)!r} in str(list({name}.__path__))\n"
        )
    pytester.makeini("[pytest]\nstrict_markers = true\nstrict_config = true\npythonpath = .\nmarkers = theirs\n")
    pytester.runpytest_subprocess("-W", "error", *arguments).assert_outcomes(passed=3)


def test_the_hint_knows_every_fixture_without_importing_it() -> None:
    """The hint reads the source, for it must not import: it finds every fixture, and nothing else."""
    from gguf_harness.pytest_plugin.plugin import _has_fixture

    assert all(_has_fixture(name) for name in fixture_names())
    assert not any(_has_fixture(name) for name in ("nothing", "mode", "models.*", "_shown", "__init__"))


def test_a_virtual_environment_in_the_project_is_no_reason_to_load_anything(pytester: pytest.Pytester) -> None:
    """Suites lie below the folder that pytest was given, and pytest passes them over."""
    site = pytester.path / ".venv" / "lib" / "site-packages"
    site.mkdir(parents=True)
    (site / "gguf_harness").symlink_to(Path(gguf_harness.__file__).parent)
    pytester.makeconftest(LOOK)
    pytester.makepyfile("def test_plain(): pass")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "pytest", "-q", ".", "-W", "error"]
    done = subprocess.run(command, cwd=pytester.path, env=environment, capture_output=True, text=True, check=False)
    assert re.search(r"\b1 passed", done.stdout), done.stdout + done.stderr
    assert {name for name in _seen(pytester)["modules"] if name.startswith("gguf_harness")} == LIGHT


@pytest.mark.model
@pytest.mark.parametrize("command", ["pytest", "gguf-harness"])
def test_modules_of_the_folder_are_not_taken_for_those_of_python(
    pytester: pytest.Pytester, llama_file: Path, command: str
) -> None:
    """Nor for numpy and llama_cpp: not by the session, and not by its workers, which start in the same folder."""
    for name in ("random", "numpy", "json", "llama_cpp", "typing", "gguf_harness", "harness"):
        (pytester.path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')\n")
    start = [str(Path(sys.executable).parent / command)]
    start += ["--pyargs", "gguf_harness.suites.quant"] if command == "pytest" else ["run", "quant"]
    settings = [f"--models={llama_file}", "--gguf-ctx=32", "--gguf-chunks=2", "-k", "test_perplexity or test_file"]
    command_line = [*start, *settings, "-W", "error", "-p", "no:cacheprovider"]
    # Not by pytester: it puts the current folder in PYTHONPATH.
    done = subprocess.run(command_line, cwd=pytester.path, capture_output=True, text=True, check=False, timeout=120)
    assert re.search(r"\b2 passed", done.stdout), done.stdout + done.stderr
    assert done.returncode == 0
    assert list(pytester.path.glob("results/runs/*/report.html"))
