"""gguf-harness: measure quantized language models inside llama.cpp's own forward pass, from pytest."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout, suites/ and fixtures/ stand beside this package; in a wheel they lie inside it. Either way they
# are `harness.suites` and `harness.fixtures`, so that one name serves the plugin, the CLI and the documentation.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "fixtures" / "data").is_dir() and (_CHECKOUT / "suites").is_dir():
    __path__.append(str(_CHECKOUT))
