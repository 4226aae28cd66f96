"""Tasks for a worker that are no measurements. Light: llama.cpp is loaded only where a task runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import EngineError

if TYPE_CHECKING:
    from harness.engine.worker import WorkerContext

__all__ = ["count_tokens", "describe_engine", "engine_version", "identify_build", "quantize_task"]


def engine_version() -> str:
    """Version of llama-cpp-python, without importing it."""
    return metadata.version("llama-cpp-python")


def identify_build(binary: Path | None = None) -> dict[str, Any]:
    """What tells builds of llama.cpp apart without loading them: names, sizes and times of files. For cache keys.

    Args:
        binary: a program of llama.cpp; None for llama-cpp-python.

    Raises:
        EngineError: llama-cpp-python is not installed.
    """
    if binary is not None:
        # A shared build has its libraries beside it.
        files = [binary, *sorted(file for file in binary.parent.glob("lib*") if file.is_file())]
        return {"files": [_identify(file) for file in files]}
    spec = importlib.util.find_spec("llama_cpp")
    package = Path(spec.origin).parent if spec and spec.origin else None
    if package is None:
        raise EngineError("llama-cpp-python is not installed.", "pip install gguf-harness")
    libraries = sorted((package / "lib").glob("*ggml*")) or [package]
    return {"version": engine_version(), "libraries": [_identify(file) for file in libraries]}


def _identify(file: Path) -> list[str | int]:
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns]


def describe_engine(context: WorkerContext) -> dict[str, Any]:
    """What llama.cpp says of itself; loading its libraries takes a second, and fails here if they do not fit.

    Raises:
        UnsupportedEngine: llama-cpp-python is outside the supported range.
    """
    from harness.engine.binding import engine_info, require_supported_engine

    require_supported_engine()
    info = engine_info().to_json()
    context.progress(1, 1)
    return info


def count_tokens(_: WorkerContext, files: Sequence[Path], text: bytes) -> int:
    """Tokens of a text, special ones included; of the model, only the vocabulary is loaded."""
    from harness.engine.vocabulary import count_tokens as count

    return count(files[0], text)


def quantize_task(
    context: WorkerContext, files: Sequence[Path], destination: Path, quant: str, threads: int, imatrix: Path | None
) -> None:
    """Quantize a model; see `harness.engine.quantize.quantize_file`."""
    from harness.engine.quantize import quantize_file

    quantize_file(files, destination, quant, threads=threads, imatrix=imatrix, progress=context.progress)
