"""The llama.cpp in use: its build, its backends, and the parts of both that numbers depend on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.engine.machine import identify_machine
from gguf_harness.engine.worker_tasks import build_files, describe_engine, ggml_environment, identify_engine
from gguf_harness.measure.measurement import Job, Measurement, as_json
from gguf_harness.store.file_hashes import hash_files

if TYPE_CHECKING:
    from gguf_harness.measure.measuring import Measuring

__all__ = ["LlamaCpp"]

_DESCRIPTION: Final = Measurement(
    "engine/description", 2, describe_engine, "steps", as_json(dict, dict), runs="in its own worker", counted=False
)


class LlamaCpp:
    """llama.cpp, described once per installation."""

    def __init__(self, core: Measuring) -> None:
        self._core = core

    @property
    def description(self) -> dict[str, Any]:
        """llama.cpp's build and backends."""
        return self._core.once(("engine description",), self._describe)

    def _describe(self) -> dict[str, Any]:
        # It names the processor and the memory, so it is valid for this machine only.
        key = {
            "build": self.build_hash(),
            "machine": identify_machine(),
            "gpu": self._core.options.gpu,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "environment": ggml_environment(),
        }
        return self._core.measure(Job(_DESCRIPTION, "llama.cpp's build", key, lambda _: ()))

    @property
    def key(self) -> dict[str, Any]:
        """The properties of llama.cpp that numbers depend on, for the keys of measurements."""
        return self._core.once(("engine key",), lambda: identify_engine(self.description, self.build_hash()))

    def build_hash(self, binary: Path | None = None) -> str:
        """Hash of a build of llama.cpp: of a program, or of llama-cpp-python."""
        cache = self._core.options.cache
        return self._core.once(("build", str(binary)), lambda: hash_files(build_files(binary), cache))
