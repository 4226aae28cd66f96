"""Paths and names that people have: each option takes them, and no name costs another model its results."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gguf_harness.errors import visible
from tests.companions import COMPANIONS
from tests.nasty_names import NASTIEST
from tests.plugin.conftest import PROMPTS, ReadRun, RunSuite
from tests.random_llama import write_random_llama

LOOSE = "[kld_mean]\nlimit = 50\n[same_top]\nlimit = 0.0001\n[ppl_ratio]\nlimit = 1000\n[delta_p_rms]\nlimit = 0.999\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound reference, and a model under each of the nastiest names."""
    folder = tmp_path_factory.mktemp("names")
    write_random_llama(folder / "a sound one-F32.gguf", width=64, n_layer=1)
    for number, name in enumerate(NASTIEST, 1):
        file = write_random_llama(folder / "new.bin", width=64, n_layer=1, noise=0.01 * number)
        file.rename(folder / f"{name}.gguf")
    return folder


@pytest.mark.model
def test_models_of_any_name_are_measured(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ASCII, with everything that a session can write."""
    gates = pytester.path / "loose.toml"
    gates.write_text(LOOSE, encoding="utf-8-sig")
    summary = pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    reference = folder / "a sound one-F32.gguf"
    named = [f"--models={folder}", f"--models={folder}/tiny-\udcff.gguf", f"--reference={reference}"]
    result = run_suite(
        *named, f"--gguf-gates={gates}", "--junitxml=junit.xml", "-k", "divergence or file or perplexity", "-v"
    )
    output = f"{result.stdout}{result.stderr}"
    assert result.ret == pytest.ExitCode.OK, output
    for wrong in ("Traceback", "INTERNALERROR", "Error"):
        assert wrong not in output
    result.stdout.fnmatch_lines(["model *verdict*", "tiny-\\xff *pass*"])
    run = read_run()
    names = {visible(name) for name in NASTIEST}
    assert {model["name"] for model in run["models"]} == names | {"a sound one-F32"}
    assert {row["model"] for row in run["estimates"] if row["metric"] == "kld_mean"} == names
    assert {gate["verdict"] for gate in run["gates"]} == {"pass"}
    assert len({test["id"] for test in run["tests"]}) == len(run["tests"])
    assert f"--models={folder}/tiny-\\xff.gguf" in run["command"]
    page = next(pytester.path.glob("results/runs/*/report.html")).read_text(encoding="utf-8")
    assert "tiny-\\xff" in page
    suite = ET.parse(pytester.path / "junit.xml").getroot()  # noqa: S314 - ours
    models = {p.get("value") for p in suite.iter("property") if p.get("name") == "gguf.model"}
    assert names <= models
    assert "tiny-\\\\xff" in summary.read_text(encoding="utf-8")
    logs = [path.name for path in pytester.path.glob("results/cache/logs/*")]
    assert len(logs) >= len(NASTIEST)
    assert all(log.isascii() and len(log) <= 204 for log in logs)


@pytest.mark.model
def test_the_longest_name_can_be_quantized_and_shared_among_processes(
    run_suite: RunSuite, read_run: ReadRun, tmp_path: Path
) -> None:
    pytest.importorskip("xdist")
    longest = "L" * 246 + "-F32"
    write_random_llama(tmp_path / f"{longest}.gguf", width=256, n_layer=1)
    file = write_random_llama(tmp_path / "new.bin", width=256, n_layer=1, noise=0.1)
    file.rename(tmp_path / "b\udcff@gguf-x].gguf")
    arguments = [f"--models={tmp_path}", "--gguf-quants=Q8_0", "-n", "2", "-k", "file"]
    result = run_suite(*arguments, f"--reference={tmp_path}/{longest}.gguf", tests="test_file.py")
    output = f"{result.stdout}{result.stderr}"
    assert result.ret == pytest.ExitCode.OK, output
    assert "Traceback" not in output
    run = read_run()
    names = {longest, f"{'L' * 246}-Q8_0", "b\\xff@gguf-x]"}
    assert {test["model"] for test in run["tests"]} == names
    ids = {name.encode("unicode_escape").decode() for name in names}
    assert {test["id"].partition("[")[2] for test in run["tests"]} == {f"{name}]" for name in ids}


def test_what_xdist_cannot_pass_on_is_exit_4(run_suite: RunSuite, tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    result = run_suite(f"--models={tmp_path}/b\udcff.gguf", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "b\\xff.gguf: pytest -n cannot pass on an argument that is not UTF-8." in str(result.stderr)


@pytest.mark.model
def test_home_folders_are_expanded_by_every_option(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = pytester.mkdir("home")
    monkeypatch.setenv("HOME", str(home))
    os.link(llama_file, home / "m-F32.gguf")
    COMPANIONS["importance matrix"].write(home / "imatrix.gguf")
    texts = {
        "prompts.toml": PROMPTS,
        "words.toml": '[groups]\na = ["b", "c"]\nd = ["e", "f"]\n',
        "gates.toml": LOOSE,
        "corpus.txt": "Some words that are read. " * 200,
    }
    for name, text in texts.items():
        (home / name).write_text(text, encoding="utf-8-sig")
    (home / "base.json").write_text(
        json.dumps({"baseline_version": 1, "engine": None, "corpus": None, "reference": None, "models": {}}),
        encoding="utf-8-sig",
    )
    COMPANIONS["importance matrix"].write(home / "imatrix.gguf")
    server = home / "llama-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    options = [
        *("--models=~/m-F32.gguf", "--reference=~/m-F32.gguf", "--gguf-corpus=~/corpus.txt", "--gguf-results=~/res"),
        *("--gguf-cache=~/cache", "--gguf-prompts=~/prompts.toml", "--gguf-words=~/words.toml"),
        *("--gguf-gates=~/gates.toml", "--gguf-baseline=~/base.json", "--gguf-llama-server=~/llama-server"),
        *("--gguf-imatrix=~/imatrix.gguf", "--junitxml=~/junit.xml"),
    ]
    small = ["--gguf-ctx=64", "--gguf-chunks=4"]
    result = run_suite(*options, *small, "-k", "file or perplexity", quick=False)
    output = f"{result.stdout}{result.stderr}"
    assert result.ret == pytest.ExitCode.TESTS_FAILED, output
    assert "nothing was compared with the baseline 'base'" in output  # which is empty: nothing else went wrong
    result.assert_outcomes(passed=2, skipped=1)
    assert not (pytester.path / "~").exists()
    (run,) = home.glob("res/runs/*/run.json")
    content = json.loads(run.read_text(encoding="utf-8"))
    assert content["settings"]["gates"] == "gates.toml"
    assert content["corpus"]["bytes"] == len(texts["corpus.txt"])
    assert (home / "cache" / "passes").is_dir()
