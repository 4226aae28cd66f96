"""Observers of a corpus pass: each reads the logits of a block of positions and keeps a few numbers per token."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NOT_FINITE_HINT, EngineError, FilesLost
from gguf_harness.metrics.codec import RowCodec
from gguf_harness.metrics.divergence import TOKEN_VALUES, DivergenceKernel
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gguf_harness.engine.context import LogitsBlock
    from gguf_harness.measure.passes.logprobs import LogprobReader, LogprobWriter

__all__ = ["DivergenceObserver", "JointObserver", "Observer", "ReferenceObserver", "RowObserver"]

Scratch = TypeVar("Scratch")

_TOTAL_TOLERANCE: Final = 0.01


class Observer(Protocol):
    """Takes what it needs from each block of a pass. Contexts side by side call it from threads of their own.

    `arrays` is what has been measured so far: a pass saves it now and then, and a resumed pass gives it back.
    """

    arrays: Arrays

    def observe(self, block: LogitsBlock) -> None:
        """Take one block; its logits are a view that is valid only now."""


class RowObserver(Generic[Scratch]):
    """Runs a function per row on a few threads: numpy lets go of the interpreter inside its loops.

    Args:
        shape: (windows, scored tokens per window).
        fields: type of each array.
        threads: threads of all lanes together.
        lanes: blocks that are observed at the same time.
        scratch: makes the memory that one thread works in.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        fields: dict[str, type[np.generic]],
        threads: int,
        lanes: int,
        scratch: Callable[[], Scratch],
    ) -> None:
        self.arrays: Arrays = {name: np.zeros(shape, dtype=kind) for name, kind in fields.items()}
        self._parts = max(1, threads // lanes)
        self._pool = ThreadPoolExecutor(threads) if self._parts > 1 else None
        self._scratch: SimpleQueue[Scratch] = SimpleQueue()
        for _ in range(self._parts * lanes):
            self._scratch.put(scratch())

    def _each_row(self, rows: int, work: Callable[[Scratch, int], None]) -> None:
        """Call work(scratch, row) for all rows."""

        def part(rows: range) -> None:
            scratch = self._scratch.get()
            try:
                for row in rows:
                    work(scratch, row)
            finally:
                self._scratch.put(scratch)

        if self._pool is None:
            part(range(rows))
        else:
            bounds = np.linspace(0, rows, self._parts + 1).astype(int).tolist()
            list(self._pool.map(part, [range(first, last) for first, last in itertools.pairwise(bounds)]))

    def _check(self, block: LogitsBlock) -> None:
        stop = block.row + len(block.targets)
        for name, array in self.arrays.items():
            if not np.isfinite(array[block.window, block.row : stop]).all():
                raise EngineError(
                    f"The logits of window {block.window} give a {name} that is not finite: the model computes NaN"
                    " or infinity there.",
                    NOT_FINITE_HINT,
                )


class ReferenceObserver(RowObserver[tuple[RowCodec, NDArray[np.uint16]]]):
    """Negative log-likelihood and most likely token; also keeps the whole distribution if given a writer.

    Args:
        shape: (windows, scored tokens per window).
        vocabulary: length of a row of logits.
        threads: threads to use, for all lanes together.
        lanes: blocks that are observed at the same time.
        writer: where the distributions go, for later comparison.
    """

    def __init__(
        self, shape: tuple[int, int], vocabulary: int, threads: int, lanes: int, writer: LogprobWriter | None
    ) -> None:
        fields: dict[str, type[np.generic]] = {"nll": np.float64, "top": np.int32}
        if writer is not None:
            fields |= {"scale": np.float32, "total": np.float32}
        super().__init__(
            shape, fields, threads, lanes, lambda: (RowCodec(vocabulary), np.empty(vocabulary, dtype=np.uint16))
        )
        self._writer = writer

    def observe(self, block: LogitsBlock) -> None:
        """Take one block."""
        nll, top = self.arrays["nll"][block.window], self.arrays["top"][block.window]
        kept = (self.arrays["scale"][block.window], self.arrays["total"][block.window]) if self._writer else None
        codes = self._writer.buffer(len(block.targets)) if self._writer else None

        def work(scratch: tuple[RowCodec, NDArray[np.uint16]], row: int) -> None:
            codec, spare = scratch
            logits = block.logits[row]
            scale, largest, total, best = codec.encode(logits, codes[row] if codes is not None else spare)
            position = block.row + row
            nll[position] = largest + math.log(total) - float(logits[block.targets[row]])
            top[position] = best
            if kept is not None:
                kept[0][position], kept[1][position] = scale, total

        self._each_row(len(block.targets), work)
        self._check(block)
        if self._writer is not None and codes is not None:
            self._writer.write(block.window, block.row, codes)


class DivergenceObserver(RowObserver[tuple[RowCodec, DivergenceKernel]]):
    """Negative log-likelihood, most likely token and KL divergence in both directions from a stored reference.

    Args:
        shape: (windows, scored tokens per window).
        vocabulary: length of a row of logits.
        threads: threads to use, for all lanes together.
        lanes: blocks that are observed at the same time.
        reader: the reference's distributions, of the same windows.
    """

    def __init__(
        self, shape: tuple[int, int], vocabulary: int, threads: int, lanes: int, reader: LogprobReader
    ) -> None:
        fields: dict[str, type[np.generic]] = {"nll": np.float64, "top": np.int32, **TOKEN_VALUES}
        super().__init__(shape, fields, threads, lanes, lambda: (RowCodec(vocabulary), DivergenceKernel(vocabulary)))
        self._reader = reader

    def observe(self, block: LogitsBlock) -> None:
        """Take one block."""
        window = block.window
        nll, top, *compared = (self.arrays[name][block.window] for name in ("nll", "top", *TOKEN_VALUES))
        codes, scales, totals = self._reader.rows(window, block.row, len(block.targets))

        def work(scratch: tuple[RowCodec, DivergenceKernel], row: int) -> None:
            codec, compare = scratch
            logits = block.logits[row]
            position = block.row + row
            reference = codec.decode(codes[row], float(scales[row]))
            values, log_normalizer, top[position], total = compare(reference, logits)
            for array, value in zip(compared, values, strict=True):
                array[position] = value
            nll[position] = log_normalizer - float(logits[block.targets[row]])
            # Codes are off by far less; pages that never reached the disk are off by far more.
            if abs(total - totals[row]) > _TOTAL_TOLERANCE * totals[row]:
                raise FilesLost(
                    f"The stored log-probabilities of window {window} are damaged: a row sums up to"
                    f" {total:.6g}, expected {totals[row]:.6g}.",
                    "Measure the reference again with --gguf-fresh.",
                )

        self._each_row(len(block.targets), work)
        self._check(block)


class JointObserver:
    """Several observers of one decode: arrays of the i-th have `_i` after their names.

    Args:
        observers: as many as take each block.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        # The same arrays: what a resumed pass writes into these is theirs.
        self.arrays: Arrays = {
            f"{name}_{place}": array
            for place, observer in enumerate(observers)
            for name, array in observer.arrays.items()
        }

    def observe(self, block: LogitsBlock) -> None:
        """Take one block."""
        for observer in self._observers:
            observer.observe(block)
