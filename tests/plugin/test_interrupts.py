"""Ctrl-C and SIGTERM, once and twice, in commands and in sessions: a message, an exit code, no child left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gguf_harness.pytest_plugin.interrupts import Terminated, absorbed, endings
from tests.plugin.conftest import INI, SUITES, ReadRun, RunSuite

# Loaded with -p: presses Ctrl-C while results are written, as often as the environment says.
PRESS = """
import os
import signal

def pytest_sessionfinish():
    for _ in range(int(os.environ["PRESSES"])):
        os.kill(os.getpid(), signal.SIGINT)
"""


def _interrupted(command: list[str], folder: Path, number: signal.Signals, times: int) -> tuple[int, str]:
    """Exit code and output of a command that gets a signal as soon as it has a worker, which must not outlive it."""
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, stdout=file, stderr=file)
    started = time.monotonic()
    children: list[psutil.Process] = []
    while not children and process.poll() is None and time.monotonic() - started < 60:
        children = [child for child in psutil.Process(process.pid).children() if _is_worker(child)]
        time.sleep(0.01)
    assert children, output.read_text()
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02)
    process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    return process.returncode, output.read_text()


def _is_worker(child: psutil.Process) -> bool:
    """Other plugins ask the system this and that, in children of a moment."""
    try:
        return "gguf_harness.engine" in " ".join(child.cmdline())
    except psutil.Error:
        return False


@pytest.mark.model
@pytest.mark.parametrize(
    ("number", "times", "code"), [(signal.SIGINT, 1, 130), (signal.SIGINT, 2, 130), (signal.SIGTERM, 1, 143)]
)
def test_a_command_ends(llama_file: Path, tmp_path: Path, number: signal.Signals, times: int, code: int) -> None:
    command = ["gguf_harness.cli", "quantize", str(llama_file), "Q8_0,Q4_K_M,Q5_K_M", "--out", str(tmp_path)]
    returned, output = _interrupted(command, tmp_path, number, times)
    assert returned == code
    assert output.splitlines()[-1] in {"Interrupted.", "Terminated.", "Ended at once."}
    assert "Traceback" not in output


@pytest.mark.model
@pytest.mark.parametrize("times", [1, 2])
def test_a_session_ends(llama_file: Path, tmp_path: Path, times: int) -> None:
    root = ["-c", str(INI), "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    command = ["pytest", str(SUITES / "quant"), *root, f"--models={llama_file}", "--gguf-quants=Q8_0"]
    returned, output = _interrupted(command, tmp_path, signal.SIGINT, times)
    assert returned == pytest.ExitCode.INTERRUPTED
    assert "!!! KeyboardInterrupt !!!" in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output


@pytest.mark.model
@pytest.mark.parametrize("presses", [1, 2])
def test_results_are_written_in_spite_of_ctrl_c(
    run_suite: RunSuite,
    read_run: ReadRun,
    llama_file: Path,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    presses: int,
) -> None:
    pytester.makepyfile(press=PRESS)
    pytester.syspathinsert()
    monkeypatch.setenv("PRESSES", str(presses))
    result = run_suite(f"--models={llama_file}", "-p", "press", tests="test_file.py")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    output = f"{result.stdout}{result.stderr}"
    assert "Interrupted: results are being written." in output
    assert "!!! KeyboardInterrupt !!!" in output
    assert "Traceback" not in output
    assert [test["outcome"] for test in read_run()["tests"]] == ["passed"]
    assert len(list(pytester.path.glob("results/runs/*/report.html"))) == (presses == 1)


def test_what_others_decided_of_signals_stays() -> None:
    """A program started by nohup, or in the background of a script, ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with endings(), absorbed("never said") as pressed:
            os.kill(os.getpid(), signal.SIGINT)
        assert pressed == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class _Finalized:
    """Gets SIGTERM where Python loses the exception."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_a_signal_that_python_loses_still_ends_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    # coverage has a handler of its own.
    before, done = signal.signal(signal.SIGTERM, signal.SIG_DFL), []

    def command() -> None:
        with endings():
            _Finalized()
            done.append("the rest")

    try:
        with pytest.raises(Terminated):
            command()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("inspect tiny | true", 0),
        ("--help | true", 0),
        ("inspect tiny > /dev/full", 2),
        ("inspect tiny >&-", 0),
    ],
)
def test_an_output_that_takes_nothing_is_no_traceback(command: str, code: int) -> None:
    script = f"{sys.executable} -m gguf_harness.cli {command}"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
