"""--gguf-until-decided: passes stop when their gates are decided, and everything downstream reads fewer windows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

CHUNKS = 30


@pytest.fixture(scope="module")
def worse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("worse") / "worse.gguf", noise=1.0)


def _gates(pytester: pytest.Pytester, *, same_top: float, more: str = "") -> str:
    """Limits that almost everything keeps, except for the share of equal top tokens."""
    file = pytester.path / "gates.toml"
    limits = {"kld_mean": 100.0, "ppl_ratio": 1e9, "delta_p_rms": 1.0, "same_top": same_top}
    file.write_text("".join(f"[{metric}]\nlimit = {limit}\n" for metric, limit in limits.items()) + more)
    return f"--gguf-gates={file}"


def test_a_pass_stops_when_its_gates_are_decided(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", f"--gguf-chunks={CHUNKS}", "--gguf-until-decided"]
    arguments += [
        _gates(pytester, same_top=0.1, more="[ppl]\nlimit_relative = 1e6\n"),
        "-k",
        "divergence or perplexity",
    ]
    result = run_suite(*arguments)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["random-Q8_0: its gates were decided after * of 30 windows;*"])
    run = read_run()
    early, of_reference = run["early"]
    assert (early["model"], of_reference["model"]) == ("random-Q8_0", "random-F32")
    assert 6 <= early["windows"] <= of_reference["windows"] <= 20
    for part in (early, of_reference):
        assert part["tokens"] == 32 * part["windows"]
        assert part["saved_tokens"] == 32 * (CHUNKS - part["windows"])
    result.stdout.fnmatch_lines([f"random-F32: no candidate needed more than {of_reference['windows']} of 30 windows*"])
    rows = {(row["model"], row["metric"]): row for row in run["estimates"]}
    for metric in ("kld_mean", "same_top", "delta_p_rms", "ppl", "ppl_ratio"):
        assert rows["random-Q8_0", metric]["clusters"] == early["windows"], metric
    assert rows["random-F32", "ppl"]["clusters"] == of_reference["windows"]
    assert run["corpus"]["windows"] == CHUNKS
    gates = {gate["metric"]: gate for gate in run["gates"]}
    assert set(gates) == {"kld_mean", "same_top", "delta_p_rms", "ppl_ratio", "ppl"}
    assert {gate["verdict"] for gate in gates.values()} == {"pass"}
    assert all("by a test that may be stopped at any time" in gate["detail"] for gate in gates.values())
    assert all(gate["p_value"] <= 0.05 for gate in gates.values())

    run_suite(*arguments)
    assert read_run()["cache"]["misses"] == 0
    assert read_run()["gates"] == run["gates"]
    # Without the option, or with other limits, it is another measurement.
    run_suite(*[argument for argument in arguments if argument != "--gguf-until-decided"])
    whole = read_run()
    assert whole["early"] == []
    assert whole["cache"]["misses"] > 0
    rows = {(row["model"], row["metric"]): row for row in whole["estimates"]}
    for model in ("random-Q8_0", "random-F32"):
        assert rows[model, "ppl"]["clusters"] == CHUNKS, model


def test_a_bad_candidate_fails_early_and_says_so(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    result = run_suite(
        f"--models={llama_file},{worse_file}",
        f"--reference={llama_file}",
        f"--gguf-chunks={CHUNKS}",
        "--gguf-until-decided",
        _gates(pytester, same_top=0.99),
        tests="test_divergence.py",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["worse: same top is *; the limit is at least 99 %. Decided after * windows*"])
    early = {part["model"]: part["windows"] for part in read_run()["early"]}
    assert early["worse"] <= early["random-F32"] < CHUNKS


def test_what_stays_open_is_decided_by_the_bound_of_all_windows(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    """Four windows are too few to stop early; the bound may still decide, with half of the error."""
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-until-decided"]
    result = run_suite(*arguments, _gates(pytester, same_top=0.1), tests="test_divergence.py")
    assert result.ret == 0
    run = read_run()
    assert run["early"][0]["saved_tokens"] == 0
    result.stdout.no_fnmatch_line("*were decided after*")
    gates = {gate["metric"]: gate for gate in run["gates"]}
    assert gates["kld_mean"]["verdict"] == "pass"
    assert "stopped at any time" not in gates["kld_mean"]["detail"]
    assert gates["kld_mean"]["confidence"] == 0.95


def test_a_gate_that_needs_all_windows_keeps_them(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    gates = _gates(pytester, same_top=0.1, more="[kld_max]\nlimit = 1000\n")
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-until-decided"]
    run_suite(*arguments, gates, tests="test_divergence.py")
    run = read_run()
    assert run["early"] == []
    assert any("--gguf-until-decided has no effect" in warning for warning in run["warnings"])
    assert "kld_max" in {gate["metric"] for gate in run["gates"]}


def test_the_reference_decodes_what_some_candidate_needs_and_a_whole_run_goes_on_there(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester
) -> None:
    """Several quantizations of tiny: verdicts of the whole passes, with fewer windows of the reference."""
    arguments = ["--models=tiny", "--gguf-quants=Q8_0,Q6_K,Q2_K", "--gguf-ctx=128", "--gguf-batch=512"]
    arguments += ["--gguf-chunks=40", "-k", "divergence or perplexity"]
    early = ["--gguf-until-decided", *arguments]

    def verdicts() -> dict[tuple[str, str], str]:
        return {(gate["model"], gate["metric"]): gate["verdict"] for gate in read_run()["gates"]}

    def decoded() -> dict[str, int]:
        return {part["model"]: part["windows"] for part in read_run()["early"]}

    run_suite(*early)
    first, windows, said = verdicts(), decoded(), read_run()
    reference = said["reference"]
    # A file that fails is not read to the end for what its other gates would say.
    assert set(first.values()) == {"pass", "fail", "inconclusive"}
    assert {model for (model, _), verdict in first.items() if verdict != "pass"} == {"tiny-Q2_K"}
    stopped = next(gate["detail"] for gate in said["gates"] if gate["verdict"] == "inconclusive")
    assert re.search(r"was not checked against its limit, at .*: the pass stopped after \d+ windows, when", stopped)
    needed = max(count for model, count in windows.items() if model != reference)
    assert needed <= windows[reference] < 40
    # Windows that share a batch are decoded together: no more than one batch beyond what was needed.
    assert windows[reference] < needed + 4
    tests = [test["model"] for test in said["tests"] if test["model"]]
    assert [tests[0], tests[-1]] == ["tiny-Q2_K", reference]

    run_suite(*early)
    assert read_run()["cache"]["misses"] == 0
    assert (verdicts(), decoded()) == (first, windows)
    assert read_run()["estimates"] == said["estimates"]

    # All the rest is decoded; what is there is not.
    run_suite(*arguments)
    whole = read_run()
    assert {key: verdict for key, verdict in verdicts().items() if first[key] != "inconclusive"} == {
        key: verdict for key, verdict in first.items() if verdict != "inconclusive"
    }
    run_suite(*arguments, "--gguf-cache=fresh")
    assert read_run()["estimates"] == whole["estimates"]
    (codes,) = pytester.path.glob("fresh/passes/*/logprobs.u16")
    assert [file.read_bytes() == codes.read_bytes() for file in pytester.path.glob("results/cache/passes/*/*.u16")] == [
        True
    ]
