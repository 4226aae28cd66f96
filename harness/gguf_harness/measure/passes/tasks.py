"""A pass: one decode of a model over a corpus, for any observers. Runs in a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import count_lanes
from gguf_harness.engine.settings import SessionSettings, WindowOrder, scored_tokens
from gguf_harness.errors import CorpusError, VocabularyMismatch
from gguf_harness.measure.passes.decoding import CODES_FILE, Plan, Progress, decode, load_base
from gguf_harness.measure.passes.logprobs import LogprobReader, LogprobWriter, logprob_bytes
from gguf_harness.measure.passes.observers import DivergenceObserver, JointObserver, ReferenceObserver
from gguf_harness.measure.prompt_inputs import check_context
from gguf_harness.metrics.windows import WindowLimit, decided_so_far, is_settled
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = [
    "MIN_WINDOWS",
    "CorpusText",
    "PassRequest",
    "check_room",
    "continue_candidate_pass",
    "cut_windows",
    "reference_shape",
    "require_windows",
    "run_candidate_pass",
    "run_joint_pass",
    "run_mixture_pass",
    "run_reference_pass",
    "window_order",
]

MIN_WINDOWS: Final = 2
"""A single window would have no standard error."""


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
        order: which windows come first.
        score_from: first position of a window that is scored; None for n_ctx/2, as llama-perplexity.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    corpus: CorpusText
    chunks: int | None
    folder: Path
    key: str = ""
    order: WindowOrder = "sampled"
    score_from: int | None = None

    @property
    def scored(self) -> int:
        """Number of a window's tokens that are scored."""
        return scored_tokens(self.settings.n_ctx, self.score_from)


def reference_shape(worker: WorkerContext, request: PassRequest) -> tuple[int, int, int]:
    """(windows, scored tokens of each, vocabulary) of a reference's pass: what its log-probabilities are sized by."""
    model = worker.model(request.files, request.settings.n_gpu_layers)
    windows = len(cut_windows(model.tokenize(request.corpus.text), request)["window"])
    return windows, request.scored, model.vocabulary.n_tokens


def check_room(shape: tuple[int, int, int], limit: int, option: str) -> None:
    """Check, before anything is decoded, that a reference's log-probabilities fit.

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
        fewer = f"Use --gguf-chunks={fit} or less, or raise {option}." if fit >= MIN_WINDOWS else f"Raise {option}."
        raise CorpusError(
            f"The reference's log-probabilities would take {_gigabytes(size)} ({windows} windows x {scored} tokens"
            f" x {vocabulary} entries x 2 bytes), {option} is {_gigabytes(limit)}.",
            fewer,
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.3g} MB"


def run_reference_pass(
    worker: WorkerContext, request: PassRequest, keep_logprobs: bool, limit_bytes: int, upto: int | None = None
) -> Arrays:
    """Decode the corpus and keep, per scored token, nll and top token; with `keep_logprobs` also the distributions.

    Args:
        worker: that the task runs in.
        request: the reference.
        keep_logprobs: also keep its distributions, for candidates to be compared with.
        limit_bytes: most bytes that these may take.
        upto: number of windows after which to stop; what was done is kept, and the next call goes on there. Contexts
            then stay open. None for all.

    Returns:
        nll and top, [windows, scored tokens]; tokens, [windows, n_ctx]; window, [windows], which of the text's windows
        these are, and available, [1], how many it has; with log-probabilities also scale and total, [windows, scored
        tokens], and vocabulary, [1]. The codes themselves are in `request.folder`. If windows are left, also planned,
        [1]: how many there will be.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    check_context(model, request.model, request.settings)
    progress = Progress(request.folder, request.key)
    cut = progress.cut() or cut_windows(model.tokenize(request.corpus.text), request)
    windows = cut["tokens"].astype(np.int32)
    shape = (len(windows), request.scored)
    vocabulary = model.vocabulary.n_tokens
    writer = None
    if keep_logprobs:
        check_room((*shape, vocabulary), limit_bytes, "--gguf-logprobs-limit")
        writer = LogprobWriter(request.folder / CODES_FILE, (*shape, vocabulary))
        if not writer.continues:
            # Of the windows that were done, the log-probabilities are gone.
            progress.forget()
    observer = ReferenceObserver(shape, vocabulary, request.settings.threads, count_lanes(request.settings), writer)
    facts: Arrays = {**cut, "vocabulary": np.array([vocabulary], dtype=np.int64)}
    try:
        done = decode(worker, model, Plan(request, windows, facts, upto), observer, progress)
    finally:
        if writer is not None:
            writer.close()
    if done < len(windows):
        return Progress.first(observer.arrays | facts, done)
    return observer.arrays | facts


