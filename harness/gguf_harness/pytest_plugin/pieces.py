"""What a schedule is made of: pieces of work, and how fast the files come that they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LOCAL", "Piece", "Rates"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The smallest amount of work that is given out: the tests of one suite for one model.

    Attributes:
        name: unique.
        file: what must be loaded for it; None for nothing.
        seconds: that it is expected to take, without loading and waiting.
        after: name of the piece whose results it reads, the reference's of the same suite; None if it reads none.
        results: bytes of its results that others read, which are moved to each node that needs them once.
    """

    name: str
    file: str | None
    seconds: float
    after: str | None = None
    results: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a file comes to a process.

    Attributes:
        start: seconds that loading takes whatever the size.
        disk: bytes per second from the disk of a node into memory.
        network: bytes per second to a node that has not got the file; None if every node has every file.
        at_once: to how many nodes files and results are sent at once, the others wait; None if to all.
    """

    start: float = 2.0
    disk: float = 1e9
    network: float | None = None
    at_once: int | None = None

    def seconds(self, size: int, *, there: bool) -> float:
        """How long it takes to load a file of so many bytes.

        Args:
            size: bytes.
            there: it is on the node's disk.
        """
        fetching = 0.0 if there or self.network is None else size / self.network
        return self.start + fetching + size / self.disk


LOCAL: Final = Rates()
"""Processes of one machine: start of a worker and imports, and a disk as slow as the usual ones."""
