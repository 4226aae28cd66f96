"""The parts of a vocabulary that measurements need."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.logs import EngineLog
from gguf_harness.errors import EngineError

__all__ = ["Vocabulary", "control_texts", "count_tokens", "ordinary_tokens", "token_text"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Size and special tokens; -1 for missing tokens."""

    n_tokens: int
    bos: int
    eos: int
    add_bos: bool

    @classmethod
    def of(cls, handle: Any) -> Self:
        """Read it from llama.cpp's vocabulary."""
        return cls(
            n_tokens=int(llama_cpp.llama_vocab_n_tokens(handle)),
            bos=int(llama_cpp.llama_vocab_bos(handle)),
            eos=int(llama_cpp.llama_vocab_eos(handle)),
            add_bos=bool(llama_cpp.llama_vocab_get_add_bos(handle)),
        )


def count_tokens(file: Path, text: bytes) -> int:
    """Number of tokens of a text, as by `Model.tokenize`; only the vocabulary of the file is loaded.

    Raises:
        EngineError: llama.cpp refused the file.
    """
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    log = EngineLog()
    with log.capture():
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(os.fsencode(file), parameters)
    if not model:
        raise EngineError(f"llama.cpp could not read the vocabulary of {file.name}: {log.last_problem()}")
    try:
        # Without room for tokens, llama.cpp returns minus their number.
        handle = llama_cpp.llama_model_get_vocab(model)
        return -int(llama_cpp.llama_tokenize(handle, text, len(text), None, 0, True, False))
    finally:
        llama_cpp.llama_model_free(model)


def token_text(handle: Any, token: int) -> str:
    """Text of a token in the file; "" for -1."""
    return "" if token < 0 else bytes(llama_cpp.llama_vocab_get_text(handle, token)).decode("utf-8", "replace")


def control_texts(handle: Any) -> list[str]:
    """Texts of all special tokens that are found when a text is parsed for them: `<|im_start|>`."""
    special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
    tokens = range(llama_cpp.llama_vocab_n_tokens(handle))
    return [token_text(handle, token) for token in tokens if llama_cpp.llama_vocab_get_attr(handle, token) & special]


def ordinary_tokens(handle: Any) -> list[int]:
    """Tokens that are text: not special, unused, or a byte of a character."""
    tokens = range(llama_cpp.llama_vocab_n_tokens(handle))
    return [t for t in tokens if llama_cpp.llama_vocab_get_attr(handle, t) & llama_cpp.LLAMA_TOKEN_ATTR_NORMAL]
