"""llama.cpp's log: kept for error messages, and parsed for memory use."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from gguf_harness.engine.c_api import llama_cpp

__all__ = ["EngineLog", "MemoryBreakdown", "parse_memory"]

_DEBUG, _WARN, _ERROR, _CONTINUE = 1, 3, 4, 5  # enum ggml_log_level
_BUFFER: Final = re.compile(r"(?P<what>model|LoRA|KV|RS|compute|output) buffer size\s*=\s*(?P<mib>[0-9.]+) MiB")
_FIELDS: Final = {
    "model": "weights",
    "LoRA": "weights",
    "KV": "kv_cache",
    "RS": "kv_cache",
    "compute": "compute",
    "output": "compute",
}


@dataclass(frozen=True, slots=True)
class MemoryBreakdown:
    """Bytes of llama.cpp's buffers over all devices; None if not in its log.

    Attributes:
        weights: buffers of the model (memory-mapped ones included), or of an adapter.
        kv_cache: KV cache and recurrent state.
        compute: compute and output buffers.
    """

    weights: int | None = None
    kv_cache: int | None = None
    compute: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


class EngineLog:
    """Collects llama.cpp's log lines and passes them on to stderr (the worker's log file).

    Args:
        listener: called with each line while capturing. Its exceptions are raised after the capture, since those raised
            inside a ctypes callback would be lost.
    """

    def __init__(self, listener: Callable[[str], None] | None = None) -> None:
        self._listener = listener
        self._failure: BaseException | None = None
        self.lines: list[str] = []
        self._problems: dict[int, list[str]] = {_WARN: [], _ERROR: []}
        self._level = 0

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Collect the log while the block runs; afterwards, lines only go to stderr."""
        callback = llama_cpp.llama_log_callback(self._receive)
        llama_cpp.llama_log_set(callback, None)
        try:
            yield
        finally:
            llama_cpp.llama_log_set(_TO_STDERR, None)
        if self._failure is not None:
            raise self._failure

    def last_problem(self) -> str:
        """The last errors, or if there are none the last warnings, in one line for an error message."""
        problems = self._problems[_ERROR] or self._problems[_WARN]
        return " ".join(problems[-2:]) or "it gave no reason"

    def _receive(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        self._level = self._level if level == _CONTINUE else level
        if self._level == _DEBUG:
            return
        self.lines.append(line)
        if self._level in self._problems and line.strip(" .\n"):
            self._problems[self._level].append(line.strip())
        sys.stderr.write(line)
        if self._listener is not None and self._failure is None:
            try:
                self._listener(line)
            except BaseException as error:
                self._failure = error


def parse_memory(lines: Iterable[str]) -> MemoryBreakdown:
    """Add up the buffer sizes that llama.cpp prints while loading, by kind."""
    mib: dict[str, float] = {}
    for line in lines:
        if match := _BUFFER.search(line):
            field = _FIELDS[match["what"]]
            mib[field] = mib.get(field, 0.0) + float(match["mib"])
    return MemoryBreakdown(**{field: round(value * 2**20) for field, value in mib.items()})


def _to_stderr(level: int, text: bytes, _data: object) -> None:
    if level != _DEBUG:
        sys.stderr.write(text.decode("utf-8", "replace"))


# llama.cpp keeps the pointer forever, so this object must live as long.
_TO_STDERR: Final = llama_cpp.llama_log_callback(_to_stderr)
