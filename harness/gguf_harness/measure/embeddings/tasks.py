"""The embedding space of a model: its token embeddings, words, and prompts in context. Runs in a worker.

Token embeddings are read from the file, dequantized in blocks; words are tokenized by llama.cpp, and prompts go through
its forward pass. Memory for d dimensions: a sample of the vocabulary, 4 s d bytes with s = 16384 at most; plus what
`nearest_by_cosine` needs for 1000 queries, or `align` for two such samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import Lanes
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.gguf.weights import Weights
from gguf_harness.measure.prompt_inputs import longest_text
from gguf_harness.metrics.blas import blas_threads
from gguf_harness.metrics.embedding_estimates import pack
from gguf_harness.metrics.geometry import align, variance_share
from gguf_harness.metrics.kernels.directions import directions
from gguf_harness.metrics.kernels.nearest import Block, nearest_by_cosine

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.inputs.prompts import Prompt

__all__ = [
    "AlignRequest",
    "ContextRequest",
    "EmbeddingRequest",
    "align_embeddings",
    "describe_matrix",
    "measure_contexts",
    "measure_embeddings",
    "measure_words",
]

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]

MATRIX: Final = "token_embd.weight"
_NEIGHBOURS: Final = 10
_SAMPLE: Final = 16384
_QUERIES: Final = 1000
_BLOCK_ROWS: Final = 1024
_MAP_TOKENS: Final = 200
_TOKENIZED: Final = 20000


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A model's token embeddings to describe.

    Attributes:
        files: the GGUF file or its splits.
        settings: how to load it.
        words: to look up.
    """

    files: tuple[Path, ...]
    settings: SessionSettings
    words: tuple[str, ...]


def measure_embeddings(worker: WorkerContext, request: EmbeddingRequest) -> Arrays:
    """The space of a model's token embeddings, and the words in it.

    Returns:
        queries: [q] token ids, a random sample; zero vectors are left out.
        neighbours, neighbour_cosines: [q, 10] of each, nearest first.
        pair_cosines: [pairs] of random pairs of tokens, NaN if one is zero.
        variance_pc1, variance_pc10: packed estimates.
        matrix_type: [] how the matrix is stored, such as Q6_K.
        word_vectors, word_tokens: [words, d] means of tokens, [words] their number; 0 if the model lacks a word.
        map_tokens, map_texts, map_vectors: [m] ids of common tokens, [m] their texts, [m, d].

    Raises:
        ModelError: a file without token embeddings, or of a type that cannot be dequantized.
    """
    weights = Weights(request.files)
    with blas_threads(request.settings.threads, weights.shape(MATRIX)[-1]):
        arrays = describe_matrix(weights, worker.progress)
    model = worker.model(request.files, request.settings.n_gpu_layers)
    arrays |= _words(model, weights, request.words)
    return arrays | _common_tokens(model, weights, {word.strip() for word in request.words})


