"""Text embeddings of embedding models: pooled by llama.cpp as the file says (mean, CLS, last token)."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Tokens
from gguf_harness.errors import EngineError

__all__ = ["embed", "pools"]

_POOLED: Final = frozenset({
    llama_cpp.LLAMA_POOLING_TYPE_MEAN, llama_cpp.LLAMA_POOLING_TYPE_CLS, llama_cpp.LLAMA_POOLING_TYPE_LAST,
})  # fmt: skip


def pools(context: Context) -> bool:
    """Whether a model is an embedding model: its file specifies the pooling."""
    return int(llama_cpp.llama_pooling_type(context.pointer)) in _POOLED


def embed(context: Context, tokens: Tokens) -> NDArray[np.float32]:
    """[d] the embedding of a text, not normalized.

    Args:
        context: of a model that pools.
        tokens: [n] token ids, n at most `n_ubatch`: such a model processes its text at once.

    Raises:
        EngineError: a model that does not pool, or a text with no or too many tokens.
    """
    if not pools(context):
        raise EngineError(f"{context.model.name} has no pooled embeddings.", "Read the tap ln_final.normalized.")
    most = context.n_ubatch
    if not 1 <= len(tokens) <= most:
        raise EngineError(f"A text of {len(tokens)} tokens cannot be embedded, expected 1 to {most}.", "Shorten it.")
    context.clear()
    llama_cpp.llama_set_embeddings(context.pointer, True)
    positions = np.arange(len(tokens), dtype=np.int32)
    context.decode(tokens, positions, np.zeros_like(positions), np.ones(len(tokens), dtype=np.bool_))
    pointer = llama_cpp.llama_get_embeddings_seq(context.pointer, 0)
    if not pointer:
        raise EngineError(f"llama.cpp has no embedding of this text for {context.model.name}.")
    size = int(llama_cpp.llama_model_n_embd_out(context.model.pointer))
    return np.array(np.ctypeslib.as_array(pointer, (size,)), dtype=np.float32)
