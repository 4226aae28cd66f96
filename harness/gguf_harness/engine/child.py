"""Common parts of the engine's child processes: environment, visible GPU, log, termination, and its reason."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from gguf_harness.errors import EngineError

__all__ = [
    "child_environment",
    "describe_exit",
    "die_with_parent",
    "log_end",
    "log_tail",
    "run_bound",
    "start_child",
    "stop_child",
    "visible_gpu",
]

_LOG_LINES: Final = 12
_TAIL_BYTES: Final = 16_384
_PR_SET_PDEATHSIG: Final = 1


def child_environment(gpu: int | None) -> dict[str, str]:
    """Environment of a child that imports this package and runs llama.cpp.

    Children are started with `python -P`: nothing is imported from the current folder.

    Args:
        gpu: index for CUDA_VISIBLE_DEVICES; -1 hides all GPUs; None leaves the environment as it is.
    """
    environment = dict(os.environ)
    package_root = str(Path(__file__).resolve().parent.parent.parent)
    # To Python, an empty entry, as left by an unset variable in `lib:$MORE`, means the current folder.
    entries = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    environment["PYTHONPATH"] = os.pathsep.join([package_root, *entries])
    # Statistics use their own threads, one row each: BLAS must not start more.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Before aborting, llama.cpp would run a debugger on itself, which is slow and hides the reason.
    environment.setdefault("GGML_NO_BACKTRACE", "1")
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu, environment.get("CUDA_VISIBLE_DEVICES"))
    return environment


def visible_gpu(index: int, allowed: str | None) -> str:
    """CUDA_VISIBLE_DEVICES for one GPU: the index refers to the GPUs that the user has made visible, if any."""
    if index < 0:
        return ""
    if allowed is None:
        return str(index)
    devices = [device.strip() for device in allowed.split(",") if device.strip()]
    return devices[index] if index < len(devices) else ""


def start_child(
    command: Sequence[str],
    log: Path,
    environment: dict[str, str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a new session, with its output appended to a log file.

    Raises:
        EngineError: the log cannot be written, or the process cannot be started.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise EngineError(
            f"The log {log} cannot be written: {error.strerror or error}.", "Choose another --gguf-cache folder."
        ) from error
    with output:
        try:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=pass_fds,
                # Ctrl-C goes to the whole foreground group; the child must not be killed during a write.
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(
                f"{command[0]} cannot be started: {error.strerror or error}.",
                "Check the limits of memory, processes and open files (ulimit -a).",
            ) from error


def stop_child(process: subprocess.Popen[bytes], grace_s: float = 0.0) -> None:
    """Reliably stop a child and its own children, and reap it; never fails.

    Args:
        process: from `start_child`: the leader of its process group.
        grace_s: time to end by itself after SIGTERM; 0 kills at once.
    """
    if process.returncode is not None:
        return  # reaped: its process id may already be reused
    try:
        if grace_s > 0:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
    finally:  # Ctrl-C while waiting included
        _signal_group(process, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    # The group may be gone (ProcessLookupError); macOS raises PermissionError for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


_CAUSES: Final = {
    "SIGKILL": " (killed from outside, often because memory ran out)",
    "SIGABRT": " (llama.cpp aborted)",
    # On processors with AMX, its code for it does so where GCC compiled it: ggml-org/llama.cpp, pull request 26954.
    "SIGILL": (
        " (llama.cpp was compiled with instructions that fail here; compile it without them:"
        " CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python)"
    ),
}


def describe_exit(status: int | None) -> str:
    """How a process ended, from `Popen.returncode`; None if it still runs."""
    if status is None:
        return "closed its connection but did not exit"
    if status < 0:
        name = signal.Signals(-status).name
        return f"died of {name}{_CAUSES.get(name, '')}"
    return f"exited with status {status}"


def log_end(log: Path) -> int:
    """Size of a log file in bytes, 0 if missing: output of a process started now comes after it."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def log_tail(log: Path, since: int = 0, lines: int = _LOG_LINES) -> str:
    """The last lines of a log file, indented, control characters made visible.

    Args:
        log: file.
        since: offset at which the process started to write, from `log_end`.
        lines: most lines.
    """
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(since, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"    (the log cannot be read: {error})"
    # Output of Python's fault handler is about this process; llama.cpp's reason comes before it.
    kept = re.split(r"(?<=Fatal Python error: )(\w+)", text, maxsplit=1)
    # The last line of a traceback is the reason; the full traceback is in the log.
    text = re.sub(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*", "", "".join(kept[:2]), flags=re.MULTILINE)
    tail = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    printable = ("".join(c if c.isprintable() else "�" for c in line) for line in tail)
    return "\n".join(f"    {line[:200]}" for line in printable) or "    (empty)"


def die_with_parent(parent: int | None = None) -> None:
    """Let Linux end this process when its parent ends, for any reason.

    Args:
        parent: process id of the parent, to detect that it has already ended.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        sys.exit("The parent process is gone.")


def run_bound(parent: int, command: list[str]) -> None:
    """Replace this process by another program that ends with the parent: Linux keeps that setting across exec.

    Args:
        parent: process id of the parent.
        command: the program's path and its arguments.
    """
    die_with_parent(parent)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}.")
