"""What is shown of work whose end is known, and of work whose end is not."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from multiprocessing import Pipe

import pytest

from gguf_harness.analytics import analyses as tasks
from gguf_harness.engine.worker import WorkerContext
from gguf_harness.pytest_plugin.progress import _new_bar

WORK = """
    import gguf_harness.pytest_plugin.progress as progress

    def test_work(pytestconfig, monkeypatch):
        monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
        with progress.TerminalProgress(pytestconfig).task("umap of words", "steps") as show:
            show(0, 0)
            show(1, 4)
            show(3, 4)
"""


def test_lines_say_how_long_where_nobody_knows_how_much(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(WORK)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    lines = [
        "  umap of words: running for 0 s",
        "  umap of words: 1/4 steps",
        "  umap of words: 3/4 steps, about 0 s left",
    ]
    result.stdout.fnmatch_lines(lines)
    result.stdout.no_fnmatch_line("*0/0*")


def test_a_bar_shows_the_same(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile(WORK)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, stdout=theirs, stderr=theirs, cwd=pytester.path, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert "umap of words" in shown
    assert "3/4 steps, about 0 s left" in shown
    assert "0/?" not in shown


def test_a_library_that_says_nothing_is_known_to_be_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TELL_EVERY_S", 0.01)
    ours, theirs = Pipe()
    with ours, theirs:
        with tasks._alive(WorkerContext(theirs)):
            assert ours.poll(10)
        assert ours.recv() == (0, "progress", (0, 0))
        while ours.poll(0):
            ours.recv()
        time.sleep(0.05)
        assert not ours.poll(0)


def test_a_bar_is_drawn_where_characters_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    bar, task = _new_bar("hashing 模 [b] \\xff")
    bar.update(task, completed=1)
    bar.start()
    bar.stop()
    assert b"hashing \\u6a21 [b] \\xff" in written.getvalue()
