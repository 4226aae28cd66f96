"""A pass: one decode of a model over a corpus, for whatever observers are there. Runs in a worker.

Progress is kept on disk every few seconds: a killed pass resumes at the window where it was.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.engine.settings import SessionSettings
from harness.errors import CorpusError, FilesLost, VocabularyMismatch
from harness.measure.arrays import load_arrays, save_arrays
from harness.measure.logprobs import LogprobReader, LogprobWriter, logprob_bytes
from harness.measure.observers import Arrays, DivergenceObserver, Observer, ReferenceObserver
from harness.metrics.windows import WindowLimit, decided_so_far

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.engine.session import Session, Tokens
    from harness.engine.worker import WorkerContext

__all__ = [
    "CODES_FILE",
    "CorpusText",
    "PassRequest",
    "check_room",
    "has_codes",
    "open_lanes",
    "reference_shape",
    "run_candidate_pass",
    "run_mixture_pass",
    "run_reference_pass",
]

CODES_FILE: Final = "logprobs.u16"
_PARTIAL_FILE: Final = "partial.npz"
_SAVE_EVERY_S: Final = 10.0
_MIN_WINDOWS: Final = 2
_ORDER_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class CorpusText:
    """A corpus as it is sent to a worker."""

    name: str
    text: bytes


@dataclass(frozen=True, slots=True)
class PassRequest:
    """What to decode, and where to keep the progress.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how to run it; `n_ctx` is the window.
        corpus: the text.
        chunks: number of windows, None for all.
        folder: where partial results and log-probabilities go; belongs to this pass alone.
        key: hash of what the pass depends on: partial results of another are not continued.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    corpus: CorpusText
    chunks: int | None
    folder: Path
    key: str = ""


def reference_shape(context: WorkerContext, request: PassRequest) -> tuple[int, int, int]:
    """(windows, scored tokens of each, vocabulary) of a reference's pass: what its log-probabilities are sized by."""
    session, _ = open_lanes(context, request.files, request.settings)
    windows = len(cut_windows(session.tokenize(request.corpus.text), request))
    return windows, _scored(request.settings.n_ctx), session.vocabulary.n_tokens


def check_room(shape: tuple[int, int, int], limit: int, option: str) -> None:
    """Make sure, before anything is decoded, that a reference's log-probabilities fit.

    Args:
        shape: (windows, scored tokens of each, vocabulary).
        limit: most bytes that they may take.
        option: what sets the limit.

    Raises:
        CorpusError: they do not; with the number of windows that would.
    """
    windows, scored, vocabulary = shape
    size = logprob_bytes(*shape)
    if size > limit:
        fit = limit // logprob_bytes(1, scored, vocabulary)
        fewer = f"Use --gguf-chunks={fit} or less, or raise {option}." if fit >= _MIN_WINDOWS else f"Raise {option}."
        raise CorpusError(
            f"The reference's log-probabilities would take {_gigabytes(size)} ({windows} windows x {scored} tokens"
            f" x {vocabulary} entries x 2 bytes), {option} is {_gigabytes(limit)}.",
            fewer,
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.3g} MB"


def _scored(n_ctx: int) -> int:
    """Tokens of a window that are scored: those with at least half a window before them, as llama-perplexity does."""
    return n_ctx - 1 - n_ctx // 2


def run_reference_pass(context: WorkerContext, request: PassRequest, keep_logprobs: bool, limit_bytes: int) -> Arrays:
    """Decode the corpus and keep, per scored token, nll and top token; with `keep_logprobs` also the distributions.

    Returns:
        nll and top, [windows, scored tokens]; tokens, [windows, n_ctx]; with log-probabilities also scale and total,
        [windows, scored tokens], and vocabulary, [1]. The codes themselves are in `request.folder`.
    """
    session, lanes = open_lanes(context, request.files, request.settings)
    windows = cut_windows(session.tokenize(request.corpus.text), request)
    shape = (len(windows), _scored(request.settings.n_ctx))
    vocabulary = session.vocabulary.n_tokens
    writer = None
    if keep_logprobs:
        check_room((*shape, vocabulary), limit_bytes, "--gguf-logprobs-limit")
        writer = LogprobWriter(request.folder / CODES_FILE, (*shape, vocabulary))
        if not writer.continues:
            # Of the windows that were done, the log-probabilities are gone.
            (request.folder / _PARTIAL_FILE).unlink(missing_ok=True)
    observer = ReferenceObserver(shape, vocabulary, request.settings.threads, lanes, writer)
    try:
        _decode(context, session, lanes, request, windows, observer)
    finally:
        if writer is not None:
            writer.close()
    return {**observer.arrays, "tokens": windows, "vocabulary": np.array([vocabulary], dtype=np.int64)}


