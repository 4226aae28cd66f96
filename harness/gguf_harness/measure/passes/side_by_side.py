"""A reference and a candidate, decoded in step in two workers: no distribution is ever stored.

The reference's worker writes log-probabilities of a few rows at a time, exact in float32, into memory that both share;
the candidate's worker decodes the same rows and compares. Only one of them decodes at a time, with all threads: threads
of two models would wait for each other. The candidate's worker leads: it asks for rows, keeps all numbers, and saves
progress as every pass does.

What the pass needs besides both models does not grow with the context: a block of rows, and some numbers per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.shared_rows import SharedRows, make_shared_rows
from gguf_harness.engine.worker import Call, call_together
from gguf_harness.errors import NOT_FINITE_HINT, EngineError, PeerGone, VocabularyMismatch
from gguf_harness.measure.memory import available_memory, hold_together, needed_memory
from gguf_harness.measure.passes.decoding import Plan, Progress, decode, in_one_context
from gguf_harness.measure.passes.observers import RowObserver
from gguf_harness.measure.passes.tasks import MIN_WINDOWS, PassRequest, cut_windows
from gguf_harness.measure.prompt_inputs import check_context
from gguf_harness.metrics.divergence import TOKEN_VALUES, DivergenceKernel
from gguf_harness.metrics.kernels.log_softmax import shifted_exp
from gguf_harness.metrics.windows import WindowLimit, decided_so_far, is_settled
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_harness.engine.context import LogitsBlock
    from gguf_harness.engine.worker import ProgressCallback, Worker
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["compare_side_by_side", "cut_reference", "follow", "lead", "reference_part"]

_BLOCK_BYTES: Final = 64 * 2**20
"""Of shared memory, if that holds at least one row."""
_OF_REFERENCE: Final[dict[str, type[np.generic]]] = {"nll_reference": np.float64, "top_reference": np.int32}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Size of the shared block.

    Attributes:
        rows: number of rows.
        vocabulary: length of a row.
        timeout_s: longest wait of one worker for the other.
    """

    rows: int
    vocabulary: int
    timeout_s: float


def cut_reference(worker: WorkerContext, request: PassRequest) -> Arrays:
    """The windows of a text in the reference's tokens, as `cut_windows` gives them; and vocabulary, [1]."""
    model = worker.model(request.files, request.settings.n_gpu_layers)
    check_context(model, request.model, request.settings)
    cut = cut_windows(model.tokenize(request.corpus.text), request)
    return cut | {"vocabulary": np.array([model.vocabulary.n_tokens], dtype=np.int64)}


def follow(worker: WorkerContext, request: PassRequest, windows: NDArray[np.int32], size: _Rows) -> None:
    """Decode the reference's windows from the one that is asked for first, and share their rows, a block at each turn.

    Ends when the other worker is finished, or gone.
    """
    from gguf_harness.engine.context import Context

    memory, end = worker.handles(2)
    threads = request.settings.threads
    with SharedRows((memory, end), size.rows, size.vocabulary, size.timeout_s) as shared:
        model = worker.model(request.files, request.settings.n_gpu_layers)
        observer = _SharingObserver(shared, size, threads)
        try:
            start: int = shared.receive()
            with Context(model, in_one_context(request.settings)) as context:
                for block in context.score(windows, start, score_from=request.score_from):
                    observer.observe(block)
        except PeerGone:
            pass  # It has all that it wants, or the session will hear from it why not.


