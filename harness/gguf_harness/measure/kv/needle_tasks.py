"""Facts hidden in long texts, and how likely a model finds their answers. Runs in a worker.

A text of n_ctx tokens is a piece of the corpus with the fact put in at some depth, between sentences where there is one
near, and the question at its end; the answer's tokens are teacher-forced. The same piece without the fact says how
likely the answer is anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import CorpusError
from gguf_harness.measure.passes.tasks import window_order
from gguf_harness.measure.prompt_inputs import check_context
from gguf_harness.measure.texts.tasks import side_by_side, teacher_forced

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.settings import SessionSettings, WindowOrder
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.inputs.needles import Needle
    from gguf_harness.measure.passes.tasks import CorpusText
    from gguf_harness.store.arrays import Arrays

__all__ = ["NeedleRequest", "run_needles"]

_ENDS: Final = (b".", b"!", b"?", b"\n")
_NEAR: Final = 32
"""Tokens within which a fact is moved back to the end of a sentence."""
_LEAST_TEXT: Final = 8
"""Tokens of the corpus that a text must have around its fact."""


@dataclass(frozen=True, slots=True)
class NeedleRequest:
    """What to hide, and where.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how to run it; `n_ctx` is the length of a text with its answer.
        corpus: what texts are cut from.
        order: which windows of it come first.
        needles: the facts.
        haystacks: texts for each; no two facts share one.
        depths: shares of the text that stand before the fact.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    corpus: CorpusText
    order: WindowOrder
    needles: tuple[Needle, ...]
    haystacks: int
    depths: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Tokens of a needle: the fact, the question, and the answer as it stands in the fact."""

    fact: Tokens
    question: Tokens
    answer: Tokens


def run_needles(worker: WorkerContext, request: NeedleRequest) -> Arrays:
    """Read every fact at every depth of its texts, and each text without it.

    Returns:
        logprob, [needles, haystacks, 1 + depths]: of the answer, all of its tokens, in nats, first without the fact;
        rank, the same shape: of its first token among all, 1 for the likeliest; at, [needles, haystacks, depths]:
        tokens before the fact; answer_tokens, [needles].

    Raises:
        CorpusError: the corpus has too few windows, or they are too short for the facts.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    check_context(model, request.model, request.settings)
    pieces = [_pieces(model, needle) for needle in request.needles]
    windows = _windows(model, request)
    prompts: dict[str, tuple[Tokens, Tokens]] = {}
    shape = (len(pieces), request.haystacks)
    at = np.zeros((*shape, len(request.depths)), dtype=np.int64)
    for needle, haystack in np.ndindex(shape):
        parts = pieces[needle]
        text = _haystack(model, windows[needle * request.haystacks + haystack], parts, request)
        start = _start(model)
        prompts[f"{needle}/{haystack}/0"] = np.concatenate([start, text, parts.question]), parts.answer
        for place, depth in enumerate(request.depths):
            cut = _between_sentences(model, text, round(depth * len(text)))
            whole = np.concatenate([start, text[:cut], parts.fact, text[cut:], parts.question])
            prompts[f"{needle}/{haystack}/{place + 1}"] = whole, parts.answer
            at[needle, haystack, place] = len(start) + cut

    def ask(context: Context, name: str) -> tuple[float, int]:
        return _ask(context, *prompts[name])

    found = side_by_side(worker, model, request.settings, request.settings.n_ctx, list(prompts), ask)
    each = np.array([found[name] for name in prompts]).reshape(*shape, 1 + len(request.depths), 2)
    return {
        "logprob": each[..., 0].astype(np.float64),
        "rank": each[..., 1].astype(np.int64),
        "at": at,
        "answer_tokens": np.array([len(parts.answer) for parts in pieces], dtype=np.int64),
    }


def _windows(model: Model, request: NeedleRequest) -> Tokens:
    """[needles x haystacks, n_ctx] windows of the corpus, each for one fact alone."""
    n_ctx, wanted = request.settings.n_ctx, len(request.needles) * request.haystacks
    tokens = model.tokenize(request.corpus.text, add_special=False)
    available = len(tokens) // n_ctx
    if available < wanted:
        raise CorpusError(
            f"Corpus {request.corpus.name!r} has {available} windows of {n_ctx} tokens, and"
            f" {len(request.needles)} facts in {request.haystacks} texts each need {wanted}.",
            "Use a longer text, a smaller --gguf-ctx, or fewer --gguf-haystacks.",
        )
    order = window_order(available, request.corpus.text, request.order)[:wanted]
    return tokens[: available * n_ctx].reshape(available, n_ctx)[order]


def _start(model: Model) -> Tokens:
    """BOS, where the vocabulary requires it."""
    vocabulary = model.vocabulary
    return np.array([vocabulary.bos] if vocabulary.add_bos else [], dtype=np.int32)


def _pieces(model: Model, needle: Needle) -> _Pieces:
    """Tokenized apart, so that question and answer are the same tokens as in the fact."""
    statement, answer, end = (
        model.tokenize(text, add_special=False) for text in (f"\n{needle.statement}", f" {needle.answer}", ".\n")
    )
    return _Pieces(np.concatenate([statement, answer, end]), statement, answer)


def _haystack(model: Model, window: Tokens, parts: _Pieces, request: NeedleRequest) -> Tokens:
    """As much of a window as fits beside the fact."""
    room = request.settings.n_ctx - len(_start(model)) - len(parts.fact) - len(parts.question) - len(parts.answer)
    if room < _LEAST_TEXT:
        raise CorpusError(
            f"A text of {request.settings.n_ctx} tokens (--gguf-ctx) has no room for a fact and its question in the"
            f" vocabulary of {request.model}.",
            "Use a larger --gguf-ctx.",
        )
    return window[:room]


def _between_sentences(model: Model, text: Tokens, cut: int) -> int:
    """The place after the last sentence that ends at most some tokens before the cut; the cut if none does."""
    for place in range(cut, max(0, cut - _NEAR), -1):
        if model.detokenize(text[place - 1 : place]).rstrip(b" ").endswith(_ENDS):
            return place
    return cut


def _ask(context: Context, prompt: Tokens, answer: Tokens) -> tuple[float, int]:
    """(log-probability of the answer after a prompt, rank of its first token)."""
    total, rank = 0.0, 0
    rows: list[NDArray[np.float64]] = []
    for row in teacher_forced(context, prompt.tolist(), answer.tolist()):
        rows.append(row)
        if len(rows) == len(answer):
            break
    for place, (token, logprobs) in enumerate(zip(answer, rows, strict=True)):
        total += float(logprobs[token])
        if place == 0:
            rank = 1 + int(np.count_nonzero(logprobs > logprobs[token]))
    return total, rank
