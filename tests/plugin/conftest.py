"""Runs the suites as a person does: in a process of their own, in a folder of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.store.run_content import content_problem
from gguf_harness.store.run_tables import TABLES, rows_of
from tests.random_llama import write_random_llama

SUITES = Path(str(resources.files("gguf_harness.suites")))
INI = Path(str(resources.files("gguf_harness.fixtures"))) / "data" / "pytest.ini"

PROMPTS = """
[[prompt]]
id = "fox"
text = "The quick brown fox"

[[prompt]]
id = "chat"
messages = [{role = "user", content = "Hello"}]
"""

QUICK = (
    "--gguf-ctx=32",
    "--gguf-chunks=4",
    "--gguf-batch=64",
    "--gguf-pp=8",
    "--gguf-tg=4",
    "--gguf-repetitions=2",
    "--gguf-gen-tokens=8",
)

RunSuite = Callable[..., pytest.RunResult]
ReadRun = Callable[[], dict[str, Any]]


@pytest.fixture(scope="session")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model with random weights, in F32, that can be served."""
    return write_random_llama(tmp_path_factory.mktemp("models") / "random-F32.gguf", text=True)


@pytest.fixture
def pytester(pytester: pytest.Pytester) -> pytest.Pytester:
    """Sessions without hypothesis: importing it takes as long as all else in a small one, and is for our own tests."""
    pytester.plugins = ["no:hypothesispytest"]
    return pytester


@pytest.fixture
def run_suite(request: pytest.FixtureRequest, pytester: pytest.Pytester, shared_folder: Path) -> RunSuite:
    """`run_suite("--models=...", tests="test_file.py")`: a suite, small and quick.

    Tests with the mark `shared_cache` find what other tests have measured; all others begin with an empty cache.
    """
    shared = request.node.get_closest_marker("shared_cache") is not None
    always = ["-p", "no:cacheprovider", "-p", "no:anyio", "-W", "error"]
    if shared:
        always.append(f"--gguf-cache={shared_folder / 'cache'}")

    def run(*arguments: str, tests: str = "", quick: bool = True, suite: str = "quant") -> pytest.RunResult:
        settings = []
        if quick:
            prompts = pytester.path / "quick-prompts.toml"
            prompts.write_text(PROMPTS, encoding="utf-8")
            settings = [*QUICK, f"--gguf-prompts={prompts}"]
        target = str(SUITES / suite / tests)
        root = ["-c", str(INI), "--rootdir", str(pytester.path), *always]
        return pytester.runpytest_subprocess(target, *root, *settings, *arguments, timeout=120)

    return run


@pytest.fixture
def read_run(pytester: pytest.Pytester) -> ReadRun:
    """The run.json of the last run. Whatever it ran, what it stored can be read, and has a column for every key."""

    def read() -> dict[str, Any]:
        (*_, last) = sorted(pytester.path.glob("results/runs/*/run.json"))
        content: dict[str, Any] = json.loads(last.read_text(encoding="utf-8"))
        assert content_problem(content) is None
        for table, columns in TABLES.items():
            assert {key for row in rows_of(content, table) or [] for key in row} <= set(columns), table
        return content

    return read
