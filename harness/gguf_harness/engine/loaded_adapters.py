"""LoRA adapters of a loaded model: each file is loaded once, and applied to any number of contexts."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.logs import EngineLog, parse_memory
from gguf_harness.engine.settings import Adapter
from gguf_harness.errors import EngineError

__all__ = ["LoadedAdapters"]


class LoadedAdapters:
    """Adapters that are loaded for one model. Contexts apply them as they decode; the weights stay as they are.

    Args:
        model: llama.cpp's `llama_model *`.
        name: of the model, for messages.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self._name = name
        self._pointers: dict[str, Any] = {}
        self._bytes: dict[str, int] = {}

    def load(self, adapters: Sequence[Adapter]) -> None:
        """Load those that are not yet. Before a context is created: llama.cpp makes its graph as large as they need it.

        Raises:
            EngineError: an adapter does not fit the model, or is none; the message has llama.cpp's own words.
        """
        for adapter in adapters:
            if adapter.sha256 not in self._pointers:
                self._load(adapter)

    def _load(self, adapter: Adapter) -> None:
        log = EngineLog()
        with log.capture():
            pointer = llama_cpp.llama_adapter_lora_init(self._model, os.fsencode(adapter.file))
        if not pointer:
            raise EngineError(
                f"llama.cpp could not load the adapter {adapter.name} for {self._name}: {log.last_problem()}",
                "Give an adapter that was made for this model, converted with convert_lora_to_gguf.py.",
            )
        if llama_cpp.llama_adapter_get_alora_n_invocation_tokens(pointer):
            llama_cpp.llama_adapter_lora_free(pointer)
            raise EngineError(
                f"The adapter {adapter.name} is an activated LoRA: it is meant to be on only after certain tokens, and"
                " would be on all the time.",
                "Give a LoRA without adapter.alora.invocation_tokens.",
            )
        self._pointers[adapter.sha256] = pointer
        self._bytes[adapter.sha256] = parse_memory(log.lines).weights or 0

    def apply(self, context: Any, adapters: Sequence[Adapter]) -> None:
        """Have a context decode with adapters, which are loaded; with these and no others.

        Args:
            context: llama.cpp's `llama_context *`.
            adapters: with their scales.

        Raises:
            EngineError: llama.cpp refused.
        """
        pointers = [self._pointers[adapter.sha256] for adapter in adapters]
        scales = [adapter.scale for adapter in adapters]
        status = llama_cpp.llama_set_adapters_lora(
            context,
            (llama_cpp.llama_adapter_lora_p_ctypes * len(pointers))(*pointers),
            len(pointers),
            (ctypes.c_float * len(scales))(*scales),
        )
        if status != 0:
            names = ", ".join(map(str, adapters))
            raise EngineError(f"llama.cpp could not apply {names} to a context of {self._name}: status {status}.")

    def count_bytes(self, adapters: Sequence[Adapter]) -> int:
        """Bytes of their buffers, as llama.cpp reported them."""
        return sum(self._bytes[adapter.sha256] for adapter in adapters)

    def close(self) -> None:
        """Free them, after all contexts and before the model."""
        while self._pointers:
            llama_cpp.llama_adapter_lora_free(self._pointers.popitem()[1])
