"""Run a step in a process of its own, which ends when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.gpu_check.verdicts import Outcome, outcome_of

__all__ = ["run_child", "stop_group"]

_GRACE_S: Final = 2.0
_LAST_LINES: Final = 6


def run_child(
    command: Sequence[str], result: Path, log: Path, limit_s: float, environment: Mapping[str, str]
) -> tuple[Outcome, float]:
    """The outcome that a command writes, and the seconds that it took; never an exception of the command.

    Args:
        command: what to run; it writes an outcome as JSON into `result`.
        result: where to; removed first.
        log: gets what it prints.
        limit_s: after so many seconds it is ended, with all that it has started.
        environment: of the process.
    """
    result.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            return Outcome("fail", f"{command[0]} cannot be started: {error.strerror or error}"), 0.0
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # What a step leaves behind would hold the GPU for the next one.
            stop_group(process)
    seconds = time.monotonic() - start
    if status is None:
        return Outcome("fail", f"cut after {limit_s:.0f} s, its limit; {_last_words(log)}"), seconds
    return _read(result, status, log), seconds


def _read(result: Path, status: int, log: Path) -> Outcome:
    if status != 0:
        how = f"ended by {_signal_name(-status)}" if status < 0 else f"ended with exit code {status}"
        return Outcome("fail", f"{how}; {_last_words(log)}")
    try:
        return outcome_of(json.loads(result.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return Outcome("fail", f"it left no result ({error}); {_last_words(log)}")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its group, with the group, and reap it: politely at first.

    Workers of the harness lead groups of their own; they end when they lose their parent.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    if process.poll() is None:  # it hangs in the driver: no signal reaches it
        return
    process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(log: Path) -> str:
    """The end of a log in one line, for a reason that somebody reads in a table."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = " / ".join(line.strip() for line in lines[-_LAST_LINES:] if line.strip())
    return f"it last said: {said[-400:]}" if said else "it said nothing"