def run_candidate_pass(
    worker: WorkerContext,
    request: PassRequest,
    reference: Path,
    arrays_file: Path,
    limits: Sequence[WindowLimit] = (),
) -> Arrays:
    """Decode the reference's windows, in its order, and compare with its distributions, token by token.

    With limits, the pass stops as soon as all of them are decided.

    Args:
        worker: that the task runs in.
        request: the candidate.
        reference: folder of the reference's pass, with its codes.
        arrays_file: the reference's arrays.
        limits: what is to be decided; none to decode all windows.

    Returns:
        nll, top, kld and kld_reverse, each [windows, scored tokens]; window, [windows], and available, [1], as the
        reference's: these are its first windows.
    """
    arrays, _ = continue_candidate_pass(worker, request, reference, arrays_file, limits)
    return arrays


def continue_candidate_pass(
    worker: WorkerContext,
    request: PassRequest,
    reference: Path,
    arrays_file: Path,
    limits: Sequence[WindowLimit],
    upto: int | None = None,
) -> tuple[Arrays, bool]:
    """The same as far as the reference's pass was made, and no further than a number of windows.

    What was done is kept, and the next call goes on there. Contexts then stay open.

    Args:
        worker: that the task runs in.
        request: the candidate.
        reference: folder of the reference's pass, with its codes.
        arrays_file: the reference's arrays, if its pass is complete.
        limits: what is to be decided.
        upto: number of windows after which to stop; None for all.

    Returns:
        (values as those of `run_candidate_pass`, of the windows so far; whether nothing is left to decode).
    """
    base = load_base(reference, arrays_file)
    model = worker.model(request.files, request.settings.n_gpu_layers)
    check_context(model, request.model, request.settings)
    observer = _comparing(model, request, reference, base)
    windows = base["tokens"][: request.chunks].astype(np.int32)
    shape = observer.arrays["nll"].shape

    def decided(done: int) -> bool:
        so_far = {name: array[:done] for name, array in observer.arrays.items()}
        same = {name: base[name][:done] for name in ("nll", "top")}
        return done >= MIN_WINDOWS and is_settled(decided_so_far(limits, so_far, same))

    plan = Plan(request, windows, {}, upto, total=shape[0])
    done = decode(worker, model, plan, observer, Progress(request.folder, request.key), decided if limits else None)
    arrays = {name: array[:done] for name, array in observer.arrays.items()}
    finished = done == shape[0] or (bool(limits) and decided(done))
    return arrays | {"window": base["window"][:done], "available": base["available"]}, finished


def _comparing(model: Model, request: PassRequest, reference: Path, base: Arrays) -> DivergenceObserver:
    """Compares a candidate with the stored distributions of a reference.

    Raises:
        VocabularyMismatch: they predict other tokens.
        FilesLost: the distributions are gone.
    """
    vocabulary = int(base["vocabulary"].item())
    if model.vocabulary.n_tokens != vocabulary:
        raise VocabularyMismatch(
            f"{request.model} computes logits of {model.vocabulary.n_tokens} tokens, its reference of {vocabulary}.",
            "Compare models that share a vocabulary.",
        )
    scales = base["scale"].astype(np.float32)
    planned = int(base["planned"].item()) if "planned" in base else len(scales)
    reader = LogprobReader(reference / CODES_FILE, scales, base["total"].astype(np.float32), vocabulary, planned)
    shape = (planned if request.chunks is None else min(planned, request.chunks), scales.shape[1])
    return DivergenceObserver(shape, vocabulary, request.settings.threads, count_lanes(request.settings), reader)


