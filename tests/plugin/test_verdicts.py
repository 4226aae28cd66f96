"""Verdicts of whole sessions: over what was planned, whatever is deselected, skipped, interrupted or rerun."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from gguf_harness.cli import main
from gguf_harness.metrics.registry import METRICS, possible_values
from gguf_harness.report.data import RunView
from tests.plugin.conftest import ReadRun, RunSuite
from tests.plugin.test_gates import _gates
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

SYSTEM = (
    '\n[[prompt]]\nid = "sys"\nmessages = [{role = "system", content = "Be brief."}, {role = "user", content = "Hi"}]\n'
)
PLAIN = '\n[[prompt]]\nid = "fox"\ntext = "The quick brown fox"\n'
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}{% endfor %}[assistant]"
)


@pytest.fixture(scope="module")
def worse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("worse") / "worse.gguf", noise=0.05)


@pytest.fixture
def pair(llama_file: Path, worse_file: Path) -> list[str]:
    """A ladder of two."""
    return [f"--models={llama_file},{worse_file}", f"--reference={llama_file}"]


def _words(result: pytest.RunResult) -> str:
    """What it printed, in one line."""
    return " ".join(str(result.stdout).split())


def _planned(run: dict[str, Any]) -> set[tuple[str, str]]:
    return {(gate["model"], gate["metric"]) for gate in run["planned"]}


@pytest.mark.shared_cache
@pytest.mark.parametrize("processes", [0, 2])
def test_one_file_of_a_suite_leaves_its_other_gates_undecided(
    run_suite: RunSuite,
    read_run: ReadRun,
    pytester: pytest.Pytester,
    pair: list[str],
    processes: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*pair, _gates(pytester, ""), "-n", str(processes), "--junitxml=junit.xml"]
    result = run_suite(*arguments, tests="test_perplexity.py")
    # The person chose what to run: pytest's exit code stands.
    assert result.ret == 0
    said = "1 of 4 gates decided; not decided: kld_mean (test_distribution_stays_close_to_reference did not run)"
    result.stdout.fnmatch_lines(["worse *incomplete", "Incomplete: planned gates were not decided*"])
    assert f"worse: incomplete; {said}" in _words(result)
    run = read_run()
    assert _planned(run) == {("worse", metric) for metric in ("kld_mean", "same_top", "ppl_ratio", "delta_p_rms")}
    assert run["finished"]
    suite = ET.fromstring((pytester.path / "junit.xml").read_text(encoding="utf-8"))[0]  # noqa: S314 - our own
    facts = {each.attrib["name"]: each.attrib["value"] for each in suite.findall("./properties/property")}
    assert facts["gguf.verdict[worse]"] == "incomplete"
    assert facts["gguf.undecided[worse]"].startswith(said)
    (folder,) = pytester.path.glob("results/runs/*")
    assert "worse is incomplete" in (folder / "badge.svg").read_text(encoding="utf-8")
    if not processes:
        for command in (["report", "--markdown"], ["report"], ["badge"], ["compare", str(folder)]):
            assert main([*command[:1], str(folder), *command[1:]]) == 0
        told = capsys.readouterr().out
        assert "passes every gate" not in told
        assert "<title>gguf-harness: worse is incomplete</title>" in told
        assert "### Not decided\n\n- worse: 1 of 4 gates decided" in told


@pytest.mark.shared_cache
def test_a_test_that_ends_without_deciding_its_gate_fails(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, tmp_path: Path
) -> None:
    """All texts are empty, so that a limit on them is held against nothing."""
    mute = write_random_llama(tmp_path / "mute.gguf", eos=ord("x"))
    prompts = pytester.path / "fox.toml"
    prompts.write_text(PLAIN, encoding="utf-8")
    arguments = [f"--models={mute}", "--gguf-quants=Q8_0", f"--gguf-prompts={prompts}", "--junitxml=junit.xml"]
    assert run_suite(*arguments, tests="test_text.py").ret == 0
    result = run_suite(*arguments, _gates(pytester, "[bleu]\nlimit = 1\n"), tests="test_text.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    said = "bleu has a limit, and this test did not decide on it: test_texts_stay_close_to_reference was skipped"
    result.stdout.fnmatch_lines(
        [f"mute-Q8_0: {said}*", "FAILED *test_texts_stay_close_to_reference?mute-Q8_0?*", "*1 failed, *"]
    )
    assert "mute-Q8_0: incomplete; 0 of 5 gates decided; not decided: " in _words(result)
    result.stdout.no_fnmatch_line("*could not be measured*")
    suite = ET.fromstring((pytester.path / "junit.xml").read_text(encoding="utf-8"))[0]  # noqa: S314 - our own
    assert suite.attrib["failures"] == "1"
    assert {test["kind"] for test in read_run()["tests"] if test["outcome"] == "failed"} == {"undecided"}


@pytest.mark.shared_cache
def test_a_limit_that_no_test_knows_fails(run_suite: RunSuite, pytester: pytest.Pytester, pair: list[str]) -> None:
    result = run_suite(*pair, _gates(pytester, "[floor_kld_mean]\nlimit = 1\n"), tests="test_file.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "--gguf-gates has a limit for floor_kld_mean, and no test checks it" in _words(result)


@pytest.mark.shared_cache
def test_a_limit_of_a_suite_that_takes_no_part_is_named(
    run_suite: RunSuite, pytester: pytest.Pytester, pair: list[str]
) -> None:
    result = run_suite(*pair, _gates(pytester, "[resid_cosine]\nlimit = 0.9\n"), tests="test_file.py")
    assert result.ret == 0
    said = "note: --gguf-gates has limits that no suite of this session checks: resid_cosine (suites/layers)"
    assert said in _words(result)
    assert "attn_cosine" not in _words(result)


@pytest.mark.shared_cache
def test_a_reference_without_candidates_fails(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(f"--reference={llama_file}", tests="test_file.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "note: --reference was given, but there is no candidate to compare with it" in _words(result)


@pytest.mark.shared_cache
def test_suites_without_limits_measure_and_do_not_pass(
    run_suite: RunSuite, pytester: pytest.Pytester, pair: list[str]
) -> None:
    result = run_suite(*pair, suite="embeddings", tests="test_reference.py")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["worse *measured, not gated", "Measured, not gated: no limit was set*"])
    (folder,) = pytester.path.glob("results/runs/*")
    assert "gguf-harness: not gated" in (folder / "badge.svg").read_text(encoding="utf-8")


STOPPER = """
import os, signal, threading
import pytest
from gguf_harness.engine.worker import Worker

