"""What of a vocabulary the measurements need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import llama_cpp

__all__ = ["Vocabulary", "control_texts", "ordinary_tokens", "token_text"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Size and special tokens; -1 for a token that there is not."""

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


def token_text(handle: Any, token: int) -> str:
    """How the file writes a token; "" for -1."""
    return "" if token < 0 else bytes(llama_cpp.llama_vocab_get_text(handle, token)).decode("utf-8", "replace")


def control_texts(handle: Any) -> list[str]:
    """Texts of all tokens that are special to the model where a text is parsed for them: `<|im_start|>`."""
    special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
    tokens = range(llama_cpp.llama_vocab_n_tokens(handle))
    return [token_text(handle, token) for token in tokens if llama_cpp.llama_vocab_get_attr(handle, token) & special]


def ordinary_tokens(handle: Any) -> list[int]:
    """Tokens that are text: not special, unused, or a byte of a character."""
    tokens = range(llama_cpp.llama_vocab_n_tokens(handle))
    return [t for t in tokens if llama_cpp.llama_vocab_get_attr(handle, t) & llama_cpp.LLAMA_TOKEN_ATTR_NORMAL]