def lead(
    worker: WorkerContext, request: PassRequest, cut: Arrays, size: _Rows, limits: Sequence[WindowLimit]
) -> Arrays:
    """Decode the candidate in step with the reference, and compare: see `compare_side_by_side`."""
    memory, end = worker.handles(2)
    with SharedRows((memory, end), size.rows, size.vocabulary, size.timeout_s) as shared:
        model = worker.model(request.files, request.settings.n_gpu_layers)
        if model.vocabulary.n_tokens != size.vocabulary:
            raise VocabularyMismatch(
                f"{request.model} computes logits of {model.vocabulary.n_tokens} tokens, its reference of"
                f" {size.vocabulary}.",
                "Compare models that share a vocabulary.",
            )
        check_context(model, request.model, request.settings)
        windows = cut["tokens"].astype(np.int32)
        shape = (len(windows), request.scored)
        progress = Progress(request.folder, request.key)

        def alive() -> None:
            # A long window of a slow model is no silence.
            worker.progress(observer.windows, len(windows))

        observer = _ComparingObserver(shape, shared, size, request.settings.threads, alive)

        def decided(done: int) -> bool:
            so_far = {name: array[:done] for name, array in observer.arrays.items()}
            same = {name: so_far[f"{name}_reference"] for name in ("nll", "top")}
            return done >= MIN_WINDOWS and is_settled(decided_so_far(limits, so_far, same))

        plan = Plan(request, windows, alone=True)
        done = decode(worker, model, plan, observer, progress, decided if limits else None)
    arrays = {name: array[:done] for name, array in observer.arrays.items()}
    arrays |= {name: cut[name][:done] for name in ("tokens", "window")} | {"available": cut["available"]}
    if done < len(windows):
        arrays["planned"] = np.array([len(windows)], dtype=np.int64)
    return arrays


def compare_side_by_side(
    show: ProgressCallback,
    candidate: PassRequest,
    reference: PassRequest,
    open_reference: Callable[[], Worker],
    worker: Callable[[], Worker],
    limits: Sequence[WindowLimit],
    timeout_s: float,
) -> Arrays:
    """A candidate's pass with its reference decoded in step. Runs in the session's process.

    Args:
        show: shows progress.
        candidate: what is compared.
        reference: what it is compared with, and how that is run.
        open_reference: makes a worker for the reference, which is closed here.
        worker: starts or returns the candidate's worker.
        limits: what stops the pass once it is decided; none for all windows.
        timeout_s: longest silence of the workers.

    Returns:
        As `run_candidate_pass`, with values that no codec rounded; nll_reference and top_reference, [windows, scored
        tokens]; tokens, [windows, n_ctx]; planned, [1], if windows are left; and reference, [1], the key of its pass.

    Raises:
        EngineError: memory does not hold both models, or a worker failed.
    """
    _require_memory(reference, candidate)
    with open_reference() as other:
        cut = other.call(cut_reference, None, reference)
        size = _rows(int(cut["vocabulary"].item()), candidate, timeout_s)
        ours = worker()
        theirs_handles, our_handles = make_shared_rows(size.rows, size.vocabulary)
        windows = cut["tokens"].astype(np.int32)
        calls = [
            Call(other, follow, (reference, windows, size), theirs_handles),
            Call(ours, lead, (candidate, cut, size, tuple(limits)), our_handles),
        ]
        _, arrays = call_together(calls, show, timeout_s)
    return {**arrays, "reference": np.array([reference.key])}


