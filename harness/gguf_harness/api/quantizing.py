"""Quantized copies of a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gguf_harness.api.arguments import folder_of, spec_of, whole
from gguf_harness.engine.worker import ProgressCallback, Worker
from gguf_harness.engine.worker_tasks import quantize_task
from gguf_harness.errors import OptionError
from gguf_harness.gguf.types import parse_quants
from gguf_harness.inputs.ladder import quantized_name
from gguf_harness.inputs.options import default_threads
from gguf_harness.inputs.sources import ModelSource, expand_one
from gguf_harness.store.paths import file_name

__all__ = ["quantize", "quantize_each"]


def quantize(
    model: str | Path,
    quant: str,
    folder: str | Path,
    *,
    imatrix: str | Path | None = None,
    threads: int | None = None,
) -> Path:
    """Write a quantized copy of a model, as `gguf-harness quantize` does.

        path = gguf_harness.quantize("tiny", "Q2_K", "models")
        gguf_harness.compare("tiny", path, "The cat sat on the mat").plot()

    Args:
        model: a path, an alias or hf:org/repo:file.
        quant: one of llama.cpp's names, such as Q4_K_M.
        folder: where it is written, made if it is not there.
        imatrix: an importance matrix in GGUF.
        threads: CPU threads; the physical cores if not given.

    Returns:
        The file; an older one of that name is replaced.

    Raises:
        TypeError: an argument is of another type.
        HarnessError: there is no such model or type, it cannot be written, or it is the model itself.
    """
    if not isinstance(quant, str):
        raise TypeError(f"quant is the name of a type such as 'Q4_K_M', got {type(quant).__name__}")
    types = parse_quants(quant)
    if len(types) != 1:
        raise OptionError(f"{quant!r} names {len(types)} types.", "Give one, such as 'Q4_K_M'.")
    matrix = None if imatrix is None else folder_of(imatrix, "imatrix")
    if matrix is not None and not matrix.is_file():
        raise OptionError(f"imatrix={matrix}: no such file.", "Give the path of an existing file.")
    count = default_threads() if threads is None else whole(threads, "threads", 1)
    (path,) = quantize_each(expand_one(spec_of(model)), types, folder_of(folder, "folder"), matrix, count)
    return path


def quantize_each(
    source: ModelSource,
    types: Sequence[str],
    folder: Path,
    imatrix: Path | None,
    threads: int,
    progress: Callable[[str], ProgressCallback] | None = None,
) -> Iterator[Path]:
    """Write a copy for each type, one after the other.

    Args:
        source: the model.
        types: llama.cpp's names.
        folder: where they are written.
        imatrix: an importance matrix.
        threads: CPU threads.
        progress: for the name of a file, what is called with the tensors done and all of them.

    Raises:
        HarnessError: one cannot be written, or is the model itself.
    """
    with tempfile.TemporaryDirectory() as scratch, Worker(source.name, Path(scratch) / "quantize.log") as worker:
        files = source.files
        if source.expand_to is not None:
            # As in the suites: types are made from the expanded model, not from the file in the wheel.
            files = (Path(scratch) / "expanded.gguf",)
            worker.call(quantize_task, None, source.files, files[0], source.expand_to, threads, None)
        for quant in types:
            path = folder / f"{file_name(quantized_name(source.name, quant))}.gguf"
            if path.exists() and any(path.samefile(file) for file in source.files):
                raise OptionError(f"{path} is the model to quantize.", "Write into another folder.")
            told = None if progress is None else progress(path.name)
            worker.call(quantize_task, told, files, path, quant, threads, imatrix)
            yield path
