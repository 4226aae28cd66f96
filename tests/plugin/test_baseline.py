"""Baselines in whole sessions: saved, compared clean, and failing against a model that became worse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model


def _models(folder: Path, llama_file: Path, noise: float) -> list[str]:
    """A reference, and a candidate that is always called `mine`."""
    candidate = write_random_llama(folder / "mine.gguf", noise=noise)
    gates = folder / "gates.toml"
    gates.write_text(
        "".join(f"[{m}]\nlimit = {x}\n" for m, x in (("kld_mean", 100), ("same_top", 0), ("delta_p_rms", 1)))
    )
    return [
        f"--models={llama_file},{candidate}",
        f"--reference={llama_file}",
        f"--gguf-gates={gates}",
        "--gguf-chunks=8",
    ]


def test_a_candidate_that_became_worse_fails(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    models = _models(pytester.path, llama_file, 0.02)
    result = run_suite(*models, "--gguf-save-baseline=main", "-k", "divergence")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["saved: *results/baselines/main.json"])
    saved = json.loads((pytester.path / "results/baselines/main.json").read_text())
    assert set(saved["models"]) == {"random-F32", "mine"}
    windows = saved["models"]["mine"]["windows"]
    assert len(set(windows)) == 8
    assert max(windows) > 1000, "windows are drawn from the whole text"

    result = run_suite(*models, "--gguf-baseline=main", "-k", "divergence or baseline")
    assert result.ret == 0
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["baseline main: 4 comparisons, 0 worse, 0 better"])
    assert {c["outcome"] for c in read_run()["baseline"]["comparisons"]} == {"same"}

    worse = _models(pytester.path, llama_file, 0.5)
    result = run_suite(*worse, "--gguf-baseline=main", "-k", "divergence or baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    output = str(result.stdout)
    assert "mine: KL mean is" in output
    assert "in the baseline 'main' it was" in output
    assert "paired over 8 windows" in output
    assert "Traceback" not in output
    result.stdout.fnmatch_lines(["baseline main: 4 comparisons, * worse, 0 better; changed since: mine: file*"])
    result.stdout.fnmatch_lines(["mine: fail; *"])
    outcomes = {c["metric"]: c["outcome"] for c in read_run()["baseline"]["comparisons"]}
    assert outcomes["kld_mean"] == "worse"

    # The other way round it is an improvement, which is shown.
    run_suite(*worse, "--gguf-save-baseline=noisy", "-k", "divergence")
    better = _models(pytester.path, llama_file, 0.02)
    result = run_suite(*better, "--gguf-baseline=noisy", "-k", "divergence or baseline")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["mine: KL mean is *in the baseline 'noisy' it was*"])


def test_many_processes_save_and_compare(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    models = [*_models(pytester.path, llama_file, 0.02), "--gguf-quants=Q8_0", "-n", "2"]
    run_suite(*models, "--gguf-save-baseline=main", "-k", "divergence")
    saved = json.loads((pytester.path / "results/baselines/main.json").read_text())
    assert all("means" in saved["models"][name] for name in ("mine", "random-Q8_0"))
    worse = [*_models(pytester.path, llama_file, 0.5), "--gguf-quants=Q8_0", "-n", "2"]
    result = run_suite(*worse, "--gguf-baseline=main", "--gguf-holm", "-k", "baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in f"{result.stdout}{result.stderr}"
    comparisons = read_run()["baseline"]["comparisons"]
    assert len(comparisons) == 8
    assert {c["model"] for c in comparisons if c["outcome"] == "worse"} == {"mine"}
    failed = {test["model"] for test in read_run()["tests"] if test["outcome"] == "failed"}
    assert failed == {"mine"}


def test_another_text_is_named_and_not_paired(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    models = _models(pytester.path, llama_file, 0.02)
    run_suite(*models, "--gguf-save-baseline=main", "-k", "divergence")
    pytester.path.joinpath("other.txt").write_text("Some other words, of another text. " * 30)
    result = run_suite(*models, "--gguf-corpus=other.txt", "--gguf-baseline=main", "-k", "baseline")
    comparisons = read_run()["baseline"]["comparisons"]
    assert {c["windows"] for c in comparisons} == {0}
    assert all("not paired" in c["detail"] for c in comparisons)
    assert any(change.startswith("corpus (") for change in comparisons[0]["changes"])
    assert "changed since: mine: corpus (" in " ".join(str(result.stdout).split())


def test_without_the_option_nothing_is_compared(run_suite: RunSuite, llama_file: Path) -> None:
    result = run_suite(f"--models={llama_file}", "--gguf-quants=Q8_0", "--collect-only", "-q")
    assert "test_baseline" not in str(result.stdout)


def test_a_model_that_the_baseline_does_not_know_is_skipped(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path
) -> None:
    run_suite(f"--models={llama_file}", "--gguf-save-baseline=main", tests="test_file.py")
    result = run_suite(
        *_models(pytester.path, llama_file, 0.02), "--gguf-baseline=main", "-rs", tests="test_baseline.py"
    )
    result.assert_outcomes(skipped=4)
    result.stdout.fnmatch_lines(["*the baseline 'main' has no * of mine; its models: random-F32*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gguf-baseline=missing"], "--gguf-baseline=missing: neither a file nor a baseline in"),
        (["--gguf-baseline=bad.json"], "bad.json' cannot be read"),
        (["--gguf-save-baseline=../x"], "is no name for a baseline"),
    ],
)
def test_mistakes_end_the_session(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, arguments: list[str], message: str
) -> None:
    pytester.path.joinpath("bad.json").write_text("{")
    result = run_suite(f"--models={llama_file}", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in f"{result.stdout}{result.stderr}"
    assert "Traceback" not in f"{result.stdout}{result.stderr}"
