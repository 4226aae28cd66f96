"""`--models` and `--reference` are ours where they are nobody's; `--gguf-models` and `--gguf-reference` always are."""

from __future__ import annotations

from pathlib import Path

import pytest

PLUGIN = "gguf_harness.pytest_plugin.plugin"
OPTION = """
def pytest_addoption(parser):
    parser.addoption("--models", default="unset")
    parser.addoption("--reference", action="store_true")
"""
THEIR_TEST = """
def test_theirs(request):
    assert request.config.getoption("--models") == {value!r}
    assert request.config.getoption("models") == {value!r}
    assert request.config.getoption("--reference") is {flag}
    assert request.config.pluginmanager.hasplugin("gguf_harness.pytest_plugin.session") is {ours}
"""
OUR_TEST = """
def test_ours(ladder):
    assert [model.name for model in ladder.models] == ["random-F32"]
    assert ladder.reference.name == "random-F32"
"""


def _owned(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, owner: str) -> list[str]:
    """A project in which somebody else has the options; the arguments that load them."""
    if owner == "conftest":
        pytester.makeconftest(OPTION)
        return []
    if owner == "conftest of the tests":
        (pytester.mkdir("tests") / "conftest.py").write_text(OPTION)
        pytester.makeini("[pytest]\ntestpaths = tests\n")
        return []
    folder = pytester.mkdir("installed")
    (folder / "their_plugin.py").write_text(OPTION)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    if owner == "distribution":
        metadata = folder / "their_plugin-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-plugin\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[pytest11]\ntheirs = their_plugin\n")
    elif owner == "variable":  # loaded after the plugins of installed distributions
        monkeypatch.setenv("PYTEST_PLUGINS", "their_plugin")
    return ["-p", "their_plugin"] if owner == "-p" else []


@pytest.mark.parametrize("owner", ["conftest", "conftest of the tests", "distribution", "variable", "-p"])
def test_options_of_others_stay_theirs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, llama_file: Path, owner: str
) -> None:
    loaded = _owned(pytester, monkeypatch, owner)
    tests = pytester.path / "tests"
    tests.mkdir(exist_ok=True)
    theirs = tests / "test_theirs.py"

    def run(value: str, flag: bool, ours: bool, *arguments: str) -> None:
        theirs.write_text(THEIR_TEST.format(value=value, flag=flag, ours=ours))
        result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *loaded, *arguments)
        result.assert_outcomes(passed=2 if ours else 1)
        assert (pytester.path / "results" / "runs").exists() == ours

    run("unset", False, False)
    run("theirs", True, False, "--models=theirs", "--reference")
    run("tests", True, False, "--models", "tests", "--reference")
    # A flag of theirs has no value: what follows is a path.
    run("theirs", True, False, "--models=theirs", "--reference", "tests")
    # Of a type that stands in an option's file.
    (pytester.path / "arguments.txt").write_text("--models\ntheirs\n")
    run("theirs", False, False, "@arguments.txt")
    (tests / "test_ours.py").write_text(OUR_TEST)
    full = [f"--gguf-models={llama_file}", f"--gguf-reference={llama_file}"]
    run("theirs", True, True, "--models=theirs", "--reference", *full)
    run("unset", False, True, *full)


def test_options_of_a_folder_that_is_found_later_are_no_clash(pytester: pytest.Pytester) -> None:
    """The conftest.py of a folder below those that pytest was given is read when that folder is collected."""
    folder = pytester.mkdir("below")
    (folder / "conftest.py").write_text(OPTION)
    (folder / "test_theirs.py").write_text(THEIR_TEST.format(value="unset", flag=False, ours=False))
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)