def run_joint_pass(worker: WorkerContext, request: PassRequest, bases: Sequence[tuple[Path, Path]]) -> Arrays:
    """Decode once, and compare with several references of the same windows.

    Args:
        worker: that the task runs in.
        request: the candidate.
        bases: (folder of its pass, its arrays) of each reference.

    Returns:
        Arrays of `run_candidate_pass` for the i-th reference, as nll_i and so on; window and available.

    Raises:
        VocabularyMismatch: a reference reads the text in other tokens.
    """
    stored = [load_base(*base) for base in bases]
    first, model = stored[0], worker.model(request.files, request.settings.n_gpu_layers)
    check_context(model, request.model, request.settings)
    if not all(np.array_equal(first["tokens"], other["tokens"]) for other in stored):
        raise VocabularyMismatch(
            f"{request.model} is compared with files that read the text in other tokens.",
            "Compare files of one vocabulary.",
        )
    compared = [_comparing(model, request, folder, base) for (folder, _), base in zip(bases, stored, strict=True)]
    windows = first["tokens"][: request.chunks].astype(np.int32)
    observer = JointObserver(compared)
    done = decode(worker, model, Plan(request, windows), observer, Progress(request.folder, request.key))
    return observer.arrays | {"window": first["window"][:done], "available": first["available"]}


def run_mixture_pass(worker: WorkerContext, request: PassRequest, reference: Path, arrays_file: Path) -> Arrays:
    """The same for a model whose files go afterwards: it is closed, for what is mapped keeps its place on the disk."""
    try:
        return run_candidate_pass(worker, request, reference, arrays_file)
    finally:
        worker.close()


def cut_windows(tokens: Tokens, request: PassRequest) -> Arrays:
    """Windows of a text, without overlap and the tail dropped, as llama-perplexity cuts them; the first of an order.

    Returns:
        tokens, [windows, n_ctx]; window, [windows], which of the text's windows these are; available, [1], how many it
        has.

    Raises:
        CorpusError: fewer than two windows, or fewer than asked for.
    """
    n_ctx = request.settings.n_ctx
    available = require_windows(request.corpus.name, len(tokens), n_ctx, request.chunks)
    window = window_order(available, request.corpus.text, request.order)[: request.chunks]
    return {
        "tokens": tokens[: available * n_ctx].reshape(available, n_ctx)[window],
        "window": window,
        "available": np.array([available], dtype=np.int64),
    }


def require_windows(name: str, tokens: int, n_ctx: int, chunks: int | None) -> int:
    """How many windows a text of so many tokens has.

    Args:
        name: of the text.
        tokens: in the model's vocabulary.
        n_ctx: tokens of a window.
        chunks: how many are asked for; None for all.

    Raises:
        CorpusError: fewer than two windows, or fewer than asked for.
    """
    available = tokens // n_ctx
    if available < MIN_WINDOWS:
        raise CorpusError(
            f"Corpus {name!r} has {tokens} tokens in this vocabulary, expected at least {MIN_WINDOWS * n_ctx} (two"
            f" windows of {n_ctx}).",
            "Use a longer text, or a smaller --gguf-ctx.",
        )
    if chunks is not None and chunks > available:
        raise CorpusError(
            f"Corpus {name!r} has {available} windows of {n_ctx} tokens, --gguf-chunks asks for {chunks}.",
            f"Use --gguf-chunks={available} or less, a longer text, or a smaller --gguf-ctx.",
        )
    return available


def window_order(available: int, text: bytes, order: WindowOrder) -> NDArray[np.int64]:
    """[available]: the windows of a text in the order in which they are taken.

    "sampled" is a fixed permutation, so that its first windows are a random sample of the whole text and a longer run's
    are more of the same: windows sorted by the hash of the text's hash and their number. Neighbouring windows are
    similar, and the first pages of a text are not a sample of it. The order is the same for all vocabularies and
    versions of NumPy.
    """
    if order == "first":
        return np.arange(available, dtype=np.int64)
    seed = hashlib.sha256(text).digest()
    keys = {window: hashlib.sha256(seed + window.to_bytes(8, "little")).digest() for window in range(available)}
    return np.array(sorted(keys, key=keys.__getitem__), dtype=np.int64)
