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
    "engine/description", 2, describe_engine, "steps", as_json(dict, dict), runs="in its own worker", counted=False,
    about_machine=True,
)  # fmt: skip


class LlamaCpp:
    """llama.cpp, described once per installation: this machine's, or with --gguf-ray that of the cluster's nodes."""

    def __init__(self, core: Measuring) -> None:
        self._core = core

    @property
    def description(self) -> dict[str, Any]:
        """Build and backends of the llama.cpp that measures."""
        if self._core.actors is not None:
            engine: dict[str, Any] = self._core.actors.cluster.engine["description"]
            return engine
        return self._own_description

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
        if self._core.actors is not None:
            key: dict[str, Any] = self._core.actors.cluster.engine["key"]
            return key
        return self._own_key

    @property
    def is_own(self) -> bool:
        """Whether the llama.cpp that measures is that of this machine: otherwise nothing is timed here."""
        return self._core.actors is None or self.key == self._own_key

    @property
    def _own_key(self) -> dict[str, Any]:
        return self._core.once(("engine key",), lambda: identify_engine(self._own_description, self.build_hash()))

    @property
    def _own_description(self) -> dict[str, Any]:
        return self._core.once(("engine description",), self._describe)

    def build_hash(self, binary: Path | None = None) -> str:
        """Hash of a build of llama.cpp: of a program, or of llama-cpp-python."""
        cache = self._core.options.cache
        return self._core.once(("build", str(binary)), lambda: hash_files(build_files(binary), cache))
