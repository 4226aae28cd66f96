"""Baselines in whole sessions: saved, compared clean, and failing against a model that became worse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin.conftest import INI, ReadRun, RunSuite
from tests.random_llama import write_random_llama

pytestmark = [pytest.mark.model, pytest.mark.shared_cache]


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


_MAIN: list[bytes] = []
"""The baseline of `_saved`."""


def _saved(run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path) -> list[str]:
    """The models, and a baseline `main` of them, which each process measures once."""
    models = _models(pytester.path, llama_file, 0.02)
    baseline = pytester.path / "results" / "baselines" / "main.json"
    if _MAIN:
        baseline.parent.mkdir(parents=True)
        baseline.write_bytes(_MAIN[0])
    else:
        run_suite(*models, "--gguf-save-baseline=main", "-k", "divergence")
        _MAIN.append(baseline.read_bytes())
    return models


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
    result.assert_outcomes(passed=9)
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
    models = _saved(run_suite, pytester, llama_file)
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


def test_a_model_without_a_partner_fails(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    """Both lists of names are said, and the option that tells which belong together."""
    run_suite(f"--models={llama_file}", "--gguf-save-baseline=main", tests="test_file.py")
    models = _models(pytester.path, llama_file, 0.02)
    result = run_suite(*models, "--gguf-baseline=main", tests="test_baseline.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=4)
    output = " ".join(str(result.stdout).split())
    assert (
        "mine: nothing was compared: the baseline 'main' has no partner for mine: no model has its name, "
        "and none is F32"
        " of its family (same architecture, parameters and vocabulary). Models of the baseline: random-F32. Candidates"
        " of this run: mine. Choose the pair: --gguf-baseline-map=OLD=mine" in output
    )
    assert "could not be measured" not in output
    assert "mine: fail; nothing was compared" in output
    assert "baseline main: 0 comparisons, 0 worse, 0 better, 4 could not be made" in output
    assert {one["outcome"] for one in read_run()["baseline"]["comparisons"]} == {"missing"}


def test_names_with_versions_are_compared_by_type_and_family(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester
) -> None:
    """A release's files have other names than those of the release before."""

    def release(version: str, noise: float) -> list[str]:
        folder = pytester.mkdir(version)
        reference = write_random_llama(folder / f"model-{version}-F32.gguf", text=True)
        write_random_llama(folder / f"model-{version}-Q8.gguf", noise=noise)
        loose = _models(pytester.path, reference, noise)[2:]
        return [f"--models={folder}", f"--reference={reference}", *loose]

    run_suite(*release("v1", 0.05), "--gguf-save-baseline=v1", "-k", "divergence")
    second = release("v2", 0.5)
    result = run_suite(*second, "--gguf-baseline=v1", "--junitxml=junit.xml", "-k", "divergence or baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    told = "model-v2-Q8 was compared with model-v1-Q8 of the baseline: same type F32, same family"
    folder = next(file.parent for file in pytester.path.glob("results/runs/*/run.json") if told in file.read_text())
    markdown = subprocess.run(
        [sys.executable, "-m", "gguf_harness.cli", "report", str(folder), "--markdown"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for text in (str(result.stdout), markdown.replace("\\", ""), (folder / "report.html").read_text()):
        assert told in " ".join(text.split())
    assert "in the baseline 'v1' (model-v1-Q8) it was" in " ".join(str(result.stdout).split())
    comparisons = read_run()["baseline"]["comparisons"]
    assert {(one["model"], one["partner"]) for one in comparisons} == {("model-v2-Q8", "model-v1-Q8")}
    assert all(one["windows"] == 8 for one in comparisons)
    assert "worse" in {one["outcome"] for one in comparisons}

    # The same models against themselves, with the names told.
    run_suite(*second, "--gguf-save-baseline=v2", "-k", "divergence")
    baseline = pytester.path / "results/baselines/v2.json"
    baseline.write_text(baseline.read_text().replace("model-v2-Q8", "old").replace('"F32"', '"Q8_0"'))
    command = [*second, "--gguf-baseline=v2", "-k", "divergence or baseline"]
    assert run_suite(*command).ret == pytest.ExitCode.TESTS_FAILED
    result = run_suite(*command, "--gguf-baseline-map=old=model-v2-Q8")
    assert result.ret == 0
    output = " ".join(str(result.stdout).split())
    assert "model-v2-Q8 was compared with old of the baseline: as requested" in output
    assert "type (Q8_0 -> F32)" in output


@pytest.mark.parametrize("chosen", [{"tests": "test_file.py"}, {"keyword": "divergence"}])
def test_a_comparison_that_nobody_makes_is_no_pass(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path, chosen: dict[str, str]
) -> None:
    models = _saved(run_suite, pytester, llama_file)
    keyword = ["-k", chosen["keyword"]] if "keyword" in chosen else []
    result = run_suite(*models, "--gguf-baseline=main", *keyword, tests=chosen.get("tests", ""))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes().get("failed", 0) == 0
    result.stdout.fnmatch_lines([
        "gguf-harness: mine: nothing was compared: no test of this run compared mine with mine of the baseline 'main'."
        " Run suites/quant/test_baseline.py too."
    ])  # fmt: skip
    assert "Smallest candidate that passes" not in str(result.stdout)
    assert read_run()["baseline"]["comparisons"][0]["outcome"] == "missing"


def test_a_session_without_a_test_of_ours_compares_nothing(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path
) -> None:
    models = _saved(run_suite, pytester, llama_file)
    pytester.makepyfile("def test_other(): pass")
    result = pytester.runpytest_subprocess(*models, "--gguf-baseline=main", "-c", str(INI), "--rootdir=.")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["gguf-harness: nothing was compared with the baseline 'main': no test of this run*"])
    assert run_suite(*models, "--gguf-baseline=main", "--collect-only").ret == 0
    result = pytester.runpytest_subprocess(*models, "--gguf-save-baseline=new", "-c", str(INI), "--rootdir=.")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["gguf-harness: The baseline 'new' was not saved: this run measured nothing."])


def test_a_run_that_could_not_measure_is_no_baseline(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path
) -> None:
    models = _models(pytester.path, llama_file, 0.02)
    broken = pytester.path / "broken.gguf"
    broken.write_bytes(llama_file.read_bytes()[:100_000])
    result = run_suite(f"{models[0]},{broken}", *models[1:], "--gguf-save-baseline=main", "-k", "divergence")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["gguf-harness: The baseline 'main' was not saved: 4 tests of broken failed for*"])
    assert not (pytester.path / "results/baselines").exists()

    tight = [models[0], models[1], "--gguf-chunks=8", "--gguf-gates=tight.toml"]
    limits = pytester.path.joinpath("gates.toml").read_text()
    pytester.path.joinpath("tight.toml").write_text(f"{limits}[kld_max]\nlimit = 1e-9\n")
    result = run_suite(*tight, "--gguf-save-baseline=main", "-x", "-k", "divergence")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*The baseline 'main' was not saved: the session ended before all of its tests."])

    # A model that fails its gates has been measured: its baseline says so, and so does what is compared with it.
    run_suite(*tight, "--gguf-save-baseline=main", "-k", "divergence")
    result = run_suite(*models, "--gguf-baseline=main", "-k", "baseline")
    assert "mine itself failed when the baseline was saved: KL max is" in " ".join(str(result.stdout).split())