def _rows(vocabulary: int, request: PassRequest, timeout_s: float) -> _Rows:
    most = min(request.settings.n_ubatch, request.scored)
    return _Rows(max(1, min(most, _BLOCK_BYTES // (4 * vocabulary))), vocabulary, timeout_s)


def _require_memory(*requests: PassRequest) -> None:
    files = [file for request in requests for file in request.files]
    on_gpu = any(request.settings.n_gpu_layers != 0 for request in requests)
    if not hold_together(files, on_gpu=on_gpu):
        names = " and ".join(request.model for request in requests)
        raise EngineError(
            f"{names} are decoded side by side and need {needed_memory(files) / 1e9:.2f} GB of memory together,"
            f" {available_memory(on_gpu=on_gpu) / 1e9:.2f} GB are available.",
            "Use --gguf-side-by-side=never with fewer --gguf-chunks or a larger --gguf-logprobs-limit.",
        )


def reference_part(arrays: Arrays) -> Arrays:
    """The reference's values in what `compare_side_by_side` returns, as `run_reference_pass` returns them."""
    names = {"nll": "nll_reference", "top": "top_reference", "tokens": "tokens", "window": "window"}
    part = {name: arrays[of] for name, of in names.items()} | {"available": arrays["available"]}
    return part | ({"planned": arrays["planned"]} if "planned" in arrays else {})


class _SharingObserver(RowObserver[NDArray[np.float32]]):
    """Writes rows of log-probabilities into the shared block, and goes on when the other worker asks for more."""

    def __init__(self, shared: SharedRows, size: _Rows, threads: int) -> None:
        super().__init__((0, 0), {}, threads, 1, lambda: np.empty(size.vocabulary, dtype=np.float32))
        self._shared, self._size = shared, size

    def observe(self, block: LogitsBlock) -> None:
        """Take one block: share it in parts."""
        for first in range(0, len(block.targets), self._size.rows):
            count = min(self._size.rows, len(block.targets) - first)
            nll, top = np.empty(count), np.empty(count, dtype=np.int32)

            def work(weights: NDArray[np.float32], row: int, first: int = first) -> None:
                shifted = self._shared.values[row]
                logits = block.logits[first + row]
                top[row], largest, total = shifted_exp(logits, shifted, weights)  # noqa: B023
                nll[row] = largest + math.log(total) - float(logits[block.targets[first + row]])  # noqa: B023

            self._each_row(count, work)
            if not np.isfinite(nll).all():
                raise EngineError(
                    f"The logits of window {block.window} give a nll of the reference that is not finite: the model"
                    " computes NaN or infinity there.",
                    NOT_FINITE_HINT,
                )
            self._shared.send((block.window, block.row + first, nll, top))
            # Also after the last rows of a block: what follows is a decode, and the other worker has its turn for one.
            self._shared.receive()


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a window: those from `first` on in the block, for the scored positions from `row` on."""

    row: int
    first: int
    count: int
    nll: NDArray[np.float64]
    top: NDArray[np.int32]


class _ComparingObserver(RowObserver[DivergenceKernel]):
    """Compares each block of the candidate with the reference's rows, and asks for these when it needs them."""

    def __init__(
        self, shape: tuple[int, int], shared: SharedRows, size: _Rows, threads: int, alive: Callable[[], None]
    ) -> None:
        fields: dict[str, type[np.generic]] = {"nll": np.float64, "top": np.int32, **TOKEN_VALUES, **_OF_REFERENCE}
        super().__init__(shape, fields, threads, 1, lambda: DivergenceKernel(size.vocabulary))
        self._shared, self._alive = shared, alive
        # What is in the block: the window, its first row, how many rows, and how many of them were used.
        self._window, self._row, self._count, self._used = -1, 0, 0, 0
        self._nll, self._top = np.empty(0), np.empty(0, dtype=np.int32)
        self.windows = 0

    def observe(self, block: LogitsBlock) -> None:
        """Take one block."""
        self.windows = block.window
        nll, top, nll_reference, top_reference, *compared = (
            self.arrays[name][block.window] for name in ("nll", "top", *_OF_REFERENCE, *TOKEN_VALUES)
        )
        for part in self._parts_of(block):

            def work(compare: DivergenceKernel, row: int, part: _Part = part) -> None:
                position = part.row + row
                logits = block.logits[position - block.row]
                reference = self._shared.values[part.first + row]
                values, log_normalizer, top[position], _ = compare(reference, logits)
                for array, value in zip(compared, values, strict=True):
                    array[position] = value
                nll[position] = log_normalizer - float(logits[block.targets[position - block.row]])

            self._each_row(part.count, work)
            rows = slice(part.row, part.row + part.count)
            nll_reference[rows], top_reference[rows] = part.nll, part.top
        self._check(block)

    def _parts_of(self, block: LogitsBlock) -> Iterator[_Part]:
        """The reference's rows for a block, as they come."""
        row, stop = block.row, block.row + len(block.targets)
        while row < stop:
            if self._used == self._count:
                self._next(block.window)
            if (self._window, self._row + self._used) != (block.window, row):
                raise EngineError(
                    f"Row {row} of window {block.window} met row {self._row + self._used} of window {self._window}.",
                    "This is a defect of gguf-harness: please report it.",
                )
            first, count = self._used, min(stop - row, self._count - self._used)
            rows = slice(first, first + count)
            yield _Part(row, first, count, self._nll[rows], self._top[rows])
            self._used += count
            row += count

    def _next(self, window: int) -> None:
        self._shared.send(window)
        self._alive()
        self._window, self._row, self._nll, self._top = self._shared.receive()
        self._count, self._used = len(self._nll), 0
        self._alive()
