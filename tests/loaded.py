"""A model and a context of it, for tests that need one of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.taps import Taps

__all__ = ["open_context"]


@contextlib.contextmanager
def open_context(files: Sequence[Path], settings: SessionSettings, taps: Taps | None = None) -> Iterator[Context]:
    """Load a model and open one context on it, while the block runs."""
    with Model(files, settings.n_gpu_layers) as model, Context(model, settings, taps) as context:
        yield context
