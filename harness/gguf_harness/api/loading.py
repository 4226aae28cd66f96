"""Models of the API, and how one is loaded again for what a result still needs when its model is closed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gguf_harness.api.checks import spec_of, whole
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.inputs.models import ModelInfo, load_info
from gguf_harness.inputs.options import default_threads
from gguf_harness.inputs.sources import expand_one
from gguf_harness.measure.live.model import LiveModel

__all__ = ["Loader"]

_NO_GPU: Final = -1


class Loader:
    """One model, and how it is run.

    Args:
        model: a path, an alias or hf:org/repo:file.
        threads: CPU threads; the physical cores if not given.
        gpu: NVIDIA GPU, -1 for none.

    Attributes:
        info: facts about its files.
        settings: how it is run.
        gpu: as given.

    Raises:
        TypeError: an argument of another type.
        HarnessError: there is no such model, or its files cannot be read.
    """

    def __init__(self, model: object, threads: object, gpu: object) -> None:
        self.gpu = whole(gpu, "gpu", _NO_GPU)
        count = default_threads() if threads is None else whole(threads, "threads", 1)
        self.info: ModelInfo = load_info(expand_one(spec_of(model)))
        self.settings = SessionSettings(threads=count, n_gpu_layers=0 if self.gpu < 0 else -1)
        self._loaded: weakref.ref[LiveModel] | None = None

    def load(self) -> LiveModel:
        """The model in a worker of its own; whoever asks for it closes it."""
        return LiveModel(self.info, self.settings, gpu=self.gpu)

    def use(self, live: LiveModel | None) -> None:
        """The loaded model to ask; None when it is closed. It is not kept alive."""
        self._loaded = None if live is None else weakref.ref(live)

    @contextmanager
    def loaded(self) -> Iterator[LiveModel]:
        """The model that is open, else one that is loaded while the block runs."""
        live = None if self._loaded is None else self._loaded()
        if live is not None:
            yield live
            return
        with self.load() as again:
            yield again