def test_other_suites_are_compared_by_metric_and_place(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    """A head's estimate never stands for the model's; what is worse fails the test that recorded it."""
    prompts = pytester.path / "prompts.toml"
    texts = ("The quick brown fox", "one, two; one, two", "Once upon a time", "a + b = c", "Paris is in", "x" * 20)
    prompts.write_text("".join(f'[[prompt]]\nid = "p{i}"\ntext = "{text}"\n' for i, text in enumerate(texts)))
    limits = pytester.path / "limits.toml"
    limits.write_text("[attn_cosine_worst_head]\nlimit = 0\n[attn_cosine]\nlimit = 0\n")

    def run(noise: float, *arguments: str) -> pytest.RunResult:
        models = [*_models(pytester.path, llama_file, noise)[:2], f"--gguf-prompts={prompts}"]
        return run_suite(*models, *arguments, tests="../attention")

    assert run(0.02, f"--gguf-gates={limits}", "--gguf-save-baseline=main").ret == 0
    saved = json.loads((pytester.path / "results/baselines/main.json").read_text())["models"]["mine"]
    cosines = [row for row in read_run()["estimates"] if row["metric"] == "attn_cosine" and row["prompt"] is None]
    (whole,) = (row["value"] for row in cosines if row["head"] is None)
    assert saved["estimates"]["attn_cosine"]["value"] == whole
    heads = {(row["layer"], row["head"]): row["value"] for row in cosines if row["head"] is not None}
    placed = [row for row in saved["placed"] if row["metric"] == "attn_cosine" and "head" in row]
    assert {(row["layer"], row["head"]): row["value"] for row in placed} == heads
    (worst,) = (gate for gate in read_run()["gates"] if gate["metric"] == "attn_cosine_worst_head")
    assert (worst["layer"], worst["head"]) == min(heads, key=heads.__getitem__)
    assert f"worst head's cosine (layer {worst['layer']}, head {worst['head']}) is" in worst["detail"]

    assert run(0.02, f"--gguf-gates={limits}", "--gguf-baseline=main").ret == 0
    comparisons = {one["metric"]: one for one in read_run()["baseline"]["comparisons"]}
    assert comparisons["attn_cosine"]["old"] == comparisons["attn_cosine"]["new"] == whole
    assert {(one["layer"], one["head"]) for one in comparisons.values()} == {(None, None)}

    result = run(1.0, f"--gguf-gates={limits}", "--gguf-baseline=main")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "mine: attention cosine is" in str(result.stdout)
    outcomes = {one["metric"]: one["outcome"] for one in read_run()["baseline"]["comparisons"]}
    assert outcomes["attn_cosine"] == "worse"
    failed = [test["id"].split("::")[1] for test in read_run()["tests"] if test["outcome"] == "failed"]
    assert "test_attention_stays_close_to_reference[mine]" in failed


def test_gates_of_groups_of_tensors_say_which(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    limits = pytester.path / "limits.toml"
    limits.write_text("[tensor_group_kld]\nlimit = 1e-12\n")
    arguments = (f"--models={llama_file}", "--gguf-quants=Q8_0", f"--gguf-gates={limits}")
    result = run_suite(*arguments, tests="../layers/test_sensitivity.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    gates = read_run()["gates"]
    assert {gate["layer"] for gate in gates} == {None, 0, 1}
    assert {"attn_q", "ffn_down", None} <= {gate["part"] for gate in gates}
    places = [gate["part"] or f"layer {gate['layer']}" for gate in gates]
    assert all(f"KL of a group ({place}) is" in gate["detail"] for place, gate in zip(places, gates, strict=True))
    assert any(f"random-Q8_0: {gate['detail']}" in str(result.stdout) for gate in gates if gate["verdict"] == "fail")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gguf-baseline=missing"], "--gguf-baseline=missing: neither a file nor a baseline in"),
        (["--gguf-baseline=bad.json"], "bad.json' cannot be read"),
        (["--gguf-save-baseline=../x"], "is not a valid name for a baseline"),
        (["--gguf-baseline-map=a=b"], "--gguf-baseline-map without --gguf-baseline compares nothing"),
        (["--gguf-baseline=good", "--gguf-baseline-map=a"], "'a' is not of the form OLD=NEW"),
        (
            ["--gguf-baseline=good", "--gguf-quants=Q8_0", "--gguf-baseline-map=a=random-Q8_0"],
            "'a' is not a model of the baseline.\n  Expected OLD=NEW. Candidates of the baseline (OLD): mine."
            " Candidates of this run (NEW): random-Q8_0.",
        ),
        (["--gguf-baseline=good", "--gguf-baseline-map=mine=x"], "'x' is not a model of this run"),
    ],
)
def test_mistakes_end_the_session(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, arguments: list[str], message: str
) -> None:
    pytester.path.joinpath("bad.json").write_text("{")
    facts = {"sha256": "a", "architecture": "a", "parameters": 1, "vocab_sha256": "a", "quantization": "Q8_0"}
    models = {"mine": facts | {"estimates": {}, "placed": []}}
    good = {"baseline_version": 2, "engine": None, "corpus": None, "reference": None, "settings": {}, "models": models}
    baselines = pytester.mkdir("results") / "baselines"
    baselines.mkdir()
    (baselines / "good.json").write_text(json.dumps(good))
    result = run_suite(f"--models={llama_file}", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in f"{result.stdout}{result.stderr}"
    assert "Traceback" not in f"{result.stdout}{result.stderr}"
