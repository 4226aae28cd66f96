"""gguf-harness: quantized language models measured inside llama.cpp's own forward pass, from pytest and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_harness.api import Ablation as Ablation
    from gguf_harness.api import Attention as Attention
    from gguf_harness.api import Comparison as Comparison
    from gguf_harness.api import Generated as Generated
    from gguf_harness.api import HarnessError as HarnessError
    from gguf_harness.api import HeadBehaviour as HeadBehaviour
    from gguf_harness.api import HiddenStates as HiddenStates
    from gguf_harness.api import LogitLens as LogitLens
    from gguf_harness.api import ModelFacts as ModelFacts
    from gguf_harness.api import NextTokens as NextTokens
    from gguf_harness.api import OpenModel as OpenModel
    from gguf_harness.api import Picture as Picture
    from gguf_harness.api import Pictures as Pictures
    from gguf_harness.api import Prompt as Prompt
    from gguf_harness.api import Reading as Reading
    from gguf_harness.api import StoredRun as StoredRun
    from gguf_harness.api import StreamedToken as StreamedToken
    from gguf_harness.api import Structure as Structure
    from gguf_harness.api import WordEmbeddings as WordEmbeddings
    from gguf_harness.api import attention as attention
    from gguf_harness.api import compare as compare
    from gguf_harness.api import heads as heads
    from gguf_harness.api import hidden_states as hidden_states
    from gguf_harness.api import history as history
    from gguf_harness.api import load_run as load_run
    from gguf_harness.api import off as off
    from gguf_harness.api import open as open  # noqa: A004 - an attribute, as gzip.open
    from gguf_harness.api import pictures as pictures
    from gguf_harness.api import quantize as quantize
    from gguf_harness.api import report_pictures as report_pictures
    from gguf_harness.api import side_by_side as side_by_side
    from gguf_harness.api import word_embeddings as word_embeddings

__version__ = "0.1.0"

# Not `open`: `from gguf_harness import *` must not take Python's own away.
__all__ = [
    "Ablation",
    "Attention",
    "Comparison",
    "Generated",
    "HarnessError",
    "HeadBehaviour",
    "HiddenStates",
    "LogitLens",
    "ModelFacts",
    "NextTokens",
    "OpenModel",
    "Picture",
    "Pictures",
    "Prompt",
    "Reading",
    "StoredRun",
    "StreamedToken",
    "Structure",
    "WordEmbeddings",
    "attention",
    "compare",
    "heads",
    "hidden_states",
    "history",
    "load_run",
    "off",
    "pictures",
    "quantize",
    "report_pictures",
    "side_by_side",
    "word_embeddings",
]


def __getattr__(name: str) -> Any:
    """Import the API on first use, since pytest loads this package in every session."""
    if name == "open" or name in __all__:
        from gguf_harness import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "open", *(name for name in globals() if name.startswith("__"))})
