"""The quant suite end to end, on a small real model: outcomes, rows, verdicts, cache, report."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.report.compare import compare_runs
from gguf_harness.store.arrays import Arrays, load_arrays
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
    assert sorted(entry["name"] for entry in run["arrays"]) == [
        *["kld_quantiles"] * 2,
        *["next_tokens"] * 2,
        *["token_strip"] * 2,
    ]
    _check_strips(_strips(pytester, run), rows)
    (report,) = pytester.path.glob("results/runs/*/report.html")
    assert "random-Q4_K_M" in report.read_text(encoding="utf-8")
    ours = [p for p in psutil.process_iter(["cmdline"]) if "gguf_harness.engine." in " ".join(p.info["cmdline"] or [])]
    assert [p for p in ours if p.ppid() in {1, os.getpid()}] == []


def _strips(pytester: pytest.Pytester, run: dict[str, Any]) -> dict[str, Arrays]:
    """The token strips of a run by model."""
    entries = [entry for entry in run["arrays"] if entry["name"] == "token_strip"]
    folder = pytester.path / "results" / "runs" / run["id"]
    return {entry["model"]: load_arrays(folder / entry["file"]) for entry in entries}


def _check_strips(strips: dict[str, Arrays], rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """They are the same piece of the text, with numbers of the passes."""
    text = load_corpus("pydoc").text
    one, other = strips["random-Q8_0"], strips["random-Q4_K_M"]
    for name in ("token", "piece", "nll_reference", "window", "position", "top_reference"):
        np.testing.assert_array_equal(one[name], other[name])
    assert len(one["token"]) == 15  # the scored ones of 32
    assert b"".join(one["piece"].tolist()) in text
    assert one["position"].item() == 17
    for model, strip in strips.items():
        nll, nll_reference, kld, change = (
            strip[name].astype(np.float64) for name in ("nll", "nll_reference", "kld", "delta_p")
        )
        np.testing.assert_allclose(change, np.exp(-nll) - np.exp(-nll_reference), atol=1e-6)
        assert rows[model, "delta_p_min"]["value"] - 1e-6 <= change.min()
        assert 0 < kld.max() <= rows[model, "kld_max"]["value"] * (1 + 1e-6)
    assert one["kld"].astype(np.float64).mean() < other["kld"].astype(np.float64).mean()


def test_a_second_run_decodes_nothing(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, pytester: pytest.Pytester
) -> None:
    """What was not disturbed, that is: timings on a busy machine are taken again."""
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "-k", "not speed and not served"]
    run_suite(*arguments)
    first = read_run()
    assert first["cache"]["misses"] > 0
    passes = set(pytester.path.glob("results/cache/passes/*"))
    assert passes
    result = run_suite(*arguments)
    result.stdout.fnmatch_lines(["cache: all * measurements came from the cache, nothing was decoded*"])
    second = read_run()
    assert second["id"] != first["id"]
    assert second["cache"] == {"hits": first["cache"]["misses"], "misses": 0}
    assert second["estimates"] == first["estimates"]
    # The words of the token strip came from the cache too.
    assert set(pytester.path.glob("results/cache/passes/*")) == passes
    (one,), (other,) = (_strips(pytester, run).values() for run in (first, second))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
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
def test_a_failing_gate_keeps_its_rows_and_is_told_once(
    run_suite: RunSuite, read_run: ReadRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")  # where pytest's lines at the end are not cut
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("COLUMNS", "60")
    good = write_random_llama(tmp_path / "good-F32.gguf")
    bad = write_random_llama(tmp_path / "bad.gguf", noise=1.0)
    result = run_suite(f"--models={good},{bad}", f"--reference={good}", tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "bad: KL mean is * +/- * nats; the limit is at most 0.1 nats. Even its 95 % bound*",
            "bad *fail*",
            "bad: fail; KL mean *, limit 0.1 nats; same *",
            "FAILED *::test_distribution_stays_close_to_reference* - GateFailed: KL mean *, limit 0.1 nats",
        ]
    )
    # Once in full: where pytest tells of failures.
    shown = " ".join(" ".join(result.outlines).split())
    assert shown.isascii()
    assert re.search(r"bad: fail; KL mean \S+, limit 0.1 nats; same top \S+ %, limit 80 %; ", shown)
    for sentence in ("the limit is at most 0.1 nats.", "the limit is at least 80 %."):
        assert shown.count(sentence) == 1, sentence
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


NEVER = ("--gguf-quants=Q8_0", "--gguf-side-by-side=never")


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--gguf-corpus={folder}/short.txt"], "expected at least 64 (two windows of 32)", 4),
        (["--gguf-corpus={folder}/missing.txt"], "neither a known name nor a file", 4),
        (["--gguf-corpus={folder}/empty.txt"], "is empty", 4),
        (["--gguf-corpus={folder}/some.txt", "--gguf-chunks=9999"], "--gguf-chunks asks for 9999", 4),
        ([*NEVER, "--gguf-logprobs-limit=1K"], "--gguf-logprobs-limit is 0.001 MB", 1),
        (
            [*NEVER, "--gguf-corpus={folder}/some.txt", "--gguf-cache-limit=100K", "--gguf-chunks=all"],
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
