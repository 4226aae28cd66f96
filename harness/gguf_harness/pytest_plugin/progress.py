"""Progress on the terminal while pytest captures output: a bar, or an occasional line if output is not a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pytest

    from gguf_harness.engine.worker import ProgressCallback

__all__ = ["SilentProgress", "TerminalProgress"]

_LINE_EVERY_S: Final = 15.0
_REDRAW_S: Final = 0.1


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
        """Show one piece of work; nothing is shown for work that finishes at once."""
        display = _Display(self, label, unit)
        try:
            # Loading a large model takes a while: show at once what is happening.
            display.update(0, 0)
            yield display.update
        finally:
            display.close()

    @contextlib.contextmanager
    def terminal(self) -> Iterator[Any]:
        """The terminal reporter, with capturing off; None with `-p no:terminal`."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            yield self._config.pluginmanager.getplugin("terminalreporter")


class _Display:
    """One bar (rich) or, if output is not a terminal, a line every 15 seconds."""

    def __init__(self, owner: TerminalProgress, label: str, unit: str) -> None:
        self._owner = owner
        self._label = label
        self._unit = unit
        self._started = self._drawn = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._first: tuple[int, float] | None = None

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None and total > 0:
            self._first = (done, now)
        with self._owner.terminal() as reporter:
            if reporter is None or self._owner._config.get_verbosity() < 0:  # noqa: SLF001 - same module
                return
            if reporter.isatty:
                self._draw_bar(reporter, done, total, now)
            elif now - self._drawn >= _LINE_EVERY_S:
                self._drawn = now
                reporter.ensure_newline()
                state = self._count(done, total) or f"running for {now - self._started:.0f} s"
                reporter.write_line(f"  {self._label}: {state}{self._remaining(done, total, now)}")

    def close(self) -> None:
        if self._bar is not None:
            with self._owner.terminal():
                self._bar.stop()

    def _draw_bar(self, reporter: Any, done: int, total: int, now: float) -> None:
        if self._bar is None:
            reporter.ensure_newline()
            self._bar, self._task = _new_bar(self._label)
            self._bar.start()
        state = self._count(done, total) + self._remaining(done, total, now)
        self._bar.update(self._task, completed=done, total=total or None, state=state)
        if now - self._drawn >= _REDRAW_S or done >= total:
            self._drawn = now
            self._bar.refresh()

    def _count(self, done: int, total: int) -> str:
        """How much is done; empty if the total is unknown."""
        return f"{done}/{total} {self._unit}" if total > 0 else ""

    def _remaining(self, done: int, total: int, now: float) -> str:
        first_done, first_time = self._first or (0, self._started)
        if done <= first_done:
            return ""
        left = (now - first_time) / (done - first_done) * (total - done)
        return f", about {left:.0f} s left"


def _new_bar(label: str) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    # A name may have characters that the terminal cannot show: rich would raise an error.
    label = label.encode(console.encoding, "backslashreplace").decode(console.encoding)
    bar = Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    return bar, bar.add_task(escape(label), total=None, state="")


def _ignore(_done: int, _total: int) -> None:
    """Do nothing."""