@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid, location):
    if "test_distribution_stays" in nodeid and os.environ["STOP"] == "after":
        os.kill(os.getpid(), signal.SIGINT)
    if "test_distribution_stays" in nodeid and os.environ["STOP"] == "internal":
        raise ZeroDivisionError("broken plugin")

def pytest_runtest_setup(item):
    if "test_most_likely" in item.nodeid and os.environ["STOP"] == "exit":
        pytest.exit("enough for today", returncode=0)

def pytest_configure(config):
    call = Worker.call
    def slow(self, *arguments, **more):
        if getattr(arguments[0], "__name__", "").endswith("_pass"):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return call(self, *arguments, **more)
    if os.environ["STOP"] == "during":
        Worker.call = slow
"""


@pytest.mark.parametrize(
    ("stop", "options", "code", "why"),
    [
        ("after", [], 2, "KeyboardInterrupt"),
        ("after", ["-n", "2"], 2, "KeyboardInterrupt"),
        ("during", ["--gguf-ctx=256", "--gguf-chunks=200"], 2, "KeyboardInterrupt"),
        # A person's 0; but the baseline that was to be saved was not.
        ("exit", [], 1, "Exit: enough for today"),
        ("internal", [], 3, "an internal error of pytest, ZeroDivisionError: broken plugin"),
        ("no", ["-x", "--gguf-inconclusive=fail"], 1, "stopping after 1 failures"),
        ("no", ["--maxfail=1", "-n", "2", "--gguf-inconclusive=fail"], 2, "stopping after 1 failures"),
    ],
)
def test_an_interrupted_session_passes_nothing(
    run_suite: RunSuite,
    read_run: ReadRun,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    pair: list[str],
    stop: str,
    options: list[str],
    code: int,
    why: str,
) -> None:
    pytester.makepyfile(stopper=STOPPER)
    monkeypatch.setenv("STOP", stop)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=":")
    failing = "[kld_mean]\nlimit = 1e-9\n" if stop == "no" else ""
    result = run_suite(*pair, _gates(pytester, failing), "-p", "stopper", "--gguf-save-baseline=half", *options,
        tests="test_divergence.py",
    )  # fmt: skip
    assert result.ret == code
    run = read_run()
    assert not run["finished"]
    session = run["session"]
    assert (session["selected"], session["ran"] < 5) == (5, True)
    headline = RunView(run).headline()
    assert headline.startswith(f"Interrupted: {session['ran']} of 5 tests ran (")
    assert why in headline
    if code != 3:  # pytest has no summary then
        assert headline in _words(result)
    result.stdout.no_fnmatch_line("*passes every gate*")
    assert {gate["metric"] for gate in run["planned"]} == {"kld_mean", "same_top", "ppl_ratio", "delta_p_rms"}
    (badge,) = pytester.path.glob("results/runs/*/badge.svg")
    assert "gguf-harness: interrupted" in badge.read_text(encoding="utf-8")
    # A baseline of half a run would compare the other half with nothing.
    assert not (pytester.path / "results" / "baselines" / "half.json").exists()


OWN = """
import pytest
from gguf_harness.metrics.perplexity import perplexity

