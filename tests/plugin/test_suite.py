"""The quant suite end to end, on a small real model: outcomes, rows, verdicts, cache, report."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from gguf_harness.report.compare import compare_runs
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model


def test_a_ladder_from_one_model(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    """All of the suite. No process is left behind."""
    arguments = ["--gguf-quants=Q8_0,Q4_K_M", "--gguf-repetitions=1", "--gguf-gates", _no_limits(pytester)]
    result = run_suite(f"--models={llama_file}", *arguments)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["reference: random-F32 (F32) is the reference*", "candidates: random-Q8_0, random-Q4_K_M"]
    )
    result.stdout.fnmatch_lines(["model *size*KL mean*verdict*", "random-F32*reference*", "report: results/runs/*"])
    run = read_run()
    assert run["finished"]
    # On a busy machine there are no ratios of speed.
    assert {test["outcome"] for test in run["tests"] if "beside_the_reference" not in test["id"]} == {"passed"}
    assert [model["name"] for model in run["models"] if model["reference"]] == ["random-F32"]
    rows = {(row["model"], row["metric"]): row for row in run["estimates"]}
    assert rows["random-Q8_0", "kld_mean"]["value"] < rows["random-Q4_K_M", "kld_mean"]["value"]
    assert rows["random-Q8_0", "kld_mean"]["n"] == 4 * 15
    assert rows["random-Q8_0", "kld_mean"]["clusters"] == 4
    assert rows["random-Q8_0", "file_bytes"]["value"] < rows["random-F32", "file_bytes"]["value"]
    for model in ("random-F32", "random-Q8_0", "random-Q4_K_M"):
        for metric in ("ppl", "pp_tokens_per_s", "tg_tokens_per_s", "load_s", "peak_memory_bytes", "weights_bytes"):
            assert rows[model, metric]["value"] > 0, (model, metric)
    assert abs(rows["random-F32", "floor_kld_mean"]["value"]) < 1e-5
    assert {gate["verdict"] for gate in run["gates"]} == {"pass"}
    assert sorted(entry["name"] for entry in run["arrays"]) == ["kld_quantiles"] * 2 + ["next_tokens"] * 2
    (report,) = pytester.path.glob("results/runs/*/report.html")
    assert "random-Q4_K_M" in report.read_text(encoding="utf-8")
    ours = [p for p in psutil.process_iter(["cmdline"]) if "gguf_harness.engine." in " ".join(p.info["cmdline"] or [])]
    assert [p for p in ours if p.ppid() in {1, os.getpid()}] == []


def test_a_second_run_decodes_nothing(run_suite: RunSuite, read_run: ReadRun, llama_file: Path) -> None:
    """What was not disturbed, that is: timings on a busy machine are taken again."""
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "-k", "not speed and not served"]
    run_suite(*arguments)
    first = read_run()
    assert first["cache"]["misses"] > 0
    result = run_suite(*arguments)
    result.stdout.fnmatch_lines(["cache: all * measurements came from the cache, nothing was decoded*"])
    second = read_run()
    assert second["id"] != first["id"]
    assert second["cache"] == {"hits": first["cache"]["misses"], "misses": 0}
    assert second["estimates"] == first["estimates"]
    assert all(difference.direction == "" for difference in compare_runs(first, second).differences)
    run_suite(*arguments, "--gguf-fresh")
    assert read_run()["cache"]["hits"] == 0


def test_a_cache_that_cannot_stay_within_its_limit_says_so(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0"]
    run_suite(*arguments, "--gguf-cache-limit=100K", tests="test_file.py").assert_outcomes(passed=2)
    (warning,) = read_run()["warnings"]
    assert "more than --gguf-cache-limit allows: its remaining entries are in use" in warning
    (model,) = pytester.path.glob("results/cache/models/*/Q8_0.gguf")
    result = pytester.run(sys.executable, "-m", "gguf_harness.cli", "cache", "clear", "models", "logs", "hashes")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["models: 1 removed, *"])
    assert not model.exists()


@pytest.mark.shared_cache
def test_identical_files_do_not_differ(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    twin = shutil.copy(llama_file, tmp_path / "twin.gguf")
    run_suite(f"--models={llama_file},{twin}", f"--reference={llama_file}", tests="test_divergence.py")
    run = read_run()
    rows = {row["metric"]: row["value"] for row in run["estimates"] if row["model"] == "twin"}
    assert abs(rows["kld_mean"]) < 1e-6
    assert abs(rows["kld_max"]) < 1e-6
    assert rows["same_top"] == 1
    assert rows["delta_p_rms"] < 1e-6
    assert "twin and random-F32 have identical content." in run["warnings"]


@pytest.mark.shared_cache
def test_a_failing_gate_keeps_its_rows(run_suite: RunSuite, read_run: ReadRun, tmp_path: Path) -> None:
    good = write_random_llama(tmp_path / "good-F32.gguf")
    bad = write_random_llama(tmp_path / "bad.gguf", noise=1.0)
    result = run_suite(f"--models={good},{bad}", f"--reference={good}", tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "bad: KL mean is * nats; the limit is at most 0.1 nats. Even its 95% bound*",
            "bad*fail*",
            "FAILED *::test_distribution_stays_close_to_reference* - GateFailed: *",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    run = read_run()
    assert {row["metric"] for row in run["estimates"] if row["model"] == "bad"} >= {"kld_mean", "same_top"}
    failed = [test for test in run["tests"] if test["outcome"] == "failed"]
    assert failed
    assert all("limit" in test["message"] for test in failed)


@pytest.mark.shared_cache
def test_broken_files_cost_their_own_tests(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    content = llama_file.read_bytes()
    (tmp_path / "truncated.gguf").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.gguf").write_text("this is no model")
    (tmp_path / "zero.gguf").write_bytes(b"")
    files = [llama_file, *sorted(tmp_path.glob("*.gguf"))]
    result = run_suite(f"--models={','.join(map(str, files))}", tests="test_file.py")
    result.assert_outcomes(passed=1, errors=3)
    for words in ("*it is truncated: the data of tensor*", "*expected b'GGUF'*", "*zero.gguf is empty*"):
        result.stdout.fnmatch_lines([words])
    result.stdout.no_fnmatch_line("*Traceback*")
    outcomes = {test["model"]: test["outcome"] for test in read_run()["tests"]}
    assert outcomes == {"random-F32": "passed", "truncated": "error", "text": "error", "zero": "error"}


@pytest.mark.shared_cache
def test_another_vocabulary_names_both(run_suite: RunSuite, llama_file: Path, tmp_path: Path) -> None:
    other = write_random_llama(tmp_path / "other.gguf", extra_tokens=2)
    result = run_suite(f"--models={llama_file},{other}", f"--reference={llama_file}", tests="test_divergence.py")
    result.assert_outcomes(passed=1, errors=4)
    result.stdout.fnmatch_lines(["other and its reference random-F32 have different vocabularies: *260*258*"])


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--gguf-corpus={folder}/short.txt"], "expected at least 64 (two windows of 32)", 4),
        (["--gguf-corpus={folder}/missing.txt"], "neither a known name nor a file", 4),
        (["--gguf-corpus={folder}/empty.txt"], "is empty", 4),
        (["--gguf-corpus={folder}/some.txt", "--gguf-chunks=9999"], "--gguf-chunks asks for 9999", 4),
        (["--gguf-logprobs-limit=1K", "--gguf-quants=Q8_0"], "--gguf-logprobs-limit is 0.001 MB", 1),
        (
            ["--gguf-corpus={folder}/some.txt", "--gguf-cache-limit=100K", "--gguf-chunks=all", "--gguf-quants=Q8_0"],
            "--gguf-cache-limit is 0.1 MB",
            1,
        ),
    ],
)
def test_corpus_mistakes_are_one_message(
    run_suite: RunSuite, llama_file: Path, pytester: pytest.Pytester, arguments: list[str], message: str, status: int
) -> None:
    pytester.path.joinpath("short.txt").write_text("a few words")
    pytester.path.joinpath("some.txt").write_text("some words " * 100)
    pytester.path.joinpath("empty.txt").write_text("")
    given = [argument.format(folder=pytester.path) for argument in arguments]
    result = run_suite(f"--models={llama_file}", *given, tests="test_perplexity.py")
    assert result.ret == status
    assert message in f"{result.stdout}{result.stderr}"
    assert "Traceback" not in f"{result.stdout}{result.stderr}"


def test_an_unwritable_results_folder_is_one_message(
    run_suite: RunSuite, llama_file: Path, pytester: pytest.Pytester
) -> None:
    pytester.path.joinpath("file").write_text("in the way")
    result = run_suite(f"--models={llama_file}", "--gguf-results=file/results", tests="test_file.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gguf-results=*the folder is not writable*"])
    assert "INTERNALERROR" not in f"{result.stdout}{result.stderr}"


@pytest.mark.shared_cache
def test_it_works_without_other_plugins(run_suite: RunSuite, llama_file: Path) -> None:
    """A person may have neither xdist nor timeout installed."""
    result = run_suite(f"--models={llama_file}", "-p", "no:xdist", "-p", "no:timeout", tests="test_file.py")
    result.assert_outcomes(passed=1)


@pytest.mark.shared_cache
def test_without_candidates_their_tests_are_skipped_with_a_reason(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(f"--models={llama_file}", "-rs", tests="test_divergence.py")
    result.assert_outcomes(passed=1, skipped=4)
    result.stdout.fnmatch_lines(["*no candidates: give several --models, or --gguf-quants=default*"])


def test_a_persons_own_test_uses_our_fixtures(pytester: pytest.Pytester, llama_file: Path) -> None:
    pytester.makepyfile(
        test_mine="""
        from gguf_harness.metrics.perplexity import perplexity

        def test_mine(model, corpus_pass, record):
            estimate = perplexity(corpus_pass(model)["nll"])
            record(estimate)
            assert estimate.value > 1
        """
    )
    result = pytester.runpytest_subprocess(
        f"--models={llama_file}", "--gguf-ctx=32", "--gguf-chunks=2", "-p", "no:cacheprovider", "-W", "error"
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["random-F32*", "report: results/runs/*"])


def _no_limits(pytester: pytest.Pytester) -> str:
    file = pytester.path / "gates.toml"
    file.write_text(
        "[kld_mean]\nlimit = 100\n[same_top]\nlimit = 0\n[ppl_ratio]\nlimit = 1e9\n[delta_p_rms]\nlimit = 1\n"
    )
    return str(file)
