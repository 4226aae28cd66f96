"""A terminal of a given size for a process, and what a person sees on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

__all__ = ["Shown", "on_terminal", "screen_after"]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a process wrote to its terminal.

    Attributes:
        code: its exit code.
        written: the bytes, with escape sequences.
        lines: all lines, those that have left the screen too.
    """

    code: int
    written: bytes
    lines: tuple[str, ...]


def on_terminal(
    command: Sequence[str], folder: Path, *, columns: int, rows: int = 24, environment: Mapping[str, str] = {}
) -> Shown:
    """Run a command on a terminal of its own, until it ends.

    Args:
        command: program and arguments.
        folder: where it runs.
        columns: width of the terminal.
        rows: its height.
        environment: changes to the environment; TERM is xterm unless it is here.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR", "CI"}}
    variables = {**kept, "TERM": "xterm", **environment}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=variables)
    os.close(theirs)
    parts = []
    with contextlib.suppress(OSError):  # at the end: Linux says EIO
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    os.close(ours)
    written = b"".join(parts)
    screen = screen_after(written, columns=columns, rows=rows)
    gone = ["".join(row[column].data for column in range(columns)) for row in screen.history.top]
    lines = [line.rstrip() for line in (*gone, *screen.display)]
    return Shown(process.wait(), written, tuple(lines))


def screen_after(written: bytes, *, columns: int, rows: int) -> pyte.HistoryScreen:
    """The screen of a terminal after these bytes."""
    screen = pyte.HistoryScreen(columns, rows, history=10_000)
    pyte.ByteStream(screen).feed(written)
    return screen
