"""llama.cpp's C functions: the bindings of llama-cpp-python.

Without its classes on top of them, which nothing here uses: with all that they import, they take three quarters of the
time in which a worker starts.
"""

from __future__ import annotations

from typing import Any, Final

from gguf_harness.errors import import_alone

__all__ = ["llama_cpp"]

llama_cpp: Final[Any] = import_alone("llama_cpp", "llama_cpp")
"""The module `llama_cpp.llama_cpp`."""