@pytest.mark.parametrize("spelling", ["one word", "two words", "full", "file", "both"])
def test_names_that_are_nobodys_are_ours(pytester: pytest.Pytester, llama_file: Path, spelling: str) -> None:
    """Values in words of their own are not taken for paths: the tests of the project run, and its conftest is read."""
    tests = pytester.mkdir("tests")
    (tests / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--theirs')\n")
    (tests / "test_ours.py").write_text(OUR_TEST)
    pytester.makeini("[pytest]\ntestpaths = tests\n")
    (pytester.path / "arguments.txt").write_text(f"--models\n{llama_file}\n--reference={llama_file}\n")
    arguments = {
        "one word": [f"--models={llama_file}", f"--reference={llama_file}"],
        "two words": ["--models", str(llama_file), "--reference", str(llama_file)],
        "full": [f"--gguf-models={llama_file}", "--gguf-reference", str(llama_file)],
        "file": ["@arguments.txt"],
        "both": ["--models", str(llama_file), f"--gguf-models={llama_file}", "--reference=x", "@arguments.txt"],
    }[spelling]
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "--theirs=x", *arguments)
    result.assert_outcomes(passed=1)


def test_a_conftest_that_is_found_late_may_have_the_names(pytester: pytest.Pytester) -> None:
    """The word after an option that pytest does not know is a path to it: it looks for a conftest there first."""
    pytester.mkdir("folder")
    tests = pytester.mkdir("tests")
    (tests / "conftest.py").write_text(OPTION)
    (tests / "test_theirs.py").write_text(THEIR_TEST.format(value="folder", flag=False, ours=False))
    pytester.makeini("[pytest]\ntestpaths = tests\n")
    pytester.runpytest_subprocess("-W", "error", "--models", "folder").assert_outcomes(passed=1)


@pytest.mark.parametrize("spelling", ["--models={}", "--gguf-models={}"])
def test_a_conftest_loads_the_plugin(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, llama_file: Path, spelling: str
) -> None:
    """Where the package is not installed, or plugins are not loaded by themselves; then its names are read later.

    The file after an option that pytest does not know yet would be a path to it, and its folder the one whose conftest
    it loads: so it is with the options of every conftest.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(f"pytest_plugins = [{PLUGIN!r}]\n")
    pytester.makepyfile(OUR_TEST)
    arguments = [spelling.format(llama_file), f"--reference={llama_file}"]
    pytester.runpytest_subprocess("-W", "error", *arguments).assert_outcomes(passed=1)
    pytester.makepyfile(THEIR_TEST.format(value="theirs", flag=True, ours=False))
    pytester.makeconftest(OPTION + f"pytest_plugins = [{PLUGIN!r}]\n")
    (pytester.path / "test_a_conftest_loads_the_plugin.py").unlink()
    pytester.makepyfile(test_theirs=THEIR_TEST.format(value="theirs", flag=True, ours=False))
    pytester.runpytest_subprocess("-W", "error", "--models=theirs", "--reference").assert_outcomes(passed=1)


def test_xdist_hands_on_what_was_given(pytester: pytest.Pytester, llama_file: Path) -> None:
    pytester.makepyfile(OUR_TEST)
    arguments = ["--models", str(llama_file), "--reference", str(llama_file), "-n", "2"]
    pytester.runpytest_subprocess("-W", "error", *arguments).assert_outcomes(passed=1)
    (pytester.path / "test_xdist_hands_on_what_was_given.py").unlink()
    pytester.makeconftest(OPTION)
    pytester.makepyfile(test_theirs=THEIR_TEST.format(value="theirs", flag=True, ours=False))
    arguments = ["--models=theirs", "--reference", "-n", "2"]
    pytester.runpytest_subprocess("-W", "error", *arguments).assert_outcomes(passed=1)


def test_an_option_with_the_defaults_value_was_given_all_the_same(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_mine(harness_options):\n    assert harness_options.ctx == 512\n")
    pytester.runpytest_subprocess("-W", "error", "--gguf-ctx=512").assert_outcomes(passed=1)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(errors=1)
    pytester.makeini("[pytest]\naddopts = --gguf-ctx=512\n")
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)