def run_candidate_pass(
    context: WorkerContext,
    request: PassRequest,
    reference: Path,
    arrays_file: Path,
    limits: Sequence[WindowLimit] = (),
) -> Arrays:
    """Decode the reference's tokens and compare with its distributions, token by token.

    With limits, windows come in random order, and the pass stops as soon as all limits are decided.

    Args:
        context: of the worker.
        request: the candidate.
        reference: folder of the reference's pass, with its codes.
        arrays_file: the reference's arrays.
        limits: what is to be decided; none to decode all windows.

    Returns:
        nll, top, kld and kld_reverse, each [windows, scored tokens]; with limits also window, [windows]: the
        reference's windows that these are.
    """
    base = load_arrays(arrays_file)
    vocabulary = int(base["vocabulary"].item())
    session, lanes = open_lanes(context, request.files, request.settings)
    if session.vocabulary.n_tokens != vocabulary:
        raise VocabularyMismatch(
            f"{request.model} computes logits of {session.vocabulary.n_tokens} tokens, its reference of {vocabulary}.",
            "Compare models that share a vocabulary.",
        )
    scales = base["scale"].astype(np.float32)
    reader = LogprobReader(reference / CODES_FILE, scales, base["total"].astype(np.float32), vocabulary)
    windows = base["tokens"][: request.chunks].astype(np.int32)
    shape = (len(windows), scales.shape[1])
    order = np.random.default_rng(_ORDER_SEED).permutation(len(windows)) if limits else np.arange(len(windows))
    observer = DivergenceObserver(shape, vocabulary, request.settings.threads, lanes, reader, order)

    def decided(done: int) -> bool:
        so_far = {name: array[:done] for name, array in observer.arrays.items()}
        same = {name: base[name][order[:done]] for name in ("nll", "top")}
        return done >= _MIN_WINDOWS and None not in decided_so_far(limits, so_far, same).values()

    done = _decode(context, session, lanes, request, windows[order], observer, decided if limits else None)
    arrays = {name: array[:done] for name, array in observer.arrays.items()}
    return arrays | {"window": order[:done]} if limits else arrays


def run_mixture_pass(context: WorkerContext, request: PassRequest, reference: Path, arrays_file: Path) -> Arrays:
    """The same for a model whose files go afterwards: it is closed, for what is mapped keeps its place on the disk."""
    try:
        return run_candidate_pass(context, request, reference, arrays_file)
    finally:
        context.close()


def has_codes(folder: Path, arrays: Arrays) -> bool:
    """Whether the distributions of a reference's pass are (still) there, whole."""
    if "total" not in arrays:
        return False
    expected = 2 * arrays["scale"].size * int(arrays["vocabulary"].item())
    try:
        return (folder / CODES_FILE).stat().st_size == expected
    except OSError:
        return False


def cut_windows(tokens: Tokens, request: PassRequest) -> Tokens:
    """[windows, n_ctx]: no overlap, the tail dropped, as llama-perplexity does it.

    Raises:
        CorpusError: fewer than two windows, or fewer than asked for.
    """
    n_ctx = request.settings.n_ctx
    available = len(tokens) // n_ctx
    if available < _MIN_WINDOWS:
        raise CorpusError(
            f"Corpus {request.corpus.name!r} has {len(tokens)} tokens in this vocabulary, expected at least"
            f" {_MIN_WINDOWS * n_ctx} (two windows of {n_ctx}).",
            "Use a longer text, or a smaller --gguf-ctx.",
        )
    if request.chunks is not None and request.chunks > available:
        raise CorpusError(
            f"Corpus {request.corpus.name!r} has {available} windows of {n_ctx} tokens, --gguf-chunks asks for"
            f" {request.chunks}.",
            f"Use --gguf-chunks={available} or less, a longer text, or a smaller --gguf-ctx.",
        )
    count = available if request.chunks is None else request.chunks
    return tokens[: count * n_ctx].reshape(count, n_ctx)


def open_lanes(context: WorkerContext, files: Sequence[Path], settings: SessionSettings) -> tuple[Session, int]:
    """The model with the settings of one lane, and the number of lanes: contexts that decode side by side."""
    from harness.engine.session import offloads

    lanes = 1 if offloads(settings) else settings.lanes
    return context.session(files, settings.lane(lanes)), lanes


def _decode(
    context: WorkerContext,
    session: Session,
    lanes: int,
    request: PassRequest,
    windows: Tokens,
    observer: Observer,
    decided: Callable[[int], bool] | None = None,
) -> int:
    """Decode windows in their order until all are done, or `decided` says so of the first ones; how many are done."""
    partial = request.folder / _PARTIAL_FILE
    start, total, size = _resume(partial, observer, request.key), len(windows), session.settings.n_seq
    idle: SimpleQueue[Session] = SimpleQueue()
    idle.put(session)
    failed = threading.Event()

    def measure(group: range) -> int:
        if failed.is_set():
            raise CancelledError  # never seen: the error of an earlier group is
        lane = idle.get()
        try:
            for block in lane.score(windows, group.start, group.stop):
                observer.observe(block)
        except BaseException:
            failed.set()
            raise
        finally:
            idle.put(lane)
        return group.stop

    done = start
    context.progress(done, total)
    with contextlib.ExitStack() as stack:
        for _ in range(lanes - 1):
            idle.put(stack.enter_context(session.another()))
        pool = stack.enter_context(ThreadPoolExecutor(lanes))
        saved = time.monotonic()
        groups = [range(first, min(first + size, total)) for first in range(start, total, size)]
        for done in pool.map(measure, groups):
            context.progress(done, total)
            if time.monotonic() - saved > _SAVE_EVERY_S:
                save_arrays(partial, {**observer.arrays, "done": np.array([done]), "key": np.array([request.key])})
                saved = time.monotonic()
            if decided is not None and decided(done):
                break
    partial.unlink(missing_ok=True)
    return done


def _resume(partial: Path, observer: Observer, key: str) -> int:
    """Windows that an earlier, killed pass finished; their values go into the observer.

    None where what is there is damaged, or of another pass.
    """
    try:
        stored = load_arrays(partial)
        done, of = int(stored.pop("done").item()), str(stored.pop("key").item())
    except (FilesLost, KeyError, ValueError):
        return 0
    kept, wanted = (
        {name: (array.shape, array.dtype) for name, array in arrays.items()} for arrays in (stored, observer.arrays)
    )
    if of != key or kept != wanted:
        return 0
    for name, array in stored.items():
        observer.arrays[name][...] = array
    return done
