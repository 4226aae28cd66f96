"""A loaded model: its weights and its vocabulary. Contexts that decode with it are opened on it (`engine.context`)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.language_head import LanguageHead
from gguf_harness.engine.loaded_adapters import LoadedAdapters
from gguf_harness.engine.logs import EngineLog, parse_memory
from gguf_harness.engine.vocabulary import Vocabulary
from gguf_harness.errors import CorpusError, EngineError

__all__ = ["Model", "Tokens", "offloads"]

Tokens = NDArray[np.int32]

_LONGEST_VALUE: Final = 256
"""Most bytes read of a metadata value as text; longer values are lists or templates."""


def offloads(n_gpu_layers: int) -> bool:
    """Whether a GPU is used with this number of offloaded layers (negative for all)."""
    llama_cpp.llama_backend_init()
    return n_gpu_layers != 0 and bool(llama_cpp.llama_supports_gpu_offload())


class Model:
    """llama.cpp's `llama_model`: loaded once, for any number of contexts.

    Args:
        files: the GGUF file, or all splits of one in order.
        n_gpu_layers: layers offloaded to the GPU; negative for all.

    Attributes:
        files: as given.
        n_gpu_layers: as given.
        memory: bytes of the weights, as llama.cpp reported them while loading.
        vocabulary: its size and special tokens.
        n_ctx_train: training context in tokens, from the file.
        adapters: those that were loaded for its contexts.

    Raises:
        EngineError: llama.cpp refused the file; the message includes llama.cpp's.
    """

    def __init__(self, files: Sequence[Path], n_gpu_layers: int = -1) -> None:
        self.files = tuple(files)
        self.n_gpu_layers = n_gpu_layers
        log = EngineLog()
        with log.capture():
            self._pointer: Any = _load(self.files, n_gpu_layers)
        if not self._pointer:
            raise EngineError(
                f"llama.cpp could not load {self.name}: {log.last_problem()}",
                "Check the file with `gguf-harness inspect`, and that this llama.cpp knows the architecture.",
            )
        self.memory = parse_memory(log.lines)
        self._vocab: Any = llama_cpp.llama_model_get_vocab(self._pointer)
        self.vocabulary = Vocabulary.of(self._vocab)
        # Read now: a context with YaRN scaling changes what llama.cpp says of the model.
        self.n_ctx_train = int(llama_cpp.llama_model_n_ctx_train(self._pointer))
        self._head = LanguageHead(self._pointer, self.name)
        self.adapters = LoadedAdapters(self._pointer, self.name)

    @property
    def name(self) -> str:
        """Of the (first) file, for messages."""
        return self.files[0].name

    @property
    def pointer(self) -> Any:
        """llama.cpp's `llama_model *`, for functions without a method here; None once closed."""
        return self._pointer

    @property
    def vocabulary_pointer(self) -> Any:
        """llama.cpp's `llama_vocab *`, likewise."""
        return self._vocab

    @property
    def offloads(self) -> bool:
        """Whether a GPU takes part in decoding."""
        return offloads(self.n_gpu_layers)

    @property
    def has_encoder(self) -> bool:
        """Whether a context must encode an input first."""
        return bool(llama_cpp.llama_model_has_encoder(self._pointer))

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder: an encoder alone predicts no tokens."""
        return bool(llama_cpp.llama_model_has_decoder(self._pointer))

    @property
    def d_key(self) -> int | None:
        """Size of a head's keys, from the file or derived from the width; None if unknown."""
        size = self._metadata("attention.key_length")
        if size is not None:
            return int(size) if size.isdigit() else None
        heads = int(llama_cpp.llama_model_n_head(self._pointer))
        return int(llama_cpp.llama_model_n_embd(self._pointer)) // heads if heads > 0 else None

    def _metadata(self, key: str) -> str | None:
        """A metadata value of the model's architecture, as text; None if missing."""
        name = self._value(b"general.architecture")
        return None if name is None else self._value(f"{name}.{key}".encode())

    def _value(self, key: bytes) -> str | None:
        buffer = ctypes.create_string_buffer(_LONGEST_VALUE)
        length = llama_cpp.llama_model_meta_val_str(self._pointer, key, buffer, _LONGEST_VALUE)
        return buffer.value.decode("utf-8", "replace") if 0 <= length < _LONGEST_VALUE else None

    def require_language_head(self) -> None:
        """Make sure that the model predicts tokens.

        Raises:
            NoLanguageHead: it does not.
        """
        self._head.require()

    def close(self) -> None:
        """Free the weights, after all contexts. May be called twice."""
        if self._pointer is not None:
            self.adapters.close()
            llama_cpp.llama_model_free(self._pointer)
        self._pointer = self._vocab = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- text ---------------------------------------------------------------------------------------------------

    def tokenize(self, text: bytes | str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Tokens of a text.

        Special tokens are added as the vocabulary requires; their text is parsed only on request.
        """
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
        """The bytes of tokens (a token may end inside a character); special tokens have none unless requested.

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
        raise EngineError(f"llama.cpp could not give the text of token {token}.")

    def ends_generation(self, token: int) -> bool:
        """Whether this token ends a text."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))


def _load(files: Sequence[Path], n_gpu_layers: int) -> Any:
    """llama.cpp's pointer; null if it refused the file."""
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = n_gpu_layers
    names = [os.fsencode(file) for file in files]
    if len(names) == 1:
        return llama_cpp.llama_model_load_from_file(names[0], parameters)
    paths = (ctypes.c_char_p * len(names))(*names)
    return llama_cpp.llama_model_load_from_splits(paths, len(names), parameters)
