"""What measurements took, beside what was expected of them: kept in the cache, so that forecasts learn.

    <cache>/durations/<machine>.jsonl     a line for each measurement, the newest last

Lines are appended whole, so several sessions may write. What cannot be read is passed over: nothing depends on it but
forecasts.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.store.atomic_file import replacing

__all__ = ["FOLDER", "Durations"]

FOLDER: Final = "durations"
_NEWEST: Final = 5
"""Measurements of a kind and a file whose median counts: one may have been disturbed."""
_LONG_S: Final = 0.5
"""Shorter ones are mostly the start of a process, and tell nothing about other files."""
_MOST_LINES: Final = 4000
_MOST_FACTOR: Final = 1e3


class Durations:
    """Factors of one machine: seconds taken over seconds expected.

    Args:
        cache: the cache's folder.
        machine: what is timed on: its name, safe for a file.
    """

    def __init__(self, cache: Path, machine: str) -> None:
        self._file = cache / FOLDER / f"{machine}.jsonl"
        self._by_file: dict[tuple[str, str], list[float]] = {}
        self._by_kind: dict[str, dict[str, list[float]]] = {}
        self._lines = 0
        for line in self._read():
            self._lines += 1
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self._take(json.loads(line))

    def _read(self) -> list[str]:
        try:
            return self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []

    def _take(self, row: Mapping[str, Any]) -> None:
        kind, file = str(row["kind"]), str(row["file"])
        seconds, expected = float(row["seconds"]), float(row["expected"])
        factor = seconds / expected if expected > 0 else math.nan
        if not 1 / _MOST_FACTOR < factor < _MOST_FACTOR:
            return
        self._by_file.setdefault((kind, file), []).append(factor)
        if seconds >= _LONG_S:
            self._by_kind.setdefault(kind, {}).setdefault(file, []).append(factor)

    def factor(self, kind: str, file: str) -> float | None:
        """How much longer than expected a kind of measurement takes here; None if it never ran.

        Args:
            kind: of the measurement, with its version.
            file: hash of the subject's file. Of a file that was never measured, the median of others counts.
        """
        own = self._by_file.get((kind, file))
        if own is not None:
            return _typical(own)
        others = self._by_kind.get(kind)
        return statistics.median(map(_typical, others.values())) if others else None

    def knows(self, kind: str, file: str) -> bool:
        """Whether this kind of measurement of this file was timed."""
        return (kind, file) in self._by_file

    def add(self, kind: str, file: str, expected: float, seconds: float) -> None:
        """Keep what a measurement took. A cache that cannot be written learns nothing, and stops nothing.

        Args:
            kind: of the measurement, with its version.
            file: hash of the subject's file.
            expected: seconds, before any factor.
            seconds: that it took.
        """
        row = {"kind": kind, "file": file, "expected": round(expected, 6), "seconds": round(seconds, 6)}
        self._take(row)
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._lines >= _MOST_LINES:
                kept = self._read()[-_MOST_LINES // 2 :]
                with replacing(self._file, lasting=False) as out:
                    out.write("".join(f"{line}\n" for line in kept).encode())
                self._lines = len(kept)
            with self._file.open("a", encoding="utf-8") as out:
                out.write(f"{json.dumps(row)}\n")
            self._lines += 1


def _typical(factors: list[float]) -> float:
    """The median of the newest and of what was expected, 1: a single one may have been disturbed by other processes."""
    return math.exp(statistics.median([0.0, *map(math.log, factors[-_NEWEST:])]))
