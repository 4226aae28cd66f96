"""Tasks for a worker that are no measurements. Light: llama.cpp is loaded only where a task runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.engine.worker import WorkerContext

__all__ = ["describe_engine", "engine_version", "quantize_task"]


def engine_version() -> str:
    """Version of llama-cpp-python, without importing it."""
    return metadata.version("llama-cpp-python")


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


def quantize_task(
    context: WorkerContext, files: Sequence[Path], destination: Path, quant: str, threads: int, imatrix: Path | None
) -> None:
    """Quantize a model; see `harness.engine.quantize.quantize_file`."""
    from harness.engine.quantize import quantize_file

    quantize_file(files, destination, quant, threads=threads, imatrix=imatrix, progress=context.progress)
