"""Ctrl-C and SIGTERM: stop and clean up work, but finish writing results, without tracebacks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

__all__ = ["Terminated", "absorbed", "endings", "silence_output"]

_EXIT_CODES: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}
Handler = Callable[[int, FrameType | None], None]


class Terminated(BaseException):
    """SIGTERM as an exception, so that cleanup blocks run."""


@contextlib.contextmanager
def endings() -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into an exception; the next one ends the process at once.

    Child processes end with this one, however it ends. The handlers stay after the exception, since the process is
    ending. If Python loses the exception because it was raised in a finalizer, the block continues, and the exception
    is raised after it.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Terminated: SIGTERM.
    """
    ending: list[type[BaseException]] = []

    def handle(number: int, _: FrameType | None) -> None:
        if ending:
            with contextlib.suppress(OSError):
                os.write(2, b"Ended at once.\n")
            os._exit(_EXIT_CODES[signal.Signals(number)])
        ending.append(KeyboardInterrupt if number == signal.SIGINT else Terminated)
        raise ending[0]

    with _handled(signal.SIGINT, handle), _handled(signal.SIGTERM, handle), _silent_losses():
        yield
        if ending:
            raise ending[0]


@contextlib.contextmanager
def absorbed(message: str) -> Iterator[list[int]]:
    """Let a block finish despite Ctrl-C, so that its files are complete; a second Ctrl-C stops it.

    Args:
        message: shown to the user after Ctrl-C.

    Yields:
        A list that is empty until Ctrl-C is pressed.
    """
    pressed: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            raise KeyboardInterrupt
        # Not print: the interrupted code may be in the middle of writing to the same stream.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{message}\n".encode())

    with _handled(signal.SIGINT, handle):
        yield pressed


@contextlib.contextmanager
def _handled(number: signal.Signals, handler: Handler) -> Iterator[None]:
    """Handle a signal, unless another program already does: nohup ignores it, a debugger has its own handler."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) != usual[number]:
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException:
        signal.signal(number, before)
        raise
    else:
        signal.signal(number, before)


@contextlib.contextmanager
def _silent_losses() -> Iterator[None]:
    """Suppress the traceback of a Ctrl-C or SIGTERM that Python loses in a finalizer."""
    before = sys.unraisablehook

    def show(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt | Terminated):
            before(lost)

    sys.unraisablehook = show
    try:
        yield
    finally:
        sys.unraisablehook = before


def silence_output() -> None:
    """Discard remaining output: its reader is gone, and Python would report an error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
