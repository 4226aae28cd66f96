"""Observers of a corpus pass: each takes the logits of a block of positions and keeps a few numbers per token."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import EngineError, StoreError
from harness.metrics.codec import RowCodec
from harness.metrics.divergence import DivergenceKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.engine.session import LogitsBlock
    from harness.measure.logprobs import LogprobReader, LogprobWriter

__all__ = ["Arrays", "DivergenceObserver", "Observer", "ReferenceObserver"]

Arrays = dict[str, NDArray[np.generic]]
"""Per-token values by name, each [windows, scored tokens]."""


_TOTAL_TOLERANCE: Final = 0.01


class Observer(Protocol):
    """Takes what it needs from each block of a pass.

    `arrays` is what has been measured so far: a pass saves it now and then, and a resumed pass gives it back.
    """

    arrays: Arrays

    def observe(self, block: LogitsBlock) -> None:
        """Take one block; its logits are a view that is valid only now."""


class _RowObserver:
    """Runs a function per row on a few threads: numpy lets go of the interpreter inside its loops."""

    def __init__(self, shape: tuple[int, int], fields: dict[str, type[np.generic]], threads: int) -> None:
        self.arrays: Arrays = {name: np.zeros(shape, dtype=kind) for name, kind in fields.items()}
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _each_row(self, rows: int, work: Callable[[int, range], None]) -> None:
        """Call work(worker, rows) so that together the calls cover all rows."""
        bounds = np.linspace(0, rows, self._threads + 1).astype(int).tolist()
        parts = [range(first, last) for first, last in itertools.pairwise(bounds)]
        if self._pool is None:
            work(0, parts[0])
        else:
            list(self._pool.map(work, range(self._threads), parts))

    def _check(self, block: LogitsBlock) -> None:
        stop = block.row + len(block.targets)
        for name, array in self.arrays.items():
            if not np.isfinite(array[block.window, block.row : stop]).all():
                raise EngineError(
                    f"The logits of window {block.window} give a {name} that is not finite: the model computes NaN"
                    " or infinity there.",
                    "Such a file is broken for use as well; quantize it again, or try another KV-cache type.",
                )


class ReferenceObserver(_RowObserver):
    """Negative log-likelihood and most likely token; also keeps the whole distribution if given a writer.

    Args:
        shape: (windows, scored tokens per window).
        vocabulary: length of a row of logits.
        threads: threads to use.
        writer: where the distributions go, for later comparison.
    """

    def __init__(self, shape: tuple[int, int], vocabulary: int, threads: int, writer: LogprobWriter | None) -> None:
        super().__init__(shape, {"nll": np.float64, "top": np.int32}, threads)
        if writer is not None:
            self.arrays |= {name: np.zeros(shape, dtype=np.float32) for name in ("scale", "total")}
        self._writer = writer
        self._codecs = [RowCodec(vocabulary) for _ in range(threads)]
        self._spare = [np.empty(vocabulary, dtype=np.uint16) for _ in range(threads)]

    def observe(self, block: LogitsBlock) -> None:
        """Take one block."""
        nll, top = self.arrays["nll"][block.window], self.arrays["top"][block.window]
        kept = (self.arrays["scale"][block.window], self.arrays["total"][block.window]) if self._writer else None
        codes = self._writer.buffer(len(block.targets)) if self._writer else None

        def work(worker: int, rows: range) -> None:
            for row in rows:
                logits = block.logits[row]
                target = codes[row] if codes is not None else self._spare[worker]
                scale, largest, total, best = self._codecs[worker].encode(logits, target)
                position = block.row + row
                nll[position] = largest + math.log(total) - float(logits[block.targets[row]])
                top[position] = best
                if kept is not None:
                    kept[0][position], kept[1][position] = scale, total

        self._each_row(len(block.targets), work)
        self._check(block)
        if self._writer is not None and codes is not None:
            self._writer.write(block.window, block.row, codes)


class DivergenceObserver(_RowObserver):
    """Negative log-likelihood, most likely token and KL divergence in both directions from a stored reference.

    Args:
        shape: (windows, scored tokens per window).
        vocabulary: length of a row of logits.
        threads: threads to use.
        reader: the reference's distributions.
    """

    def __init__(self, shape: tuple[int, int], vocabulary: int, threads: int, reader: LogprobReader) -> None:
        super().__init__(
            shape, {"nll": np.float64, "top": np.int32, "kld": np.float64, "kld_reverse": np.float64}, threads
        )
        self._reader = reader
        self._codecs = [RowCodec(vocabulary) for _ in range(threads)]
        self._kernels = [DivergenceKernel(vocabulary) for _ in range(threads)]

    def observe(self, block: LogitsBlock) -> None:
        """Take one block."""
        nll, top, kld, reverse = (self.arrays[name][block.window] for name in ("nll", "top", "kld", "kld_reverse"))
        codes, scales, totals = self._reader.rows(block.window, block.row, len(block.targets))

        def work(worker: int, rows: range) -> None:
            decode, compare = self._codecs[worker].decode, self._kernels[worker]
            for row in rows:
                logits = block.logits[row]
                position = block.row + row
                reference = decode(codes[row], float(scales[row]))
                kld[position], reverse[position], log_normalizer, top[position], total = compare(reference, logits)
                nll[position] = log_normalizer - float(logits[block.targets[row]])
                # Codes are off by far less; pages that never reached the disk are off by far more.
                if abs(total - totals[row]) > _TOTAL_TOLERANCE * totals[row]:
                    raise StoreError(
                        f"The stored log-probabilities of window {block.window} are damaged: a row sums up to"
                        f" {total:.6g}, expected {totals[row]:.6g}.",
                        "Measure the reference again with --gguf-fresh.",
                    )

        self._each_row(len(block.targets), work)
        self._check(block)
