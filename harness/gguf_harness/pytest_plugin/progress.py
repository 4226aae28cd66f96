"""Progress on the terminal while pytest captures output: a line below pytest's own, or plain lines now and then.

On a terminal the line stands below the one that pytest is writing, and the cursor goes back to where pytest left it:
dots and percentages go on as if nothing had been shown. Where output is no terminal, or one that cannot move its
cursor, there are whole lines, at most every 15 seconds, without carriage returns.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import encodable, visible

if TYPE_CHECKING:
    import pytest

    from gguf_harness.engine.worker import ProgressCallback

__all__ = ["SilentProgress", "TerminalProgress"]

_LINE_EVERY_S: Final = 15.0
_REDRAW_S: Final = 0.1
_BAR: Final = 24

# One row down and up makes room below, at the foot of the screen too, and keeps the column; then remember the place.
_BELOW: Final = "\x1bD\x1b[A\x1b7\x1b[B\r"
_BACK: Final = "\x1b[K\x1b8"
_ERASE_BELOW: Final = "\x1b[J"


class SilentProgress:
    """Shows nothing: for xdist's workers, which have no terminal."""

    @contextlib.contextmanager
    def task(self, label: str, unit: str) -> Iterator[ProgressCallback]:  # noqa: ARG002 - part of the protocol
        """Do the work without output."""
        yield _ignore


class TerminalProgress:
    """Shows work on pytest's terminal, past its capturing.

    Args:
        config: of the session.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @contextlib.contextmanager
    def task(self, label: str, unit: str) -> Iterator[ProgressCallback]:
        """Show one piece of work until it ends; with -q nothing is shown."""
        display = _Display(self, visible(label), unit)
        try:
            # Loading a large model takes a while: show at once what is happening.
            display.update(0, 0)
            yield display.update
        finally:
            display.close()

    @property
    def is_quiet(self) -> bool:
        """Whether the session was asked to print little."""
        return bool(self._config.get_verbosity() < 0)

    @contextlib.contextmanager
    def terminal(self) -> Iterator[Any]:
        """The terminal reporter, with capturing off; None with `-p no:terminal`."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            yield self._config.pluginmanager.getplugin("terminalreporter")


class _Display:
    """What is shown of one piece of work."""

    def __init__(self, owner: TerminalProgress, label: str, unit: str) -> None:
        self._owner = owner
        self._label = label
        self._unit = unit
        self._started = self._told = time.monotonic()
        self._drawn: float | None = None
        self._first: tuple[int, float] | None = None

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None and total > 0:
            self._first = (done, now)
        if self._owner.is_quiet or not self._is_due(now, finished=total > 0 and done >= total):
            return
        with self._owner.terminal() as reporter:
            if reporter is None:
                return
            if _can_move(reporter):
                self._drawn = now
                self._draw_below(reporter, done, total, now)
            elif now - self._told >= _LINE_EVERY_S:
                self._told = now
                _write_line(reporter, f"  {self._label}: {self._state(done, total, now)}")

    def close(self) -> None:
        if self._drawn is not None:
            with self._owner.terminal() as reporter:
                _write_raw(reporter, _ERASE_BELOW)

    def _is_due(self, now: float, *, finished: bool) -> bool:
        return finished or self._drawn is None or now - self._drawn >= _REDRAW_S

    def _draw_below(self, reporter: Any, done: int, total: int, now: float) -> None:
        # Not pytest's width, which is 80 on terminals of less than 40.
        width = shutil.get_terminal_size().columns
        column = reporter._tw.width_of_current_line  # noqa: SLF001 - there is no public way
        # At the very edge a terminal holds back the line break until the next character, and would forget it.
        if column and column % width == 0:
            return
        bar = f" {_bar(min(done / total, 1.0))}" if total > 0 else ""
        text = f"  {self._label}:{bar} {self._state(done, total, now)}"
        _write_raw(reporter, f"{_BELOW}{_clipped(_encodable(reporter, text), width - 1)}{_BACK}")

    def _state(self, done: int, total: int, now: float) -> str:
        """How much is done, and how long the rest may take; if the total is unknown, how long it has run."""
        if total <= 0:
            return f"running for {now - self._started:.0f} s"
        count, (first_done, first_time) = f"{done}/{total} {self._unit}", self._first or (0, self._started)
        if done <= first_done:
            return count
        return f"{count}, about {(now - first_time) / (done - first_done) * (total - done):.0f} s left"


def _can_move(reporter: Any) -> bool:
    """Whether the cursor of the output can be moved."""
    return bool(reporter.isatty) and os.environ.get("TERM") not in {None, "", "dumb", "unknown"}


def _write_line(reporter: Any, line: str) -> None:
    """Write a whole line, and begin pytest's own again, so that its dots stand behind a name."""
    begun = reporter.currentfspath
    reporter.ensure_newline()
    reporter.write_line(_encodable(reporter, line))
    if begun is not None and isinstance(begun, str | os.PathLike):
        name = begun if isinstance(begun, str) else f"{os.path.relpath(begun, reporter.startpath)} "
        reporter.write(name)
        reporter.currentfspath = begun


def _write_raw(reporter: Any, text: str) -> None:
    """Write past pytest's count of the columns of its line."""
    file = reporter._tw._file  # noqa: SLF001 - there is no public way
    file.write(text)
    file.flush()


def _encodable(reporter: Any, text: str) -> str:
    return encodable(text, getattr(reporter._tw._file, "encoding", None))  # noqa: SLF001


def _bar(share: float) -> str:
    filled = round(_BAR * share)
    return "━" * filled + "─" * (_BAR - filled)


def _clipped(text: str, width: int) -> str:
    """As much of a text as fits: some characters take two columns."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width)


def _ignore(_done: int, _total: int) -> None:
    """Do nothing."""