def test_mine(model, corpus_pass, record):
    estimate = perplexity(corpus_pass(model)["nll"])
    record(estimate)
    assert estimate.value < 2 and model

@pytest.fixture
def broken():
    raise RuntimeError("no luck")

@pytest.fixture
def torn():
    yield
    raise RuntimeError("too late")

def test_setup(candidate, broken): pass
def test_teardown(candidate, torn): pass
def test_skipped(candidate): pytest.skip("not today")

@pytest.mark.xfail
def test_expected(candidate): assert 0

@pytest.mark.xfail(strict=True)
def test_unexpected(candidate): pass
"""


def test_a_persons_own_failures_are_shown_as_they_are(
    pytester: pytest.Pytester, read_run: ReadRun, pair: list[str]
) -> None:
    pytester.makepyfile(test_own=OWN)
    small = ["--gguf-ctx=32", "--gguf-chunks=2", "-p", "no:cacheprovider", "-W", "error"]
    result = pytester.runpytest_subprocess(*pair, *small)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=3, errors=2, skipped=1, xfailed=1)
    output = _words(result)
    for words in (
        "random-F32: reference; test_mine[random-F32] failed: AssertionError: assert (",
        "worse: fail; test_mine[worse] failed: AssertionError: assert (",
        "test_unexpected[worse] failed: [XPASS(strict)]",
        "a fixture of test_setup[worse] failed: RuntimeError: no luck",
        "a fixture of test_teardown[worse] failed: RuntimeError: too late",
    ):
        assert words in output
    for words in ("could not be measured", "ModelInfo(", "Subject(", "PlannedModel("):
        assert words not in output
    run = read_run()
    assert run["planned"] == []
    kinds = {(test["id"].split("::")[-1], test["kind"]) for test in run["tests"]}
    assert {
        ("test_mine[worse]", "assertion"),
        ("test_setup[worse]", "fixture"),
        ("test_teardown[worse]", "fixture"),
        ("test_skipped[worse]", None),
        ("test_expected[worse]", None),
    } <= kinds


@pytest.mark.shared_cache
def test_a_prompt_that_a_template_refuses_costs_that_prompt(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, tmp_path: Path
) -> None:
    models = [
        write_random_llama(tmp_path / f"{name}.gguf", chat_template=NO_SYSTEM, noise=noise)
        for name, noise in (("a-F32", 0.0), ("b", 0.05))
    ]
    prompts = pytester.path / "prompts-of-mine.toml"
    prompts.write_text(PLAIN + SYSTEM, encoding="utf-8")
    both = [f"--models={models[0]},{models[1]}", f"--reference={models[0]}", f"--gguf-prompts={prompts}"]
    limits = _gates(pytester, "[bleu]\nlimit = 0\n")
    result = run_suite(*both, limits, tests="test_text.py")
    assert result.ret == 0
    result.assert_outcomes(passed=2, skipped=1)
    note = "note: 1 of 2 prompts could not be given to b: prompt 'sys': The model's chat template does not take these"
    result.stdout.fnmatch_lines(["b *incomplete"])
    assert note in _words(result)
    run = read_run()
    # One prompt is left, and one prompt decides nothing.
    assert [gate["verdict"] for gate in run["gates"]] == ["inconclusive"]
    assert [test["kind"] for test in run["tests"]].count("prompt") == 1

    result = run_suite(*both, suite="attention")
    assert result.ret in {0, 1}  # what the gates say of noise is not the point
    assert not [test for test in read_run()["tests"] if test["kind"] in {"measurement", "prompt"}]
    assert note in _words(result)

    prompts.write_text(SYSTEM, encoding="utf-8")
    result = run_suite(*both, limits, tests="test_text.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2)
    assert "b: could not be measured. None of the 1 prompts can be given to a-F32." in _words(result)


FLAKY = """
from gguf_harness.metrics.records import Estimate

