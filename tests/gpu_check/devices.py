"""Step: does llama.cpp load, does it have the layout that the harness expects, and does it see the GPU?"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_tasks import build_files, describe_engine, ggml_environment
from gguf_harness.errors import HarnessError
from tests.gpu_check.cuda_build import missing_libraries
from tests.gpu_check.environment import Setup
from tests.gpu_check.machine import cuda_library
from tests.gpu_check.verdicts import Outcome

__all__ = ["ENVIRONMENT", "look"]

ENVIRONMENT = ("NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH")
"""Variables that are written down beside ggml's own; the first changes numbers of cuBLAS."""

_VERSIONS = ("llama-cpp-python", "nvidia-ml-py", "numpy", "scipy", "scikit-learn", "pytest", "gguf")


def look(setup: Setup) -> Outcome:
    """Passes where llama.cpp starts and, with a GPU, has a CUDA device: in one worker as the harness starts them."""
    numbers: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "environment": ggml_environment() | {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }
    try:
        with Worker("devices", setup.path / "devices-worker.log", gpu=0 if setup.gpu else -1) as worker:
            description = worker.call(describe_engine, None)
    except HarnessError as error:
        return Outcome("fail", f"{error}{_lacking(setup)}", numbers)
    numbers |= description
    names = [device["name"] for device in description["backends"]]
    said = (
        f"llama-cpp-python {description['llama_cpp_python']}, llama.cpp {description['llama_cpp']}: {', '.join(names)}"
    )
    if setup.gpu and not any(name.startswith("CUDA") for name in names):
        return Outcome("fail", f"no CUDA device among {', '.join(names)}{_lacking(setup)}", numbers)
    return Outcome("pass", said, numbers)


def _lacking(setup: Setup) -> str:
    """Libraries that the backend for CUDA does not find, if that may be the reason."""
    library = next((file for path in build_files() if (file := cuda_library(Path(path).parent))), None)
    if library is None:
        return "; this build has no libggml-cuda.so"
    lacking = missing_libraries(library, Path(setup.python))
    return f"; {library.name} does not find {', '.join(lacking)}" if lacking else ""
