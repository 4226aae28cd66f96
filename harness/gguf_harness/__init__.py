"""gguf-harness: measure quantized language models inside llama.cpp's own forward pass, from pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_harness.api import Attention as Attention
    from gguf_harness.api import HiddenStates as HiddenStates
    from gguf_harness.api import StoredRun as StoredRun
    from gguf_harness.api import attention as attention
    from gguf_harness.api import heads as heads
    from gguf_harness.api import hidden_states as hidden_states
    from gguf_harness.api import load_run as load_run

__version__ = "0.1.0"

_API = frozenset({"Attention", "HiddenStates", "StoredRun", "attention", "heads", "hidden_states", "load_run"})


def __getattr__(name: str) -> Any:
    """Import the API on first use, since pytest loads this package in every session."""
    if name in _API:
        from gguf_harness import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
