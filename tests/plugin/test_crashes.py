"""llama.cpp aborting and workers being killed: each costs its own tests, with one clear message."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.plugin.conftest import INI, SUITES, ReadRun, RunSuite

pytestmark = pytest.mark.model


def _aborting_copy(source: Path, destination: Path) -> Path:
    """A valid GGUF file that claims 5000 layers: llama.cpp has room for fewer, and aborts."""
    content = source.read_bytes()
    at = content.index(b"llama.block_count") + len(b"llama.block_count") + 4
    destination.write_bytes(content[:at] + struct.pack("<I", 5000) + content[at + 4 :])
    return destination


def test_a_model_that_makes_llama_cpp_abort_costs_its_own_tests(
    run_suite: RunSuite, read_run: ReadRun, llama_file: Path, tmp_path: Path
) -> None:
    good = Path(shutil.copy(llama_file, tmp_path / "good.gguf"))
    bad = _aborting_copy(llama_file, tmp_path / "bad.gguf")
    result = run_suite(f"--models={llama_file},{bad},{good}", f"--reference={llama_file}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    output = str(result.stdout)
    assert "bad: the worker process died of SIGABRT (llama.cpp aborted)." in output
    assert "GGML_ASSERT" in output
    assert "Traceback" not in output
    run = read_run()
    outcomes = {(test["model"], test["outcome"]) for test in run["tests"]}
    assert ("good", "passed") in outcomes
    assert not {("good", "failed"), ("good", "error"), ("random-F32", "failed"), ("random-F32", "error")} & outcomes
    broken = [test for test in run["tests"] if test["model"] == "bad" and test["outcome"] != "passed"]
    # All but the test of the file itself need the model loaded.
    assert len(broken) == 16
    assert all(test["message"].count("died of SIGABRT") == 1 for test in broken)


def test_a_killed_worker_costs_its_own_tests_and_a_second_run_finishes(
    pytester: pytest.Pytester, read_run: ReadRun, llama_file: Path
) -> None:
    command = [sys.executable, "-m", "pytest", str(SUITES / "quant"), "-c", str(INI), "--rootdir", str(pytester.path)]
    command += [
        f"--models={llama_file}",
        "--gguf-quants=Q8_0",
        "--gguf-ctx=512",
        "--gguf-chunks=40",
        "-k",
        "not speed and not text and not served",
    ]
    with subprocess.Popen(
        command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as session:
        _kill_worker(session.pid, wait_for=pytester.path / "results" / "cache" / "passes")
        output, _ = session.communicate(timeout=120)
    assert "random-F32: the worker process died of SIGKILL (killed from outside" in output
    assert "Traceback" not in output
    first = read_run()
    outcomes = [test["outcome"] for test in first["tests"]]
    assert outcomes.count("passed") >= 2
    assert {"failed", "error"} & set(outcomes)

    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, timeout=120, check=False)
    assert "died of" not in done.stdout
    second = read_run()
    assert {"ppl", "kld_mean", "same_top"} <= {
        row["metric"] for row in second["estimates"] if row["model"] == "random-Q8_0"
    }
    assert not [test for test in second["tests"] if test["outcome"] == "error"]


def _kill_worker(parent: int, wait_for: Path) -> None:
    """Kill the worker of a session as soon as it stores what it decodes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list(wait_for.glob("*/logprobs.u16")):
            for child in psutil.Process(parent).children():
                if "worker_context" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    return
        time.sleep(0.01)
    pytest.fail("no worker began a pass within a minute")


def test_an_interrupted_session_keeps_what_it_measured(
    pytester: pytest.Pytester, read_run: ReadRun, llama_file: Path
) -> None:
    command = [sys.executable, "-m", "pytest", str(SUITES / "quant"), "-c", str(INI), "--rootdir", str(pytester.path)]
    command += [f"--models={llama_file}", "--gguf-quants=Q8_0", "--gguf-ctx=512", "--gguf-chunks=40"]
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as session:
        deadline = time.monotonic() + 60
        while not list(pytester.path.glob("results/runs/*/run.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = psutil.Process(session.pid).children()
        session.kill()
    run = read_run()
    assert not run["finished"]
    assert run["tests"]
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