def measure_words(worker: WorkerContext, request: EmbeddingRequest) -> Arrays:
    """Only the words, without the other results of `measure_embeddings`.

    Returns:
        word_vectors, word_tokens: as there.

    Raises:
        ModelError: a file without token embeddings, or of a type that cannot be dequantized.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    return _words(model, Weights(request.files), request.words)


def _one_text(settings: SessionSettings) -> SessionSettings:
    return replace(settings, n_batch=settings.n_ctx, n_ubatch=settings.n_ctx)


# -- the matrix -------------------------------------------------------------------------------------------------------


def sample_rows(count: int) -> Ints:
    """The random sample of a vocabulary of this size: the same for all models with this size."""
    return np.random.default_rng(0).permutation(count)[:_SAMPLE]


def read_rows(weights: Weights, rows: Ints) -> Float32:
    """[n, d] rows of the token embeddings, in the given order."""
    count = weights.count_rows(MATRIX)
    if 4 * len(rows) < count:
        return np.concatenate([weights.rows(MATRIX, row, row + 1) for row in rows.tolist()] or [_none(weights)])
    places = np.full(count, -1, dtype=np.int64)
    # A row may be requested several times: read each once.
    distinct, inverse = np.unique(rows, return_inverse=True)
    places[distinct] = np.arange(len(distinct))
    values = np.empty((len(distinct), weights.shape(MATRIX)[-1]), dtype=np.float32)
    for start, block in matrix_blocks(weights):
        wanted = places[start : start + len(block)]
        values[wanted[wanted >= 0]] = block[wanted >= 0]
    return values if np.array_equal(inverse, np.arange(len(rows))) else values[inverse]


def _none(weights: Weights) -> Float32:
    return np.empty((0, weights.shape(MATRIX)[-1]), dtype=np.float32)


def matrix_blocks(weights: Weights, progress: ProgressCallback | None = None) -> Iterator[Block]:
    """All token embeddings, a block at a time."""
    count = weights.count_rows(MATRIX)
    for start in range(0, count, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, count)
        yield start, weights.rows(MATRIX, start, stop)
        if progress is not None:
            progress(stop, count)


def describe_matrix(weights: Weights, progress: ProgressCallback | None = None) -> Arrays:
    """The results of `measure_embeddings` for the matrix only; needs no llama.cpp.

    Peak memory for s = min(16384, rows), q = 1000 queries, blocks of b = 1024 rows and d dimensions:
    4 s d + max(8 (4 b d + 3 d^2), 4 (2 q d + 5 b d + 5 q b)) bytes, whatever the number of rows.
    """
    rows = sample_rows(weights.count_rows(MATRIX))
    sample = read_rows(weights, rows)
    variance = {
        f"variance_pc{count}": pack(variance_share(sample, count, f"embedding_variance_pc{count}")) for count in (1, 10)
    }
    pairs = len(rows) // 2
    cosines = np.empty(pairs, dtype=np.float32)
    for start in range(0, pairs, _BLOCK_ROWS):
        chosen = slice(2 * start, 2 * min(start + _BLOCK_ROWS, pairs))
        units, valid = directions(sample[chosen])
        products = np.einsum("ij,ij->i", units[::2], units[1::2])
        cosines[start : start + len(products)] = np.where(valid[::2] & valid[1::2], products, np.nan)
    valid = directions(sample[:_QUERIES])[1]
    queries, own = sample[:_QUERIES][valid].copy(), rows[:_QUERIES][valid]
    del sample
    near = nearest_by_cosine(queries, matrix_blocks(weights, progress), _count_neighbours(weights), own)
    return {
        "queries": own,
        "neighbours": near.rows,
        "neighbour_cosines": near.cosines,
        "pair_cosines": cosines,
        "matrix_type": np.array(weights.type(MATRIX)),
        **variance,
    }


def _count_neighbours(weights: Weights) -> int:
    return max(2, min(_NEIGHBOURS, weights.count_rows(MATRIX) // 4))


# -- words ------------------------------------------------------------------------------------------------------------


def _words(model: Model, weights: Weights, words: Sequence[str]) -> Arrays:
    tokens = [_word_tokens(model, word) for word in words]
    flat = np.concatenate([*tokens, np.empty(0, dtype=np.int32)]).astype(np.int64)
    rows = read_rows(weights, flat)
    lengths = np.array([len(each) for each in tokens], dtype=np.int64)
    vectors = np.zeros((len(words), rows.shape[1]), dtype=np.float32)
    ends = np.cumsum(lengths)
    for place, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        if length:
            vectors[place] = rows[end - length : end].mean(axis=0)
    return {"word_vectors": vectors, "word_tokens": lengths}


def _word_tokens(model: Model, word: str) -> Tokens:
    """Tokens of a word as in a text: after a space, unless it takes fewer tokens without; empty if not writable.

    Some vocabularies add a leading space themselves.
    """
    written = [model.tokenize(text, add_special=False) for text in (f" {word}", word)]
    tokens = min(written, key=len)
    back = model.detokenize(tokens).decode("utf-8", "replace").strip()
    # Vocabularies without upper case still contain the word.
    return tokens if back.casefold() == word.casefold() else tokens[:0]


def _common_tokens(model: Model, weights: Weights, known: set[str]) -> Arrays:
    """Tokens that are words, by id: vocabularies list the most common pieces first."""
    words: dict[int, str] = {}
    seen = set(known)
    for token in range(min(model.vocabulary.n_tokens, weights.count_rows(MATRIX), _TOKENIZED)):
        text = model.detokenize([token]).decode("utf-8", "replace").strip()
        if len(text) > 2 and text.isalpha() and text not in seen:
            seen.add(text)
            words[token] = text
        if len(words) == _MAP_TOKENS:
            break
    ids = np.array([*words], dtype=np.int64)
    return {
        "map_tokens": ids,
        "map_texts": np.array([*words.values()], dtype=np.str_),
        "map_vectors": read_rows(weights, ids),
    }


# -- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """Prompts to read in context.

    Attributes:
        files: the GGUF file or its splits.
        architecture: `general.architecture`.
        n_layer: number of layers.
        settings: how to run it; each prompt is read alone in a context of `n_ctx` tokens.
        prompts: texts; chats with their turns joined as plain text.
    """

    files: tuple[Path, ...]
    architecture: str
    n_layer: int
    settings: SessionSettings
    prompts: tuple[Prompt, ...]


def measure_contexts(worker: WorkerContext, request: ContextRequest) -> Arrays:
    """Vectors for each prompt, of each kind that the model has.

    Returns:
        prompt_tokens: [prompts] number of tokens, 0 for a prompt that does not fit into the context.
        prompt_mean, prompt_last: [prompts, d] of the hidden states after the final norm, of the encoder if there is
        one; or, for embedding models, prompt_pooled: [prompts, d] as llama.cpp pools them. Zero if there is none.

    Raises:
        TapNotFound: llama.cpp does not name the final hidden state in this architecture.
    """
    from gguf_harness.engine.pooling import embed, pools

    context = worker.context(request.files, _one_text(request.settings))
    texts = [context.model.tokenize(prompt.plain()) for prompt in request.prompts]
    room = min(context.settings.n_ctx, longest_text(context.model, request.settings))
    fitting = [tokens if len(tokens) <= room else tokens[:0] for tokens in texts]
    arrays: Arrays = {"prompt_tokens": np.array([len(tokens) for tokens in fitting], dtype=np.int64)}
    if pools(context):
        return arrays | {"prompt_pooled": _stacked([embed(context, each) if len(each) else None for each in fitting])}
    states = _final_states(worker, context.model, request, fitting)
    return arrays | {
        "prompt_mean": _stacked([None if state is None else state.mean(axis=0) for state in states]),
        "prompt_last": _stacked([None if state is None else state[-1] for state in states]),
    }


def _final_states(
    worker: WorkerContext, model: Model, request: ContextRequest, texts: Sequence[Tokens]
) -> list[Float32 | None]:
    """[tokens, d] after the final norm, of each non-empty text; of the encoder if there is one.

    On the CPU, contexts of one thread each work side by side.
    """
    settings = _one_text(request.settings)
    count = 1 if model.offloads else min(settings.threads, max(1, len(texts)))
    settings = replace(settings, threads=settings.threads // count)

    def read(lane: _Reading, tokens: Tokens) -> Float32 | None:
        return lane.read(tokens) if len(tokens) else None

    with Lanes(count, lambda: _Reading(model, settings, request)) as lanes:
        return list(lanes.map(read, texts, worker.progress))


class _Reading(contextlib.AbstractContextManager["_Reading"]):
    """A context of a loaded model that returns final hidden states."""

    def __init__(self, model: Model, settings: SessionSettings, request: ContextRequest) -> None:
        from gguf_harness.engine.context import Context
        from gguf_harness.engine.taps import Taps

        self._parts: list[Float32] = []
        tap = "encoder.ln_final.normalized" if model.has_encoder else "ln_final.normalized"
        taps = Taps(request.architecture, request.n_layer, read={tap: self._keep})
        self._context = Context(model, settings, taps)

    def _keep(self, _: str, values: Float32) -> None:
        self._parts.append(values.copy())

    def read(self, tokens: Tokens) -> Float32:
        """[tokens, d] of a text in an empty context."""
        self._parts.clear()
        if self._context.model.has_encoder:
            self._context.encode(tokens)
        else:
            positions = np.arange(len(tokens), dtype=np.int32)
            self._context.clear()
            self._context.decode(tokens, positions, np.zeros_like(positions), np.ones(len(tokens), dtype=np.bool_))
        return np.concatenate(self._parts)

    def __exit__(self, *_: object) -> None:
        self._context.close()


def _stacked(vectors: Sequence[Float32 | None]) -> Float32:
    """[n, d], zero for missing vectors."""
    d = next((len(vector) for vector in vectors if vector is not None), 0)
    return np.stack([np.zeros(d, dtype=np.float32) if vector is None else vector for vector in vectors])


# -- a candidate's space over the reference's -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AlignRequest:
    """A candidate's token embeddings to align with those of a reference with the same vocabulary.

    Attributes:
        files: the candidate's.
        reference: the reference's.
        vectors: [m, d] of the candidate, to be shown in the reference's space.
        threads: to compute with, at most.
    """

    files: tuple[Path, ...]
    reference: tuple[Path, ...]
    vectors: Float32
    threads: int


def align_embeddings(worker: WorkerContext, request: AlignRequest) -> Arrays:
    """Procrustes' error and CKA over a sample of the tokens.

    Returns:
        procrustes_error, embedding_cka: packed estimates.
        map_vectors: [m, D] the vectors in the reference's space.
    """
    sides = [Weights(request.files), Weights(request.reference)]
    count = min(side.count_rows(MATRIX) for side in sides)
    rows = sample_rows(count)
    candidate, reference = (read_rows(side, rows) for side in sides)
    worker.progress(1, 2)
    with blas_threads(request.threads, max(candidate.shape[1], reference.shape[1])):
        aligned = align(candidate, reference)
    worker.progress(2, 2)
    return {
        "procrustes_error": pack(aligned.procrustes_error),
        "embedding_cka": pack(aligned.cka),
        "map_vectors": aligned.apply(request.vectors).astype(np.float32),
    }
