"""Benchmarks in whole sessions: saved, compared, failed by a threshold, skipped among processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.conftest import ReadRun, RunSuite
from tests.plugin.test_crashes import _aborting_copy

pytestmark = pytest.mark.model

TESTS = "test_benchmark.py"
GROUPS = {"load", "pp8", "tg4", "served8x4"}


def _saved(folder: Path) -> tuple[Path, dict[str, Any]]:
    (file,) = folder.glob(".benchmarks/*/0001_a.json")
    return file, json.loads(file.read_text(encoding="utf-8"))


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file, content = _saved(folder)
    for entry in content["benchmarks"]:
        change(entry)
    file.write_text(json.dumps(content), encoding="utf-8")


def _scale(factor: float) -> Callable[[dict[str, Any]], None]:
    def scale(entry: dict[str, Any]) -> None:
        entry["stats"] |= {name: entry["stats"][name] * factor for name in ("min", "max", "mean", "median")}

    return scale


def test_saved_compared_and_failed_by_a_threshold(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path
) -> None:
    models = [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-repetitions=3", "--benchmark-columns=mean"]
    run_suite(*models, "--benchmark-save=a", tests=TESTS).assert_outcomes(passed=8)
    file, content = _saved(pytester.path)
    entries = content["benchmarks"]
    assert {entry["group"] for entry in entries} == GROUPS
    assert {entry["param"] for entry in entries} == {"random-F32", "random-Q8_0"}
    for entry in entries:
        info = entry["extra_info"]
        assert entry["params"] == {"model": info["model"]} == {"model": entry["param"]}
        assert info["bytes"] > 0
        assert 8 < info["bits_per_weight"] <= 32
        assert {"backend", "threads", "llama_cpp", "sha256", "quantization"} <= set(info)
        assert (info["disturbed_rounds"] == 0) == (info["disturbed_by"] is None)
        assert entry["stats"]["rounds"] == 3
        assert entry["fullname"] == f"quant/test_benchmark.py::{entry['name']}"
        tokens = {"pp8": 8, "tg4": 4, "served8x4": 32}.get(entry["group"])
        assert info.get("tokens") == tokens
        if tokens is not None:
            assert info["tokens_per_s"] == pytest.approx(tokens / entry["stats"]["mean"])
    assert str(pytester.path) not in file.read_text(encoding="utf-8")

    # A clock rate of another moment is no other machine, which -W error would make the end of the session.
    content["machine_info"]["cpu"] |= {"hz_actual": [1, 0], "hz_actual_friendly": "1 Hz"}
    file.write_text(json.dumps(content), encoding="utf-8")
    _edit(pytester.path, _scale(1000))
    # Named by the folder this time: benchmarks are the same ones.
    asked = [*models, "--benchmark-compare=a", "--benchmark-compare-fail=mean:5%", "--benchmark-only"]
    asked += ["-k", "test_benchmark and (load or prompt)"]
    result = run_suite(*asked)
    assert result.ret == 0
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*test_load_time[[]random-Q8_0[]] (0001_a)*"])

    _edit(pytester.path, _scale(1e-5))
    result = run_suite(*asked)
    assert result.ret != 0
    assert "Performance has regressed" in f"{result.stdout}{result.stderr}"
    _, now = _saved(pytester.path)
    assert len(now["benchmarks"]) == 8


def test_grouped_by_what_is_measured_or_by_model(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    models = [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-repetitions=3", "-k", "load or prompt"]
    result = run_suite(*models, "--benchmark-json=out.json", tests=TESTS)
    result.stdout.fnmatch_lines(["*benchmark 'load': 2 tests*", "*benchmark 'pp8': 2 tests*"])
    entries = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert {(e["group"], e["param"]) for e in entries} == {
        (group, model) for group in ("load", "pp8") for model in ("random-F32", "random-Q8_0")
    }
    assert all(len(entry["stats"]["data"]) == 3 for entry in entries)
    run = read_run()
    assert {model["name"] for model in run["models"]} == {"random-F32", "random-Q8_0"}
    assert run["estimates"] == []

    result = run_suite(*models, "--benchmark-group-by=param:model", tests=TESTS)
    result.stdout.fnmatch_lines(["*benchmark 'model=random-F32': 2 tests*", "*benchmark 'model=random-Q8_0': 2 tests*"])


def test_only_when_asked_for(run_suite: RunSuite, llama_file: Path) -> None:
    """Of a folder, that is; a file that is named is collected."""

    def collected(*arguments: str, tests: str = "") -> set[str]:
        result = run_suite(f"--models={llama_file}", "--collect-only", "-q", *arguments, tests=tests)
        return {line.split("::")[1] for line in result.outlines if "test_benchmark.py::" in line or line[:2] == "::"}

    ours = {f"test_{name}[random-F32]" for name in ("prompt_processing", "generation", "load_time", "serving")}
    assert collected() == set()
    assert collected("--benchmark-disable") == set()
    assert collected("--benchmark-json=x.json") == ours
    assert collected(tests=TESTS) == ours


@pytest.mark.parametrize(
    ("arguments", "outcomes", "reason"),
    [
        (["-n", "2"], {"skipped": 4}, "nothing is benchmarked under pytest -n"),
        (["--benchmark-skip"], {"skipped": 4}, "--benchmark-skip active"),
        (["--benchmark-disable"], {"passed": 4}, ""),
    ],
)
def test_where_nothing_is_timed(
    run_suite: RunSuite, llama_file: Path, arguments: list[str], outcomes: dict[str, int], reason: str
) -> None:
    result = run_suite(f"--models={llama_file}", "-rs", *arguments, tests=TESTS)
    result.assert_outcomes(**outcomes)
    assert reason in str(result.stdout)
    assert result.ret == 0


def test_a_model_that_makes_llama_cpp_abort(
    run_suite: RunSuite, read_run: ReadRun, pytester: pytest.Pytester, llama_file: Path
) -> None:
    bad = _aborting_copy(llama_file, pytester.path / "bad.gguf")
    models = [f"--models={llama_file},{bad}", f"--reference={llama_file}"]
    result = run_suite(*models, "--benchmark-json=out.json", tests=TESTS)
    # No errors at teardown: pytest-benchmark warns, here an error, of a fixture that a test did not use.
    result.assert_outcomes(passed=4, failed=4)
    broken = [test["message"] for test in read_run()["tests"] if test["outcome"] == "failed"]
    assert all(message.count("died of SIGABRT") == 1 for message in broken)
    assert "Traceback" not in str(result.stdout)
    # Tried once by all that load it in a worker, and once as a server.
    log = (pytester.path / "results/cache/logs/bad.log").read_text(errors="replace")
    assert log.count("GGML_ASSERT") == 1
    entries = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert {entry["param"] for entry in entries} == {"random-F32"}
