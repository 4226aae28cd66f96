"""Check whether a model computes logits.

llama.cpp returns a logits buffer in any case. Without a language head it is never written, and its content (zeros, or
old memory) looks like a distribution.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.batch import Batch
from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.parameters import context_parameters
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import EngineError, NoLanguageHead

__all__ = ["LanguageHead", "logits_of"]

_SMALL: Final = SessionSettings(n_ctx=8, n_batch=8, n_ubatch=8, threads=1)
_NOT_WRITTEN: Final = 0x7FC05EED
"""Bits of a NaN that arithmetic does not produce: a broken model computes NaN too, and has a language head."""


def logits_of(context: Any, rows: int, vocabulary: int) -> NDArray[np.float32]:
    """[rows, vocabulary] llama.cpp's buffer of logits, as a view.

    Raises:
        EngineError: there is no buffer.
    """
    pointer = llama_cpp.llama_get_logits(context)
    if not pointer:
        raise EngineError("llama.cpp has no logits of this batch.", "Request the outputs of at least one token.")
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (rows, vocabulary))


class LanguageHead:
    """Whether the graph of a loaded model writes logits; determined once, on first use.

    Args:
        model: llama.cpp's pointer.
        name: of the model, for the error.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self._name = name
        self._lock = threading.Lock()
        self._writes: bool | None = None

    def require(self) -> None:
        """Make sure that logits may be read.

        Raises:
            NoLanguageHead: the model computes none: it is an embedding model, or an encoder.
        """
        with self._lock:
            if self._writes is None:
                self._writes = _writes_logits(self._model)
        if not self._writes:
            raise NoLanguageHead(
                f"{self._name} has no language head: it predicts no tokens, and llama.cpp computes no logits for it.",
                "Its embeddings can be measured: pytest suites/embeddings --models=...",
            )


def _writes_logits(model: Any) -> bool:
    """Decode one token twice in a small separate context, writing what no model computes in between."""
    if not llama_cpp.llama_model_has_decoder(model):
        return False
    context = llama_cpp.llama_init_from_model(model, context_parameters(_SMALL, model))
    if not context:
        raise EngineError("llama.cpp could not create a small context to see whether the model computes logits.")
    try:
        vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        _decode_one_token(model, context)
        pointer = llama_cpp.llama_get_logits(context)
        if not pointer:
            return False
        logits_of(context, 1, vocabulary).view(np.uint32)[:] = _NOT_WRITTEN
        _decode_one_token(model, context)
        # The same buffer, since the number of outputs is the same.
        return not bool((logits_of(context, 1, vocabulary).view(np.uint32) == _NOT_WRITTEN).all())
    finally:
        llama_cpp.llama_free(context)


def _decode_one_token(model: Any, context: Any) -> None:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    zero = np.zeros(1, dtype=np.int32)
    batch = Batch(_SMALL.n_batch)
    one = batch.fill(zero, zero, zero, np.ones(1, dtype=np.bool_))
    if llama_cpp.llama_model_has_encoder(model):
        llama_cpp.llama_encode(context, one)
    status = llama_cpp.llama_decode(context, one)
    llama_cpp.llama_synchronize(context)
    if status != 0:
        raise EngineError(f"llama.cpp could not decode a single token (llama_decode returned {status}).")
