"""Worker tasks that are not measurements. Light: llama.cpp is loaded only when a task runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.engine.gpu import driver_version
from gguf_harness.errors import EngineError

if TYPE_CHECKING:
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["build_files", "count_tokens", "describe_engine", "ggml_environment", "identify_engine", "quantize_task"]


_OTHERS: Final = ("LLAMA_ATTN_ROT_DISABLE", "NVIDIA_TF32_OVERRIDE")


def build_files(binary: Path | None = None) -> list[Path]:
    """The libraries and programs of a build of llama.cpp: their content identifies the build.

    Args:
        binary: a program of llama.cpp; None for llama-cpp-python.

    Raises:
        EngineError: llama-cpp-python is not installed.
    """
    if binary is not None:
        program = binary.resolve()
        # A shared build has its libraries in the same folder, an installed one in `lib`.
        return [
            program,
            *(file for folder in (program.parent, program.parent.parent / "lib") for file in _libraries(folder)),
        ]
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.origin:
        raise EngineError("llama-cpp-python is not installed.", "pip install gguf-harness")
    # As llama-cpp-python chooses its libraries.
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    return _libraries(Path(override) if override else Path(spec.origin).parent / "lib")


def _libraries(folder: Path) -> list[Path]:
    files = [file for stem in ("ggml", "llama") for file in folder.glob(f"lib{stem}*") if file.is_file()]
    # One of the names of a library is enough.
    return sorted({file.resolve() for file in files})


def identify_engine(description: dict[str, Any], build: str) -> dict[str, Any]:
    """Everything that llama.cpp's numbers depend on, for cache keys.

    Versions, content of the libraries, instruction sets, GPUs with their driver, and settings in the environment. Not a
    machine's memory or processor name: machines that compute the same share measurements.

    Args:
        description: from `describe_engine`.
        build: hash of `build_files`.
    """
    devices = [[one["name"], one["description"]] for one in description["backends"] if one["name"] != "CPU"]
    return {
        "versions": [description["llama_cpp_python"], description["llama_cpp"]],
        "build": build,
        "instructions": " ".join(description["system_info"].split()),
        "devices": devices,
        "driver": driver_version() if devices else None,
        "environment": ggml_environment(),
    }


def ggml_environment() -> dict[str, str]:
    """Environment variables that change results: ggml's (GGML_CUDA_CUBLAS_COMPUTE_TYPE), and two of others.

    LLAMA_ATTN_ROT_DISABLE controls whether K and V are rotated before they are quantized in the cache,
    NVIDIA_TF32_OVERRIDE whether cuBLAS rounds products of F32 matrices to TF32.
    """
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if (name.startswith("GGML_") and name != "GGML_NO_BACKTRACE") or name in _OTHERS
    }


def describe_engine(worker: WorkerContext) -> dict[str, Any]:
    """llama.cpp's description of itself; loading its libraries takes a second, and fails here if they do not match.

    Raises:
        UnsupportedEngine: llama-cpp-python is outside the supported range.
    """
    from gguf_harness.engine.binding import engine_info, require_supported_engine

    require_supported_engine()
    info = engine_info().to_json()
    worker.progress(1, 1)
    return info


def count_tokens(_: WorkerContext, files: Sequence[Path], text: bytes) -> int:
    """Number of tokens of a text, including special ones; only the vocabulary of the model is loaded."""
    from gguf_harness.engine.vocabulary import count_tokens as count

    return count(files[0], text)


def quantize_task(
    worker: WorkerContext, files: Sequence[Path], destination: Path, quant: str, threads: int, imatrix: Path | None
) -> None:
    """Quantize a model; see `gguf_harness.engine.quantize.quantize_file`."""
    from gguf_harness.engine.quantize import quantize_file

    quantize_file(files, destination, quant, threads=threads, imatrix=imatrix, progress=worker.progress)
