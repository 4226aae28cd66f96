"""Gates in whole sessions: what fails, what only warns, and what all of a run decide together."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.metrics.records import Place
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = [pytest.mark.model, pytest.mark.shared_cache]


@pytest.fixture(scope="module")
def worse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model with noise on its weights, as a bad quantization would leave it."""
    return write_random_llama(tmp_path_factory.mktemp("worse") / "worse.gguf", noise=0.05)


def _gates(pytester: pytest.Pytester, text: str) -> str:
    open_limits = {"kld_mean": 100, "same_top": 0, "ppl_ratio": 1e9, "delta_p_rms": 1}
    tables = [f"[{metric}]\nlimit = {limit}\n" for metric, limit in open_limits.items() if f"[{metric}]" not in text]
    file = pytester.path / "gates.toml"
    file.write_text(text + "\n" + "".join(tables))
    return f"--gguf-gates={file}"


def test_a_gate_at_the_value_is_inconclusive_and_says_what_would_decide(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    models = [f"--models={llama_file},{worse_file}", f"--reference={llama_file}"]
    result = run_suite(*models, _gates(pytester, ""), tests="test_divergence.py")
    assert result.ret == 0
    row = next(row for row in read_run()["estimates"] if row["metric"] == "kld_mean")
    limit = row["value"] + row["se"]
    near = _gates(pytester, f"[kld_mean]\nlimit = {limit}\n")

    result = run_suite(*models, near, tests="test_divergence.py")
    assert result.ret == 0
    (verdict,) = [gate for gate in read_run()["gates"] if gate["verdict"] == "inconclusive"]
    assert verdict["metric"] == "kld_mean"
    assert verdict["more_clusters"] > 0
    assert verdict["test"].endswith("test_distribution_stays_close_to_reference[worse]")
    assert any("worse: kld_mean is inconclusive." in warning for warning in read_run()["warnings"])
    assert f"--gguf-chunks={4 + verdict['more_clusters']}" in verdict["detail"]

    # All gates of the suite, or it would be incomplete.
    result = run_suite(*models, near, "--gguf-inconclusive=fail", "-k", "divergence or perplexity")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(
        ["worse: KL mean is * more windows (* more scored tokens, --gguf-chunks=*) would probably decide*"]
    )
    result.stdout.fnmatch_lines(["worse: inconclusive; KL mean *, limit * nats; *"])
    result.stdout.no_fnmatch_line("*could not be measured*")


def test_limits_relative_to_the_reference(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    text = """
        [ppl]
        limit_relative = 0.2

        [file_bytes]
        limit_relative = -0.3
        """
    result = run_suite(
        f"--models={llama_file},{worse_file}",
        f"--reference={llama_file}",
        "--gguf-quants=Q8_0",
        "--gguf-chunks=32",
        _gates(pytester, text),
        "-k",
        "test_perplexity or test_file",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["worse: size is * times the reference's * the limit is at most 0.7 times*"])
    gates = {(gate["model"], gate["metric"]): gate for gate in read_run()["gates"]}
    assert gates["worse", "file_bytes"]["verdict"] == "fail"
    assert gates["random-Q8_0", "file_bytes"]["verdict"] == "pass"
    assert not any(model == "random-F32" for model, _ in gates)
    rows = {(row["model"], row["metric"]): row for row in read_run()["estimates"]}
    verdict = gates["random-Q8_0", "ppl"]
    assert verdict["limit"] == pytest.approx(1.2 * rows["random-F32", "ppl"]["value"])
    assert "paired times the reference's" in verdict["detail"]
    # The two perplexities are far less certain than their ratio.
    ratio = rows["random-Q8_0", "ppl_ratio"]
    assert verdict["value"] / rows["random-F32", "ppl"]["value"] == pytest.approx(ratio["value"])
    assert verdict["verdict"] == "pass"


def test_the_gates_of_a_run_can_be_decided_together(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    """A failure that stands alone, but not among all gates, is noted; --gguf-holm makes it inconclusive."""
    arguments = [f"--models={llama_file},{worse_file}", f"--reference={llama_file}", "--gguf-chunks=24"]
    run_suite(*arguments, _gates(pytester, ""), tests="test_divergence.py")
    rows = {row["metric"]: row for row in read_run()["estimates"]}
    weak = rows["kld_mean"]["low"]  # p = 0.025: an end of a 95 % interval
    strong = rows["kld_p90"]["value"] / 1e6
    arguments.append(_gates(pytester, f"[kld_mean]\nlimit = {weak}\n[kld_reverse_mean]\nlimit = {strong}\n"))

    result = run_suite(*arguments, tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["note: worse: 'fail' holds by itself, but not after Holm's correction over the*"])
    gates = {gate["metric"]: gate for gate in read_run()["gates"]}
    assert gates["kld_mean"]["verdict"] == "fail"
    assert gates["kld_mean"]["verdict_adjusted"] == "inconclusive"
    assert gates["kld_mean"]["p_value"] < 0.05 < gates["kld_mean"]["p_adjusted"]
    assert gates["kld_reverse_mean"]["verdict_adjusted"] == "fail"

    result = run_suite(*arguments, "--gguf-holm", tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*FAILURES*", "worse: reverse KL mean is*", "FAILED *reference?worse?*", "*1 failed*"])
    run = read_run()
    gates = {gate["metric"]: gate for gate in run["gates"]}
    assert (gates["kld_mean"]["verdict"], gates["kld_reverse_mean"]["verdict"]) == ("inconclusive", "fail")
    (failed,) = [test for test in run["tests"] if test["outcome"] == "failed"]
    assert "reverse KL mean" in failed["message"]
    assert "KL mean is inconclusive" not in failed["message"]

    result = run_suite(*arguments, "--gguf-holm", "-n", "2", tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    shared = read_run()
    assert [test["id"] for test in shared["tests"] if test["outcome"] == "failed"] == [failed["id"]]
    # The command of the process that reports, not of those that share its work.
    assert (shared["command"][0], shared["command"][-2:]) == ("pytest", ["-n", "2"])

    only_weak = _gates(pytester, f"[kld_mean]\nlimit = {weak}\n")
    assert run_suite(*arguments[:-1], only_weak, "--gguf-holm", tests="test_divergence.py").ret == 0


def test_a_single_model_is_held_against_absolute_limits(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    gates = _gates(pytester, "[bits_per_weight]\nlimit = 16\n[file_bytes]\nlimit_relative = 0\n")
    result = run_suite(f"--models={llama_file}", gates, "-k", "test_file")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["random-F32: bits/weight is 32 bits; the limit is at most 16 bits.*"])
    assert [gate["metric"] for gate in read_run()["gates"]] == ["bits_per_weight"]


def test_a_test_that_asks_for_a_gate_that_is_not_there_is_told(pytester: pytest.Pytester, llama_file: Path) -> None:
    pytester.makepyfile(
        test_mine="""
        from gguf_harness.metrics.perplexity import perplexity

        def test_mine(model, corpus_pass, gate):
            gate(perplexity(corpus_pass(model)["nll"]))
        """
    )
    result = pytester.runpytest_subprocess(
        f"--models={llama_file}", "--gguf-ctx=32", "--gguf-chunks=2", "-p", "no:cacheprovider", "-W", "error"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["There is no gate for 'ppl'.", "*add one with --gguf-gates*"])
    result.stdout.no_fnmatch_line("*Traceback*")


PLACED = """
import pytest
from gguf_harness.metrics.records import Estimate, Place

@pytest.mark.metric("resid_cka")
def test_layers(candidate, prompt, record, gate):
    estimates = {n: Estimate("resid_cka", 0.5, 10, 0.001, clusters=10, place=Place(n)) for n in (2, 7)}
    record(estimates)
    verdicts = gate(estimates)
    assert not verdicts
"""


def test_a_failing_gate_says_where(
    read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    pytester.makepyfile(test_placed=PLACED)
    prompts = pytester.path / "prompts.toml"
    prompts.write_text('[[prompt]]\nid = "fox"\ntext = "The quick brown fox"\n', encoding="utf-8")
    models = [f"--models={llama_file},{worse_file}", f"--reference={llama_file}", f"--gguf-prompts={prompts}"]
    arguments = ["--junitxml=junit.xml", "-o", "junit_family=xunit1", "-p", "no:cacheprovider"]
    result = pytester.runpytest_subprocess(*models, _gates(pytester, "[resid_cka]\nlimit = 0.9\n"), *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["worse: * (layer 2, fox) is 0.5* limit is at least 0.9.*"])
    result.stdout.fnmatch_lines(["worse: * (layer 7, fox) is 0.5* limit is at least 0.9.*"])
    run = read_run()
    places = [Place(2, prompt="fox"), Place(7, prompt="fox")]
    assert [Place.of(row) for row in run["estimates"]] == places
    assert [Place.of(gate) for gate in run["gates"]] == places
    junit = (pytester.path / "junit.xml").read_text(encoding="utf-8")
    assert '"gguf.gate.resid_cka[prompt=fox layer=7]" value="fail"' in junit


OWN = """
import pytest
from gguf_harness.metrics.records import Estimate

GATED, UNGATED = (Estimate(metric, 0.01, 10, 0.001, clusters=10) for metric in ("kld_mean", "kld_reverse_mean"))

def test_one_of_them(model, gate):
    (verdict,) = gate(UNGATED, [GATED])
    assert verdict.metric == "kld_mean"

@pytest.mark.metric("kld_reverse_mean")
def test_the_other_is_marked(candidate, gate):
    gate(UNGATED, GATED)

def test_nothing(candidate, gate):
    gate([])

def test_used_up(candidate, gate):
    gate(estimate for estimate in [GATED])
"""


def test_a_persons_own_test_does_not_pass_for_want_of_a_gate(
    read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    pytester.makepyfile(test_own=OWN)
    models = [f"--models={llama_file},{worse_file}", f"--reference={llama_file}"]
    result = pytester.runpytest_subprocess(*models, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(["There is no gate for 'kld_reverse_mean'.*"])
    result.stdout.fnmatch_lines(["The fixture `gate` was given no estimates.*"])
    result.stdout.fnmatch_lines(["*Expected estimates, or lists or dictionaries of them, not <generator*"])
    # No suite of ours spares the reference here.
    assert len(read_run()["gates"]) == 2
