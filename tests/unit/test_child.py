"""What every child process shares: it ends, is explained, and its log is readable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gguf_harness.engine.child import child_environment, describe_exit, log_end, log_tail, start_child, stop_child

SLEEP = "import time; print('up', flush=True); time.sleep(60)"


def _start(code: str, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    process = start_child([sys.executable, "-c", code, *arguments], log, child_environment(None))
    deadline = time.monotonic() + 30
    while "up" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_a_child_may_end_by_itself(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); " + SLEEP
    process = _start(code, tmp_path / "log")
    stop_child(process, grace_s=10)
    assert process.returncode == 7
    stop_child(process, grace_s=10)


@pytest.mark.parametrize("grace_s", [0.0, 0.2])
def test_a_child_that_does_not_want_to_end_is_killed(tmp_path: Path, grace_s: float) -> None:
    process = _start("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP, tmp_path / "log")
    stop_child(process, grace_s)
    assert process.returncode == -signal.SIGKILL


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
    process = _start(code, tmp_path / "log")
    (grandchild,) = psutil.Process(process.pid).children()
    stop_child(process)
    _, alive = psutil.wait_procs([grandchild], timeout=10)
    assert alive == []


def test_a_program_is_bound_to_its_parent(tmp_path: Path) -> None:
    bind = "import sys; from gguf_harness.engine.child import run_bound; run_bound(int(sys.argv[1]), sys.argv[2:])"
    log = tmp_path / "log"
    process = _start(bind, log, str(os.getpid()), "/bin/sh", "-c", "echo up; sleep 60")
    assert "sh" in psutil.Process(process.pid).name()
    stop_child(process)
    orphan = _start(bind, log, "1", "/bin/sh", "-c", "echo never")
    assert orphan.wait(30) == 1
    missing = _start(bind, log, str(os.getpid()), str(tmp_path / "missing"))
    assert missing.wait(30) == 1
    text = log.read_text()
    assert "The parent process is gone." in text
    assert "missing cannot be run: No such file or directory." in text
    assert "never" not in text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "did not exit"),
        (3, "exited with status 3"),
        (-signal.SIGABRT, "died of SIGABRT (llama.cpp aborted)"),
        (
            -signal.SIGILL,
            "died of SIGILL (llama.cpp was compiled with instructions that fail here; compile it without them:"
            " CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python)",
        ),
        (-signal.SIGKILL, "died of SIGKILL (killed from outside, often because memory ran out)"),
        (-signal.SIGTERM, "died of SIGTERM"),
    ],
)
def test_an_exit_is_explained(status: int | None, words: str) -> None:
    assert describe_exit(status).endswith(words)


def test_a_log_is_shown_as_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n\n\x1b[2Jsecond\xff\n" + b"Fatal Python error: Aborted\n  File x, line 1\n")
    assert log_tail(log) == "    first\n    �[2Jsecond�\n    Fatal Python error: Aborted"
    assert "cannot be read" in log_tail(tmp_path / "missing")


def test_a_log_is_read_from_where_a_process_began_and_without_tracebacks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert log_end(log) == 0
    log.write_text("Fatal Python error: Aborted\n")
    start = log_end(log)
    with log.open("a") as file:
        file.write(
            'loading\nTraceback (most recent call last):\n  File "x.py", line 1\n    f()\nValueError: bad file\n'
        )
    assert log_tail(log, start) == "    loading\n    ValueError: bad file"


def test_a_child_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where PYTHONPATH has an empty entry, which means that folder."""
    (tmp_path / "colorsys.py").write_text("ours = False\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "lib"), ""]))
    code = "import colorsys, sys; print(colorsys.__file__); print(*sys.path, sep='\\n')"
    command = [sys.executable, "-P", "-c", code]
    lines = subprocess.check_output(command, env=child_environment(None), text=True).splitlines()
    assert str(tmp_path) not in [*lines, str(Path(lines[0]).parent)]
    assert str(tmp_path / "lib") in lines
