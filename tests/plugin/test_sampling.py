"""Which windows of a text are measured, how many it has, and what advice asks for; contexts beyond the training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gguf_harness.inputs.corpora import load_corpus
from tests.plugin.conftest import ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = [pytest.mark.model, pytest.mark.shared_cache]

LOOSE = {"kld_mean": 100.0, "ppl_ratio": 1e9, "delta_p_rms": 1.0, "same_top": 1e-4}


@pytest.fixture(scope="module")
def worse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("worse") / "worse.gguf", noise=0.3)


def _gates(folder: Path, **limits: float) -> str:
    tables = [f"[{metric}]\nlimit = {limit}\n" for metric, limit in (LOOSE | limits).items()]
    (folder / "gates.toml").write_text("".join(tables))
    return f"--gguf-gates={folder / 'gates.toml'}"


def test_windows_are_drawn_from_the_whole_text_or_the_first(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path
) -> None:
    result = run_suite(f"--models={llama_file}", tests="test_perplexity.py")
    result.stdout.fnmatch_lines(["corpus: pydoc, 4 of * windows of 32 tokens, drawn from the whole text*"])
    drawn = read_run()
    assert (drawn["corpus"]["order"], drawn["corpus"]["windows"]) == ("sampled", 4)
    assert drawn["corpus"]["available"] > 1000
    result = run_suite(f"--models={llama_file}", "--gguf-windows=first", tests="test_perplexity.py")
    result.stdout.fnmatch_lines(["corpus: pydoc, the first 4 of * windows of 32 tokens*"])
    rows = [next(row for row in run["estimates"] if row["metric"] == "ppl") for run in (drawn, read_run())]
    assert rows[0]["value"] != rows[1]["value"]
    assert all(row["low"] < row["value"] < row["high"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--gguf-chunks=35"],
            "has 34 windows of 32 tokens, --gguf-chunks asks for 35.\n  Use --gguf-chunks=34 or less",
        ),
        (["--gguf-chunks=all", "--gguf-ctx=1024"], "expected at least 2048 (two windows of 1024)"),
        (["--gguf-windows=last"], "invalid choice: 'last'"),
        (["--gguf-until-decided", "--gguf-windows=first"], "the first windows are not a sample of the text"),
    ],
)
def test_what_the_text_does_not_have_ends_the_session_at_once(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, arguments: list[str], message: str
) -> None:
    (pytester.path / "text.txt").write_text("0123456789abcdef" * 68 + "some more")
    result = run_suite(f"--models={llama_file}", f"--gguf-corpus={pytester.path}/text.txt", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in f"{result.stdout}{result.stderr}".replace("\r", "")
    assert "Traceback" not in f"{result.stdout}{result.stderr}"
    assert not list(pytester.path.glob("results/runs/*"))


def test_all_windows_may_be_asked_for_by_number(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    (pytester.path / "text.txt").write_text("0123456789abcdef" * 68)
    corpus = f"--gguf-corpus={pytester.path}/text.txt"
    result = run_suite(f"--models={llama_file}", corpus, "--gguf-chunks=34", tests="test_perplexity.py")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*all 34 windows of 32 tokens*"])
    assert read_run()["corpus"]["windows"] == 34


def test_following_the_advice_decides(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    """Where the text has too few windows, a longer one is named, and with it all is decided."""
    whole = load_corpus("pydoc").text
    (pytester.path / "short.txt").write_bytes(whole[: 32 * 9])
    models = [f"--models={llama_file},{worse_file}", f"--reference={llama_file}", "--gguf-chunks=8"]
    models.append(f"--gguf-corpus={pytester.path}/short.txt")
    run_suite(*models, _gates(pytester.path), tests="test_divergence.py")
    row = next(row for row in read_run()["estimates"] if row["metric"] == "kld_mean")
    gates = _gates(pytester.path, kld_mean=row["value"] + row["se"])
    run_suite(*models, gates, tests="test_divergence.py")
    (verdict,) = [gate for gate in read_run()["gates"] if gate["metric"] == "kld_mean"]
    assert verdict["verdict"] == "inconclusive"
    available = read_run()["corpus"]["available"]
    assert f"of which this text has {available}: a longer text, of about" in verdict["detail"]
    size, options = re.findall(r"of about ([\d.]+) MB \(--gguf-corpus=FILE (.*?)\)", verdict["detail"])[0]
    (pytester.path / "long.txt").write_bytes(whole[: int(float(size) * 1e6)])
    longer = [*models[:2], f"--gguf-corpus={pytester.path}/long.txt", gates, *options.split()]
    result = run_suite(*longer, tests="test_divergence.py")
    assert result.ret in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
    (verdict,) = [gate for gate in read_run()["gates"] if gate["metric"] == "kld_mean"]
    assert verdict["verdict"] in {"pass", "fail"}


def test_beyond_the_trained_context_only_if_asked_for_and_said(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-ctx=1024", "--gguf-batch=1024"]
    arguments += ["--gguf-chunks=2", _gates(pytester.path)]
    result = run_suite(*arguments, tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    output = str(result.stdout)
    assert "trained on texts of 512 tokens, but windows have 1024" in output
    assert "--gguf-ctx=512 or less, or measure it all the same with --gguf-beyond-context" in output
    assert not [row for row in read_run()["estimates"] if row["metric"] == "kld_mean"]

    result = run_suite(*arguments, "--gguf-beyond-context", tests="test_divergence.py")
    assert result.ret == 0
    run, said = read_run(), "measured in windows of 1024 tokens, and trained on 512: numbers beyond that mean little"
    assert f"random-Q8_0: {said}." in run["warnings"]
    assert run["gates"]
    assert all(said in gate["detail"] for gate in run["gates"])
