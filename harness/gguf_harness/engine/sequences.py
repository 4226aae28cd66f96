"""The decoded tokens of a context as bytes: kept aside, and put back."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, TypeAlias

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.errors import EngineError

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context

__all__ = ["SavedSequence", "restore_sequence", "save_sequence"]

SavedSequence: TypeAlias = "ctypes.Array[ctypes.c_char]"
"""The bytes, where llama.cpp wrote them: they may be gigabytes, and are not copied."""

_Bytes = ctypes.POINTER(ctypes.c_uint8)


def save_sequence(context: Context) -> SavedSequence:
    """What the cache holds of sequence 0, in llama.cpp's own form, which only contexts with the same settings take.

    Raises:
        EngineError: llama.cpp wrote nothing.
    """
    size = int(llama_cpp.llama_state_seq_get_size(context.pointer, 0))
    buffer = ctypes.create_string_buffer(size)
    written = int(llama_cpp.llama_state_seq_get_data(context.pointer, ctypes.cast(buffer, _Bytes), size, 0))
    if written == 0:
        raise EngineError(f"llama.cpp could not save the {size} bytes of a sequence of {context.model.name}.")
    return buffer


def restore_sequence(context: Context, saved: SavedSequence) -> bool:
    """Put back what was saved, into an empty sequence 0; whether llama.cpp took it."""
    taken = llama_cpp.llama_state_seq_set_data(context.pointer, ctypes.cast(saved, _Bytes), len(saved), 0)
    return int(taken) > 0