attempts = 0

def test_flaky(candidate, record, gate):
    global attempts
    attempts += 1
    estimate = Estimate("kld_mean", 1 / attempts, 10, 0.001, clusters=10)
    record(estimate)
    gate(estimate)
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_only_the_last_attempt_counts(
    pytester: pytest.Pytester, read_run: ReadRun, pair: list[str], processes: int
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(test_flaky=FLAKY)
    arguments = ["--reruns=2", "-n", str(processes), "-p", "no:cacheprovider"]
    result = pytester.runpytest_subprocess(*pair, _gates(pytester, "[kld_mean]\nlimit = 0.4\n"), *arguments)
    assert result.ret == 0
    run = read_run()
    assert [row["value"] for row in run["estimates"]] == [pytest.approx(1 / 3)]
    assert [(gate["metric"], gate["verdict"]) for gate in run["gates"]] == [("kld_mean", "pass")]
    assert [(test["outcome"], test["attempts"]) for test in run["tests"]] == [("passed", 3)]
    assert run["finished"]
    assert "test_flaky[worse]: passed at attempt 3; only the last one counts" in _words(result)

    result = pytester.runpytest_subprocess(*pair, _gates(pytester, "[kld_mean]\nlimit = 0.1\n"), *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [gate["verdict"] for gate in read_run()["gates"]] == ["fail"]


def test_collecting_alone_leaves_no_run(run_suite: RunSuite, pytester: pytest.Pytester, pair: list[str]) -> None:
    assert run_suite(*pair, "--collect-only", "-q").ret == 0
    assert not list(pytester.path.glob("results/runs/*"))


@pytest.mark.shared_cache
def test_suites_decide_what_the_plan_says(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, pair: list[str]
) -> None:
    """A limit for everything that can have one: the plan and the tests of all suites agree."""
    limits = {}
    for metric, info in METRICS.items():
        if info.better != "neutral":
            worst = possible_values(metric)[info.better == "lower"]
            limits[metric] = max(-1e18, min(worst, 1e18))
    file = pytester.path / "all.toml"
    file.write_text("".join(f"[{name}]\nlimit = {limit}\n" for name, limit in limits.items()))
    quick = ["--gguf-head-windows=2", "--gguf-sensitivity=all", "--gguf-repetitions=1"]
    # A text of suites/kv has room for a fact and its question.
    quick += ["--gguf-ctx=512"]
    result = run_suite(*pair, f"--gguf-gates={file}", *quick, suite="", tests="")
    run = read_run()
    assert not [test for test in run["tests"] if test["kind"] not in {None, "undecided"}]
    decided = {(gate["suite"], gate["metric"]) for gate in run["gates"]}
    planned = {(gate["suite"], gate["metric"]) for gate in run["planned"]}
    assert decided <= planned
    # Embedding models alone have a pooled vector, texts that never part no gap, and files of one size no growth.
    assert planned - decided == {
        ("embeddings", "pooled_cosine"),
        ("quant", "divergence_probability_gap"),
        ("layers", "tensor_restored_gain_per_mb"),
    }
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["worse: pooled_cosine has a limit, and this test did not decide on it: *"])
