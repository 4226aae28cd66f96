"""Ctrl-C and SIGTERM: work is broken off and cleaned up, results are not; nobody sees a traceback."""

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
    """SIGTERM, as an exception: blocks that clean up do so."""


@contextlib.contextmanager
def endings() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM be exceptions, once: what comes after that ends the process at once.

    Child processes end with this one, however it ends. After the exception, handlers stay: the process is ending. Where
    Python loses the exception, because it came within a finalizer, the block goes on and the exception comes after it.

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
    """Let a block end in spite of Ctrl-C, so that what it writes is whole; a second one breaks it off after all.

    Args:
        message: what a person reads who has pressed Ctrl-C.

    Yields:
        A list that is empty as long as nobody did.
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
    """Handle a signal, unless another program has decided what it does: nohup ignores it, a debugger has its own."""
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
    """Show no traceback of a Ctrl-C or SIGTERM that Python loses in a finalizer."""
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
    """Send what is still to be written nowhere: whoever read it is gone, and Python would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
