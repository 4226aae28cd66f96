"""Batches of tokens for llama.cpp."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.c_api import llama_cpp

__all__ = ["Batch"]


class Batch:
    """A llama_batch backed by NumPy arrays, which are filled by a few copies instead of Python loops.

    Args:
        size: most tokens that it can hold.
    """

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._counts = np.ones(size, dtype=np.int32)
        self._sequences = np.zeros(size, dtype=np.int32)
        self._outputs = np.zeros(size, dtype=np.int8)
        # Each token has a list of sequences, here a single one: an array of addresses into `_sequences`.
        start = self._sequences.ctypes.data
        self._addresses = np.arange(start, start + 4 * size, 4, dtype=np.uintp)
        self._struct = llama_cpp.llama_batch()
        fields: dict[str, Any] = {field[0]: field[1] for field in llama_cpp.llama_batch._fields_}
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._addresses),
            ("logits", self._outputs),
        ):
            setattr(self._struct, name, ctypes.cast(array.ctypes.data, fields[name]))

    def fill(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
    ) -> Any:
        """Fill the struct with these tokens and return it."""
        n = len(tokens)
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._sequences[:n] = sequences
        self._outputs[:n] = outputs
        self._struct.n_tokens = n
        return self._struct
