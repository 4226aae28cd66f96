"""The console script `gguf-harness`: runs a command and ends with a message and an exit code, never a traceback.

Imports little, since Ctrl-C may come while the rest is imported.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from gguf_harness.errors import PLAIN, HarnessError
from gguf_harness.pytest_plugin.interrupts import Terminated, endings, silence_output

__all__ = ["main"]

_USAGE_ERROR = 2
_INTERRUPTED = 130
_TERMINATED = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: None for those of the process.

    Returns:
        0; 2 for an invalid request, of `run` 4; 130 after Ctrl-C, 143 after SIGTERM. `run` becomes pytest, with its
        exit code.
    """
    try:
        with endings():
            return _run(arguments)
    except HarnessError as error:
        return _complain(f"gguf-harness: {error}", _USAGE_ERROR)
    except BrokenPipeError:
        silence_output()
        return 0  # the reader of our output has closed the pipe
    except OSError as error:
        silence_output()
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"gguf-harness: {place}{error.strerror or error}.", _USAGE_ERROR)
    except KeyboardInterrupt:
        return _ended("Interrupted.", _INTERRUPTED)
    except Terminated:
        return _ended("Terminated.", _TERMINATED)


def _run(arguments: Sequence[str] | None) -> int:
    from gguf_harness.cli.commands import run_command

    if sys.stdout is None:  # closed by the shell
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # The terminal may not support all characters that we write.
            stream.reconfigure(errors=PLAIN)
    try:
        return run_command(arguments)
    finally:
        sys.stdout.flush()  # here, where a closed pipe is expected; also for --help


def _complain(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)
    return code


def _ended(message: str, code: int) -> int:
    # The rest is fast; Python would end with a traceback, or by the signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_output()
    return _complain(message, code)
