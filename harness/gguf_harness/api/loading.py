"""Models of the API, and how one is loaded again for what a result still needs when its model is closed."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from gguf_harness.api.arguments import loras_of, parsed, spec_of, whole
from gguf_harness.engine.settings import NO_ROTATION, SessionSettings
from gguf_harness.inputs.adapters import open_adapters
from gguf_harness.inputs.models import ModelInfo, load_info
from gguf_harness.inputs.options import default_threads, whole_number
from gguf_harness.inputs.sources import expand_one
from gguf_harness.inputs.subject_values import kv_types, rope_scaling
from gguf_harness.inputs.subjects import describe_variant, subject_name
from gguf_harness.measure.live.live_model import LiveModel

__all__ = ["Loader", "Loras"]

Loras = str | Path | Sequence[str | Path]
"""LoRA adapters as a person gives them: one file or several, each as `FILE` or `FILE:SCALE`."""

_NO_GPU: Final = -1


class Loader:
    """One model, and how it is run.

    Args:
        model: a path, an alias or hf:org/repo:file.
        threads: CPU threads; the physical cores if not given.
        gpu: NVIDIA GPU, -1 for none.
        kv: types of the KV cache, `q8_0/q4_0`; f16/f16 if not given.
        lora: adapters that are applied to it.
        rope: how positions are scaled, `yarn:4`; as its file says if not given.

    Attributes:
        info: facts about its files; its name says how it is run, if not plainly.
        settings: how it is run.
        gpu: as given.

    Raises:
        TypeError: an argument of another type.
        HarnessError: there is no such model, or its files cannot be read.
    """

    def __init__(
        self,
        model: object,
        threads: object,
        gpu: object,
        *,
        kv: object = None,
        lora: object = None,
        rope: object = None,
    ) -> None:
        self.gpu = whole(gpu, "gpu", _NO_GPU)
        count = default_threads() if threads is None else whole(threads, "threads", 1)
        types, scaling = parsed(kv, "kv", kv_types), parsed(rope, "rope", rope_scaling)
        info = load_info(expand_one(spec_of(model)))
        adapters = open_adapters(loras_of(lora), info)
        settings = SessionSettings(
            threads=count,
            n_gpu_layers=0 if self.gpu < 0 else -1,
            rotate_kv=not whole_number(os.environ.get(NO_ROTATION, "")),
            rope=scaling,
            adapters=adapters,
        )
        self.settings = settings if types is None else settings.with_kv(types)
        self.info: ModelInfo = replace(info, name=subject_name(info.name, describe_variant(types, adapters, scaling)))
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
