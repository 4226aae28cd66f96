"""Mistakes on the command line: one clear message, exit code 4, nothing measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.inputs.command_line import add_options
from gguf_harness.inputs.option_values import parse_layers
from tests.plugin.conftest import SUITES, RunSuite


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models=missing.gguf"], "There is no model 'missing.gguf'"),
        (["--models=."], "contains no .gguf model"),
        (["--models=*.gguf"], "No .gguf file matches"),
        (["--models=,"], "--models is empty"),
        (["--reference=missing.gguf"], "There is no model 'missing.gguf'"),
        (["--models={model}", "--gguf-quants=Q9_K"], "Unknown quantization type 'Q9_K'"),
        (["--models={model}", "--gguf-quants="], "--gguf-quants is empty"),
        (["--models={model}", "--gguf-ctx=0"], "0 is too small, expected at least 8"),
        (["--models={model}", "--gguf-ctx=many"], "'many' is not a whole number"),
        (["--models={model}", "--gguf-chunks=1"], "1 is too small, expected at least 2"),
        (["--models={model}", "--gguf-threads=-2"], "-2 is too small"),
        (["--models={model}", "--gguf-flash-attn=maybe"], "invalid choice: 'maybe'"),
        (["--models={model}", "--gguf-logprobs-limit=big"], "'big' is not a size such as 500M or 8G"),
        (["--models={model}", "--gguf-timeout=0"], "expected more than 0 seconds"),
        (["--models={model}", "--gguf-timeout=nan"], "expected more than 0 seconds"),
        (["--models={model}", "--gguf-imatrix=missing.dat"], "missing.dat: no such file"),
        (["--models={model}", "--gguf-llama-server=missing"], "missing: no such file"),
        (["--models={model}", "--gguf-llama-server={model}"], "random-F32.gguf is not executable"),
        (["--models={model}", "--gguf-gates=missing.toml"], "missing.toml: no such file"),
        (["--models={model}", "--gguf-prompts=missing.toml"], "missing.toml' cannot be read: No such file"),
        (["--models={model}", "--gguf-prompts={model}"], "is not UTF-8"),
        (["--models={model}", "--gguf-analytics-gpu=-2"], "-2 is too small, expected at least -1"),
        (["--models={model}", "--gguf-layers=first"], "'first' in 'first' is neither a layer nor a range such as 0-3"),
        (["--models={model}", "--gguf-layers="], "is neither a layer nor a range such as 0-3"),
        (
            ["--models={model}", "--gguf-layers=3-1"],
            "'3-1' is not a range of layers, expected the smaller number first",
        ),
        (["--models={model}", "--gguf-layers=0-99999999999"], "'0-99999999999' is not a range of layers"),
        (["--models={model}", "--gguf-heads=1,-2"], "'1,-2' is not a list of heads such as 0-3,7"),
        (["--models={model}", "--gguf-gen-tokens=0"], "0 is too small, expected at least 1"),
        (["--models={model}", "--gguf-layers=3-1"], "'3-1' is not a range of layers"),
        (["--models={model}", "--gguf-corpus=missing.txt"], "Corpus 'missing.txt' is neither a known name nor a file"),
        (["--models={model}", "--gguf-corpus=hf:name"], "Corpus 'hf:name' is malformed"),
        (["--models={model}", "--gguf-gates={model}"], "is not UTF-8 text"),
        (["--models={model}", "--gguf-layers=last"], "'last' in 'last' is neither a layer nor a range such as 0-3"),
    ],
)
def test_mistakes_are_named(run_suite: RunSuite, llama_file: Path, arguments: list[str], message: str) -> None:
    result = run_suite(*(argument.format(model=llama_file) for argument in arguments), quick=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = f"{result.stdout}{result.stderr}"
    assert message in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output


@given(st.lists(st.integers(0, 9_999), min_size=1, max_size=8))
def test_any_layers_can_be_asked_for(numbers: list[int]) -> None:
    assert parse_layers(",".join(map(str, numbers))) == tuple(sorted(set(numbers)))
    last = min(max(numbers), min(numbers) + 100)
    assert parse_layers(f" {min(numbers)}-{last}") == tuple(range(min(numbers), last + 1))


def test_a_missing_default_model_is_named(run_suite: RunSuite, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        hide="from pathlib import Path\n\nfrom gguf_harness.inputs import sources\n\n"
        "sources.TINY_FILE = Path('nowhere.gguf')\n"
    )
    pytester.syspathinsert()
    result = run_suite("-p", "hide", quick=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = f"{result.stdout}{result.stderr}"
    assert "'tiny' has no file in this installation" in output
    assert "Traceback" not in output


def test_every_option_has_a_metavar_and_a_default_in_its_help(pytester: pytest.Pytester) -> None:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    options = parser.getgroup("gguf").options
    assert len(options) > 15
    for option in options:
        attributes = option.attrs()
        assert "(default: " in attributes["help"], option
        assert "metavar" in attributes or "choices" in attributes or attributes.get("action") == "store_true", option


def test_a_session_without_models_is_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_plain():\n    assert True\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("reference:*")
    assert not (pytester.path / "results").exists()


def test_fixtures_of_the_same_name_are_left_alone(pytester: pytest.Pytester) -> None:
    """Other projects have models and candidates of their own."""
    pytester.makepyfile(
        test_theirs="""
        import pytest

        @pytest.fixture
        def model():
            return "mine"

        def test_own_fixture(model):
            assert model == "mine"

        @pytest.mark.parametrize("model", ["a", "b"])
        def test_parametrized(model):
            assert model in {"a", "b"}

        @pytest.mark.parametrize(("candidate", "reference"), [(1, 2)])
        def test_two(candidate, reference):
            assert (candidate, reference) == (1, 2)

        @pytest.fixture
        def prompt():
            return "mine"

        def test_own_prompt(prompt):
            assert prompt == "mine"

        @pytest.mark.parametrize("prompt", ["a", "b"])
        def test_own_prompts(prompt):
            assert prompt in {"a", "b"}

        @pytest.mark.parametrize(argnames="model, candidate", argvalues=[(1, 2)])
        def test_by_keywords(model, candidate):
            assert (model, candidate) == (1, 2)

        @pytest.mark.parametrize(argvalues=[pytest.param(1, marks=pytest.mark.skipif(False, reason=""))],
                                 argnames=["reference"])
        def test_values_first(reference):
            assert reference == 1

        @pytest.fixture
        def candidate(request):
            return request.param

        @pytest.mark.parametrize(("candidate", "model"), [(1, 2)], indirect=["candidate"])
        def test_indirect(candidate, model):
            assert (candidate, model) == (1, 2)

        def test_by_hook(any_candidate):
            assert any_candidate == 3
        """,
        conftest="""
        def pytest_generate_tests(metafunc):
            if "any_candidate" in metafunc.fixturenames:
                metafunc.parametrize("any_candidate", [3])
        """,
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=11)
    assert not (pytester.path / "results").exists()


def test_models_and_prompts_can_be_given_by_name(pytester: pytest.Pytester, llama_file: Path) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("prompt", ["story", "nothing"], indirect=True)
        def test_prompt(prompt):
            assert prompt.id == "story"

        @pytest.mark.parametrize(argnames="model", argvalues=["random-F32", "other"], indirect=True)
        def test_model(model):
            assert model.name == "random-F32"

        @pytest.mark.parametrize("model", ["theirs"])
        def test_beside_ours(model, ladder):
            assert model == "theirs"
        """
    )
    pytester.path.joinpath("prompts.toml").write_text("[[prompt]]\nid = 'story'\ntext = 'Once'\n")
    result = pytester.runpytest_subprocess(
        f"--models={llama_file}", "--gguf-prompts=prompts.toml", "-p", "no:cacheprovider", "-W", "error"
    )
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["This session has no model 'other'.", "There is no prompt 'nothing'."])


