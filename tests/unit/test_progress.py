"""What is shown of work whose end is known, and of work whose end is not."""

from __future__ import annotations

import re
import sys
import time
from multiprocessing import Pipe

import pytest

from gguf_harness.analytics import analyses as tasks
from gguf_harness.engine.worker_context import WorkerContext
from tests.terminal import on_terminal, screen_after

WORK = """
    import gguf_harness.pytest_plugin.progress as progress

    def test_work(pytestconfig, monkeypatch):
        monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
        monkeypatch.setattr(progress, "_REDRAW_S", 0.0)
        with progress.TerminalProgress(pytestconfig).task("umap of words", "steps") as show:
            show(0, 0)
            show(1, 4)
            show(3, 4)
            show(4, 4)
"""

NEXT = """
    def test_next():
        pass
"""


def test_lines_say_how_long_where_nobody_knows_how_much(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=WORK + NEXT)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    lines = [
        "  umap of words: running for 0 s",
        "  umap of words: 1/4 steps",
        "  umap of words: 3/4 steps, about 0 s left",
        "  umap of words: 4/4 steps, about 0 s left",
        "test_it.py ..*100%*",
    ]
    result.stdout.fnmatch_lines(lines)
    result.stdout.no_fnmatch_line("*0/0*")
    assert "\r" not in result.stdout.str()
    assert "\x1b" not in result.stdout.str()


@pytest.mark.parametrize("verbose", [False, True])
def test_a_bar_stands_below_the_line_that_pytest_writes(pytester: pytest.Pytester, *, verbose: bool) -> None:
    """On a screen with fewer rows than lines: making room for the bar scrolls it."""
    file = pytester.makepyfile(test_it=WORK + NEXT)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *["-v"] * verbose, str(file)]
    shown = on_terminal(command, pytester.path, columns=70, rows=6)
    assert shown.code == 0, shown.lines
    # As if there had been no bar.
    (first,) = [index for index, line in enumerate(shown.lines) if line.startswith("collected")]
    names = ["test_it.py::test_work PASSED", "test_it.py::test_next PASSED"] if verbose else ["test_it.py .."]
    expected = [f"{name:<63}[{100 * (index + 1) // len(names):3}%]" for index, name in enumerate(names)]
    assert list(shown.lines[first + 1 : -1]) == ["", *expected, "", *shown.lines[-2:-1]]
    assert "2 passed" in shown.lines[-2]
    # And while there was one, it was the last line, whole, and below the name of its test.
    begun = "test_it.py::test_work" if verbose else "test_it.py"
    seen = []
    for end in (match.end() for match in re.finditer(rb"\x1b8", shown.written)):
        screen = screen_after(shown.written[:end], columns=70, rows=6)
        row = screen.cursor.y
        assert screen.display[row].rstrip() == begun
        assert not "".join(screen.display[row + 2 :]).strip()
        seen.append(screen.display[row + 1].rstrip())
    assert seen[0] == "  umap of words: running for 0 s"
    assert seen[-1] == f"  umap of words: {'━' * 24} 4/4 steps, about 0 s left"


def test_a_terminal_that_cannot_move_its_cursor_is_left_alone(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile(test_it=WORK)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    shown = on_terminal(command, pytester.path, columns=70, environment={"TERM": "dumb"})
    assert shown.code == 0, shown.lines
    assert b"\x1b" not in shown.written
    assert "  umap of words: 1/4 steps" in shown.lines


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


def test_a_bar_is_drawn_where_characters_are_missing_and_cut_where_it_is_too_long(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile(test_it=WORK.replace("umap of words", "hashing 模 [b] \\\\xff"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)]
    for columns, characters in ((80, "ascii"), (36, "utf-8")):
        environment = {"PYTHONIOENCODING": characters}
        shown = on_terminal(command, pytester.path, columns=columns, environment=environment)
        assert shown.code == 0, shown.lines
        bars = [bar.decode() for bar in re.findall(rb"\x1b\[B\r(.*?)\x1b", shown.written)]
        if characters == "ascii":
            assert f"  hashing \\u6a21 [b] \\xff: {'#' * 6}{'-' * 18} 1/4 steps" in bars
        else:
            # The wide character takes two columns.
            assert bars[-1] == f"  hashing 模 [b] \\xff: {'━' * 12}"
