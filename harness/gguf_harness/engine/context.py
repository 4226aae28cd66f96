"""A context of a loaded model: tokens in, logits out.

Decoding follows llama-perplexity, so that numbers can be compared.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.batch import Batch
from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.language_head import logits_of
from gguf_harness.engine.logs import EngineLog, MemoryBreakdown, parse_memory
from gguf_harness.engine.model import Model, Tokens
from gguf_harness.engine.parameters import context_parameters
from gguf_harness.engine.settings import CACHE_BLOCK, NO_ROTATION, SessionSettings, first_scored
from gguf_harness.errors import EngineError

if TYPE_CHECKING:
    from gguf_harness.engine.taps import Taps

__all__ = ["MOST_OUTPUT_BYTES", "Context", "LogitsBlock"]

MOST_OUTPUT_BYTES: Final = 256 * 2**20
"""Logits of one batch of a scored window: llama.cpp keeps them all, which for 2048 tokens and a vocabulary of 256,000
would be 2 GB."""

_OPENING: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class LogitsBlock:
    """Logits of consecutive scored positions of one window.

    Attributes:
        window: index of the window.
        row: index of the first row among the window's scored positions.
        logits: [rows, vocabulary] float32, a view that is valid until the next block is requested.
        targets: [rows] the tokens that these logits predict.
    """

    window: int
    row: int
    logits: NDArray[np.float32]
    targets: Tokens


class Context:
    """llama.cpp's `llama_context`: a KV cache and decode buffers, on a loaded model.

    Args:
        model: whose weights it uses; close it last.
        settings: how to run it, with which adapters; the model is where it is, whatever they say of layers on the GPU.
        taps: tensors to read or patch during every decode.
        full_windows: whether layers with a sliding window cache all tokens, not only those of the window.

    Attributes:
        model: as given.
        settings: as given.
        taps: as given.

    Raises:
        EngineError: llama.cpp refused the settings or an adapter, with its reason; or such a context has no such taps.
    """

    def __init__(
        self, model: Model, settings: SessionSettings, taps: Taps | None = None, *, full_windows: bool = True
    ) -> None:
        self.model = model
        self.settings = settings
        self.taps = taps
        self._encoded = False
        _check_blocks(model, settings)
        parameters = context_parameters(settings, model.pointer, full_windows=full_windows)
        if taps is not None:
            taps.require_possible(settings)
            parameters.cb_eval = taps.callback
        model.adapters.load(settings.adapters)
        log = EngineLog()
        # llama.cpp reads it from the environment, which threads share.
        with _OPENING, _rotation(settings.rotate_kv), log.capture():
            self._pointer: Any = llama_cpp.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise EngineError(
                f"llama.cpp could not create a context of {settings.n_seq} x {settings.n_ctx} tokens"
                f" for {model.name}: {log.last_problem()}",
                "Use a smaller --gguf-ctx, or check that there is enough memory.",
            )
        self._memory = parse_memory(log.lines)
        self._batch = Batch(settings.n_batch)
        llama_cpp.llama_set_n_threads(self._pointer, settings.threads, settings.threads)
        if settings.adapters:
            try:
                model.adapters.apply(self._pointer, settings.adapters)
            except EngineError:
                self.close()
                raise

    @property
    def pointer(self) -> Any:
        """llama.cpp's `llama_context *`, for functions without a method here; None once closed."""
        return self._pointer

    @property
    def memory(self) -> MemoryBreakdown:
        """Bytes of weights, and of this context's KV cache and compute buffers, as llama.cpp reported them.

        Weights are the model's and those of the adapters. What adapters take of the compute buffers is not among them:
        llama.cpp makes these again at the first decode, and does not say how large.
        """
        weights, adapters = self.model.memory.weights, self.model.adapters.count_bytes(self.settings.adapters)
        return replace(self._memory, weights=None if weights is None else weights + adapters)

    @property
    def n_ubatch(self) -> int:
        """Most tokens computed at once."""
        return int(llama_cpp.llama_n_ubatch(self._pointer))

    def close(self) -> None:
        """Free the cache and the buffers; the model stays loaded. May be called twice."""
        if self._pointer is not None:
            llama_cpp.llama_free(self._pointer)
        self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clear(self) -> None:
        """Clear all decoded tokens; encoded input is kept."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._pointer), True)

    def encode(self, tokens: Tokens) -> None:
        """Run the encoder: sequence 0 is decoded with its output until the next call.

        All decoded tokens are cleared: they depended on the previous input.

        Args:
            tokens: [n] token ids, n at most `n_ubatch`: an encoder sees all of its input at once.

        Raises:
            EngineError: a model without an encoder, or an input of no tokens or too many.
        """
        if not self.model.has_encoder:
            raise EngineError(
                f"{self.model.name} has no encoder.", "Decode its tokens instead: they need no encoder input."
            )
        n, most = len(tokens), self.n_ubatch
        if not 1 <= n <= most:
            raise EngineError(
                f"An input of {n} tokens cannot be encoded, expected 1 to {most}.",
                "Raise n_ubatch, n_batch and n_ctx to encode more at once.",
            )
        self.clear()
        self._encoded = False
        positions = np.arange(n, dtype=np.int32)
        self._run("encode", tokens, positions, np.zeros_like(positions), np.ones(n, dtype=np.bool_))
        self._encoded = True

    def _require_decodable(self, sequences: Tokens) -> None:
        # llama.cpp aborts if a decoder's input is missing, and returns NaN for a sequence without one.
        if not self.model.has_decoder:
            raise EngineError(
                f"{self.model.name} is only an encoder: it predicts no tokens and has no logits.",
                "Use encode(), with taps of the encoder.",
            )
        if self.model.has_encoder and not (self._encoded and not sequences.any()):
            raise EngineError(
                f"The decoder of {self.model.name} has no encoded input for these sequences.",
                "Call encode() first, and decode only sequence 0: texts cannot be scored without an input.",
            )

    def decode(self, tokens: Tokens, positions: Tokens, sequences: Tokens, outputs: NDArray[np.bool_]) -> None:
        """Run one batch.

        Args:
            tokens: [n] token ids, n at most `n_batch`.
            positions: [n] position of each token in its sequence.
            sequences: [n] sequence of each token.
            outputs: [n] true where logits are wanted.

        Raises:
            EngineError: llama.cpp failed, or the model cannot decode, or needs an encoded input first.
        """
        self._require_decodable(sequences)
        self._run("decode", tokens, positions, sequences, outputs)

    def _run(
        self,
        verb: Literal["encode", "decode"],
        tokens: Tokens,
        positions: Tokens,
        sequences: Tokens,
        outputs: NDArray[np.bool_],
    ) -> None:
        batch = self._batch.fill(tokens, positions, sequences, outputs)
        if self.taps is not None:
            self.taps.begin(encoder=verb == "encode")
        run = llama_cpp.llama_encode if verb == "encode" else llama_cpp.llama_decode
        status = run(self._pointer, batch)
        llama_cpp.llama_synchronize(self._pointer)
        # Checked first: a refused batch has no taps.
        if status != 0:
            raise EngineError(
                f"llama.cpp could not {verb} a batch of {len(tokens)} tokens (llama_{verb} returned {status})."
            )
        if self.taps is not None:
            self.taps.finish()

    def output_logits(self, rows: int) -> NDArray[np.float32]:
        """[rows, vocabulary] logits of the last batch, in batch order: a view, valid until the next decode.

        Raises:
            NoLanguageHead: the model computes no logits.
        """
        self.model.require_language_head()
        return logits_of(self._pointer, rows, self.model.vocabulary.n_tokens)

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """[n, vocabulary] logits after every token of one sequence, a copy. The cache is cleared first."""
        every = np.ones(len(tokens), dtype=np.bool_)
        return np.concatenate([self.output_logits(rows).copy() for rows in self._decode_alone(tokens, every)])

    def score(
        self,
        windows: Tokens,
        start: int = 0,
        stop: int | None = None,
        score_from: int | None = None,
        most_bytes: int = MOST_OUTPUT_BYTES,
    ) -> Iterator[LogitsBlock]:
        """Decode windows of a corpus and yield the logits of their second halves.

        As llama-perplexity does it: each window is independent, BOS replaces its first token if the vocabulary requires
        it, and positions n_ctx/2 .. n_ctx-2 predict the tokens after them. `n_seq` windows share a batch; a window
        longer than a batch is decoded in several, and so is one whose logits would take more than `most_bytes`.

        Args:
            windows: [windows, n_ctx] tokens.
            start: first window to decode.
            stop: the window after the last one; None for all.
            score_from: first position whose logits are yielded, below n_ctx - 1; None for n_ctx/2.
            most_bytes: that the logits of a batch may take.
        """
        stop, n_ctx = len(windows) if stop is None else stop, windows.shape[1]
        rows = max(1, most_bytes // (4 * self.model.vocabulary.n_tokens))
        scored = first_scored(n_ctx, score_from)
        n_seq = max(1, min(self.settings.n_seq, rows // max(1, n_ctx - 1 - scored)))
        for first in range(start, stop, n_seq):
            group = range(first, min(first + n_seq, stop))
            self.clear()
            for part in _slices(n_ctx, self.settings, scored, rows // len(group)):
                yield from self._score_slice(windows, group, part.start, len(part), scored)

    def _score_slice(
        self, windows: Tokens, group: range, offset: int, length: int, first: int
    ) -> Iterator[LogitsBlock]:
        n_ctx = windows.shape[1]
        tokens = windows[group.start : group.stop, offset : offset + length].copy()
        if offset == 0 and self.model.vocabulary.add_bos:
            tokens[:, 0] = self.model.vocabulary.bos
        positions = np.tile(np.arange(offset, offset + length, dtype=np.int32), len(group))
        # The last position predicts a token of the next window: nothing to compare it with.
        outputs = (positions >= first) & (positions < n_ctx - 1)
        sequences = np.repeat(np.arange(len(group), dtype=np.int32), length)
        self.decode(tokens.ravel(), positions, sequences, outputs)
        rows = int(outputs.sum()) // len(group)
        if rows == 0:
            return
        logits = self.output_logits(rows * len(group))
        row = max(offset, first) - first
        targets = windows[:, first + row + 1 : first + row + 1 + rows]
        for index, window in enumerate(group):
            yield LogitsBlock(window, row, logits[index * rows : (index + 1) * rows], targets[window])

    def prefill(self, tokens: Tokens) -> None:
        """Decode one text in an empty context; only the logits of its last token are available afterwards."""
        for _ in self._decode_alone(tokens, np.arange(len(tokens)) == len(tokens) - 1):
            pass

    def _decode_alone(self, tokens: Tokens, outputs: NDArray[np.bool_]) -> Iterator[int]:
        """Decode one text in an empty context, batch by batch; yields the number of tokens of each."""
        self.clear()
        for start in range(0, len(tokens), self.settings.n_batch):
            batch = slice(start, start + self.settings.n_batch)
            part = tokens[batch]
            positions = np.arange(start, start + len(part), dtype=np.int32)
            self.decode(part, positions, np.zeros_like(positions), outputs[batch])
            yield len(part)

    def generate(self, prompt: Tokens, limit: int) -> Iterator[int]:
        """Greedy continuation of a prompt, token by token, until an end-of-generation token or `limit` tokens."""
        self.prefill(prompt)
        position = len(prompt)
        zero, one = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.bool_)
        for count in itertools.count(1):
            token = int(self.output_logits(1)[0].argmax())
            if self.model.ends_generation(token):
                return
            yield token
            if count >= limit or position >= self.settings.n_ctx:
                return
            self.decode(np.array([token], dtype=np.int32), zero + position, zero, one)
            position += 1


def _slices(n_ctx: int, settings: SessionSettings, scored: int, rows: int) -> Iterator[range]:
    """A window's positions by batch: of at most `n_batch`, and from the first that is scored, of `rows` if possible.

    A batch ends where one of llama.cpp's physical batches does, so that these, and the numbers, are always the same.
    """
    whole = settings.n_batch % settings.n_ubatch == 0
    few = max(settings.n_ubatch, rows // settings.n_ubatch * settings.n_ubatch) if whole else settings.n_batch
    start = 0
    while start < n_ctx:
        stop = min(start + settings.n_batch, n_ctx)
        if stop - max(start, scored) > rows:
            stop = min(stop, start + few)
        yield range(start, stop)
        start = stop


@contextlib.contextmanager
def _rotation(allowed: bool) -> Iterator[None]:
    """The environment that tells llama.cpp whether it may rotate quantized K and V."""
    before = os.environ.get(NO_ROTATION)
    os.environ[NO_ROTATION] = "0" if allowed else "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_ROTATION]
        else:
            os.environ[NO_ROTATION] = before


def _check_blocks(model: Model, settings: SessionSettings) -> None:
    """Refuse settings that llama.cpp refuses only with flash attention.

    Without it, it aborts or mixes blocks of heads.
    """
    size = model.d_key if settings.has_quantized_k and settings.flash_attention == "off" else None
    if size is not None and size % CACHE_BLOCK:
        raise EngineError(
            f"A K cache of type {settings.cache_type_k} has blocks of {CACHE_BLOCK} values, which do not divide the"
            f" {size} of a head's keys in {model.name}.",
            "Keep the K cache of this model in f16, bf16 or f32.",
        )