def test_a_project_may_extend_a_fixture_of_ours(pytester: pytest.Pytester, llama_file: Path) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def model(model):
            return model

        @pytest.fixture
        def prompt(prompt):
            return "asked: " + prompt.id
        """
    )
    pytester.path.joinpath("prompts.toml").write_text("[[prompt]]\nid = 'story'\ntext = 'Once'\n")
    pytester.makepyfile("def test_mine(model, prompt): assert (model.name, prompt) == ('random-F32', 'asked: story')")
    result = pytester.runpytest_subprocess(
        f"--models={llama_file}", "--gguf-prompts=prompts.toml", "-p", "no:cacheprovider", "-W", "error"
    )
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only"])
def test_a_session_that_runs_no_test_leaves_no_run(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, option: str
) -> None:
    result = run_suite(f"--models={llama_file}", option, tests="test_file.py")
    assert result.ret == 0
    assert "No candidates" not in str(result.stdout)
    assert not list(pytester.path.glob("results/runs/*/run.json"))


def test_a_folder_that_pytest_cannot_write_costs_no_table(pytester: pytest.Pytester, llama_file: Path) -> None:
    """With the settings of a checkout, as in a read-only one: pytest warns that its cache is lost, and that is all."""
    pytester.path.joinpath(".pytest_cache").write_text("in the way")
    settings = ["-c", str(SUITES.resolve().parent / "pyproject.toml"), "--rootdir", str(pytester.path)]
    result = pytester.runpytest_subprocess(str(SUITES / "quant/test_file.py"), *settings, f"--models={llama_file}")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["random-F32*", "report: results/runs/*"])
    result.stdout.fnmatch_lines(["*PytestCacheWarning*"])


@pytest.mark.parametrize("option", ["--help", "--version", "--markers", "--fixtures", "--fixtures-per-test"])
def test_what_only_informs_looks_for_no_model(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = pytester.runpytest_subprocess("--models=hf:org/name:Q4_K_M", "--gguf-corpus=missing.txt", option)
    assert result.ret == 0
    assert not pytester.path.joinpath("results").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--models=hf:org/name:Q4_K_M"], ["--reference=hf:org/name:x.gguf"], ["--gguf-corpus=wikitext2"]],
)
def test_the_hub_offline_is_one_message(
    run_suite: RunSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    result = run_suite(*arguments, quick=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "could not be downloaded from the Hugging Face hub" in str(result.stderr)
    assert len(result.outlines) + len(result.errlines) < 8


def test_a_mark_of_an_unknown_metric_is_named(pytester: pytest.Pytester, llama_file: Path) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.metric('kld_meen')\ndef test_mine(model): pass")
    result = pytester.runpytest_subprocess(f"--models={llama_file}", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *::test_mine*, mark metric: Unknown metric 'kld_meen'.", "*'kld_mean'?"])


def test_loading_the_plugin_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    heavy = {"numpy", "llama_cpp", "plotly", "scipy", "rich"}
    code = f"import sys, gguf_harness.pytest_plugin.plugin; print(sorted({heavy} & set(sys.modules)))"
    result = pytester.runpython_c(code)
    result.stdout.fnmatch_lines(["[[]]"])
