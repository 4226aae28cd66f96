"""gguf-harness: measure quantized language models inside llama.cpp's own forward pass, from pytest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Attention as Attention
    from harness.api import HiddenStates as HiddenStates
    from harness.api import attention as attention
    from harness.api import heads as heads
    from harness.api import hidden_states as hidden_states

__version__ = "0.1.0"

# In a checkout, suites/ and fixtures/ stand beside this package; in a wheel they lie inside it. Either way they
# are `harness.suites` and `harness.fixtures`, so that one name serves the plugin, the CLI and the documentation.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "fixtures" / "data").is_dir() and (_CHECKOUT / "suites").is_dir():
    __path__.append(str(_CHECKOUT))

_API = frozenset({"Attention", "HiddenStates", "attention", "heads", "hidden_states"})


def __getattr__(name: str) -> Any:
    """What notebooks call, imported when it is: pytest loads this package in every session."""
    if name in _API:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
