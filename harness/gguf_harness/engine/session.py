"""A loaded model: tokens in, logits out. Decoding follows llama-perplexity, so that numbers can be compared."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.batch import Batch
from gguf_harness.engine.language_head import LanguageHead, logits_of
from gguf_harness.engine.logs import EngineLog, MemoryBreakdown, parse_memory
from gguf_harness.engine.parameters import context_parameters
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.vocabulary import Vocabulary
from gguf_harness.errors import CorpusError, EngineError

if TYPE_CHECKING:
    from gguf_harness.engine.taps import Taps

__all__ = ["LogitsBlock", "Session", "Tokens", "offloads"]

Tokens = NDArray[np.int32]


def offloads(settings: SessionSettings) -> bool:
    """Whether a GPU takes part in decoding with these settings."""
    llama_cpp.llama_backend_init()
    return settings.n_gpu_layers != 0 and bool(llama_cpp.llama_supports_gpu_offload())


@dataclass(frozen=True, slots=True)
class LogitsBlock:
    """Logits of consecutive scored positions of one window.

    Attributes:
        window: index of the window.
        row: index of the first row among the window's scored positions.
        logits: [rows, vocabulary] float32, a view that is valid until the next block is asked for.
        targets: [rows] the tokens that these logits predict.
    """

    window: int
    row: int
    logits: NDArray[np.float32]
    targets: Tokens


class Session:
    """A model and a context of llama.cpp.

    Args:
        files: the GGUF file, or all splits of one in order.
        settings: how to run it.
        taps: tensors to read or patch during every decode.
        model_of: a session of the same files whose loaded model is used again; close it last.

    Raises:
        EngineError: llama.cpp refused the file or the settings; the message has its own words.
    """

    def __init__(
        self,
        files: Sequence[Path],
        settings: SessionSettings,
        taps: Taps | None = None,
        *,
        model_of: Session | None = None,
    ) -> None:
        self.settings = settings
        self.files = tuple(files)
        self._taps = taps
        self._owns_model = model_of is None
        self._model: Any = model_of._model if model_of is not None else None  # noqa: SLF001 - another of this class
        self._context: Any = None
        self._batch: Any = None
        self._encoded = False
        self._log = EngineLog()
        with self._log.capture():
            if self._owns_model:
                self._load_model()
            self._create_context()
        # One for all contexts of a model.
        head = model_of._head if model_of is not None else None  # noqa: SLF001
        self._head: LanguageHead = head or LanguageHead(self._model, self.files[0].name)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = Vocabulary.of(self._vocab)

    def _load_model(self) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = self.settings.n_gpu_layers
        names = [os.fsencode(file) for file in self.files]
        if len(names) == 1:
            self._model = llama_cpp.llama_model_load_from_file(names[0], parameters)
        else:
            paths = (ctypes.c_char_p * len(names))(*names)
            self._model = llama_cpp.llama_model_load_from_splits(paths, len(names), parameters)
        if not self._model:
            raise EngineError(
                f"llama.cpp could not load {self.files[0].name}: {self._log.last_problem()}",
                "Check the file with `gguf-harness inspect`, and that this llama.cpp knows the architecture.",
            )

    def _create_context(self) -> None:
        parameters = context_parameters(self.settings, self._model)
        if self._taps is not None:
            parameters.cb_eval = self._taps.callback
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            reason = self._log.last_problem()
            self.close()
            raise EngineError(
                f"llama.cpp could not create a context of {self.settings.n_seq} x {self.settings.n_ctx} tokens"
                f" for {self.files[0].name}: {reason}",
                "Use a smaller --gguf-ctx, or check that there is enough memory.",
            )
        self._batch = Batch(self.settings.n_batch)
        llama_cpp.llama_set_n_threads(self._context, self.settings.threads, self.settings.threads)

    def another(self, taps: Taps | None = None) -> Session:
        """A second context of the same model, with the same settings and taps of its own; close it before this one."""
        return Session(self.files, self.settings, taps, model_of=self)

    @property
    def model(self) -> Any:
        """llama.cpp's pointer to the model, for its functions that have no method here; None once closed."""
        return self._model

    @property
    def context(self) -> Any:
        """llama.cpp's pointer to the context, likewise."""
        return self._context

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest text that the model was trained on, as the file says."""
        return int(llama_cpp.llama_model_n_ctx_train(self._model))

    @property
    def memory(self) -> MemoryBreakdown:
        """Bytes of weights, KV cache and compute buffers, as llama.cpp reported them while loading."""
        return parse_memory(self._log.lines)

    @property
    def has_encoder(self) -> bool:
        """Whether `encode` comes first."""
        return bool(llama_cpp.llama_model_has_encoder(self._model))

    @property
    def has_decoder(self) -> bool:
        """Whether there is anything to decode with: an encoder alone predicts no tokens."""
        return bool(llama_cpp.llama_model_has_decoder(self._model))

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        if self._model is not None and self._owns_model:
            llama_cpp.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- text ---------------------------------------------------------------------------------------------------

    def tokenize(self, text: bytes | str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Tokens of a text. Special tokens are added as the vocabulary says; their text is not parsed unless asked."""
        raw = text.encode() if isinstance(text, str) else text
        buffer = np.empty(len(raw) + 8, dtype=np.int32)
        n = self._tokenize_into(raw, buffer, add_special, parse_special)
        if n < 0:
            buffer = np.empty(-n, dtype=np.int32)
            n = self._tokenize_into(raw, buffer, add_special, parse_special)
        if n < 0:
            raise CorpusError(f"llama.cpp could not tokenize a text of {len(raw)} bytes.")
        return buffer[:n].copy()

    def _tokenize_into(self, raw: bytes, buffer: Tokens, add_special: bool, parse_special: bool) -> int:
        pointer = buffer.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token))
        n = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), pointer, len(buffer), add_special, parse_special)
        return int(n)

    def detokenize(self, tokens: Sequence[int] | Tokens, *, special: bool = False) -> bytes:
        """The bytes that tokens stand for (a token may end inside a character); special tokens have none unless asked.

        Token by token, as llama.cpp's server does it: its llama_detokenize drops spaces before punctuation with some
        vocabularies.
        """
        return b"".join(self._piece(int(token), special) for token in tokens)

    def _piece(self, token: int, special: bool) -> bytes:
        size = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
        raise EngineError(f"llama.cpp could not say what token {token} stands for.")

    # -- decoding -----------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all decoded tokens; what was encoded stays."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def encode(self, tokens: Tokens) -> None:
        """Run the encoder: what it makes of its input is what sequence 0 is decoded with, until the next call.

        All tokens are forgotten: they were decoded with another input.

        Args:
            tokens: [n] token ids, n at most `n_ubatch`: an encoder sees all of its input at once.

        Raises:
            EngineError: a model without an encoder, or an input of no tokens or too many.
        """
        if not self.has_encoder:
            raise EngineError(f"{self.files[0].name} has no encoder.", "Decode its tokens instead: they need no input.")
        n, most = len(tokens), int(llama_cpp.llama_n_ubatch(self._context))
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
        # llama.cpp aborts on a decoder whose input is missing, and returns NaN for a sequence without one.
        if not self.has_decoder:
            raise EngineError(
                f"{self.files[0].name} is an encoder alone: it predicts no tokens and has no logits.",
                "Use encode(), with taps of the encoder.",
            )
        if self.has_encoder and not (self._encoded and not sequences.any()):
            raise EngineError(
                f"The decoder of {self.files[0].name} has no encoded input for these sequences.",
                "Call encode() first, and decode sequence 0 alone: texts cannot be scored without an input.",
            )

    def decode(self, tokens: Tokens, positions: Tokens, sequences: Tokens, outputs: NDArray[np.bool_]) -> None:
        """Run one batch.

        Args:
            tokens: [n] token ids, n at most `n_batch`.
            positions: [n] position of each token in its sequence.
            sequences: [n] sequence of each token.
            outputs: [n] true where logits are wanted.

        Raises:
            EngineError: llama.cpp could not; a model that cannot decode, or has to encode something first.
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
        if self._taps is not None:
            self._taps.begin(encoder=verb == "encode")
        run = llama_cpp.llama_encode if verb == "encode" else llama_cpp.llama_decode
        status = run(self._context, batch)
        llama_cpp.llama_synchronize(self._context)
        # First: of a batch that was refused no tap can be there.
        if status != 0:
            raise EngineError(
                f"llama.cpp could not {verb} a batch of {len(tokens)} tokens (llama_{verb} returned {status})."
            )
        if self._taps is not None:
            self._taps.finish()

    def output_logits(self, rows: int) -> NDArray[np.float32]:
        """[rows, vocabulary] logits of the last batch, in batch order: a view, valid until the next decode.

        Raises:
            NoLanguageHead: the model computes none.
        """
        self.require_language_head()
        return logits_of(self._context, rows, self.vocabulary.n_tokens)

    def require_language_head(self) -> None:
        """Make sure that the model predicts tokens.

        Raises:
            NoLanguageHead: it does not.
        """
        self._head.require()

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """[n, vocabulary] logits after every token of one sequence, a copy. The cache is cleared first."""
        self.clear()
        blocks = []
        for start in range(0, len(tokens), self.settings.n_batch):
            part = tokens[start : start + self.settings.n_batch]
            positions = np.arange(start, start + len(part), dtype=np.int32)
            self.decode(part, positions, np.zeros_like(positions), np.ones(len(part), dtype=np.bool_))
            blocks.append(self.output_logits(len(part)).copy())
        return np.concatenate(blocks)

    def score(self, windows: Tokens, start: int = 0, stop: int | None = None) -> Iterator[LogitsBlock]:
        """Decode windows of a corpus and yield the logits of their second halves.

        As llama-perplexity does it: each window stands alone, BOS replaces its first token where the vocabulary
        asks for it, and positions n_ctx/2 .. n_ctx-2 predict the tokens after them. `n_seq` windows share a batch;
        a window longer than a batch is decoded in several.

        Args:
            windows: [windows, n_ctx] tokens.
            start: first window to decode.
            stop: the window after the last one; None for all.
        """
        stop, n_ctx = len(windows) if stop is None else stop, windows.shape[1]
        for first in range(start, stop, self.settings.n_seq):
            group = range(first, min(first + self.settings.n_seq, stop))
            self.clear()
            for offset in range(0, n_ctx, self.settings.n_batch):
                length = min(self.settings.n_batch, n_ctx - offset)
                yield from self._score_slice(windows, group, offset, length)

    def _score_slice(self, windows: Tokens, group: range, offset: int, length: int) -> Iterator[LogitsBlock]:
        n_ctx = windows.shape[1]
        first = n_ctx // 2
        tokens = windows[group.start : group.stop, offset : offset + length].copy()
        if offset == 0 and self.vocabulary.add_bos:
            tokens[:, 0] = self.vocabulary.bos
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
        """Decode one text in an empty context; only the logits of its last token are there afterwards."""
        self.clear()
        for start in range(0, len(tokens), self.settings.n_batch):
            part = tokens[start : start + self.settings.n_batch]
            positions = np.arange(start, start + len(part), dtype=np.int32)
            self.decode(part, positions, np.zeros_like(positions), positions == len(tokens) - 1)

    def generate(self, prompt: Tokens, limit: int) -> Iterator[int]:
        """Greedy continuation of a prompt, token by token, until an end-of-generation token or `limit` tokens."""
        self.prefill(prompt)
        position = len(prompt)
        zero, one = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.bool_)
        for count in itertools.count(1):
            token = int(self.output_logits(1)[0].argmax())
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                return
            yield token
            if count >= limit or position >= self.settings.n_ctx:
                return
            self.decode(np.array([token], dtype=np.int32), zero + position, zero, one)
            position += 1
