"""Quantizing a model with llama.cpp, as llama-quantize does it: the files come out equal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from harness.engine.logs import EngineLog
from harness.errors import QuantizeError
from harness.gguf_file import read_header
from harness.quants import FTYPES, NEEDS_IMATRIX

__all__ = ["ImportanceMatrix", "load_imatrix", "quantize_file"]

ImportanceMatrix = dict[str, NDArray[np.float32]]
"""Importance of each input column of a tensor, [experts * columns], by tensor name."""

_STEP: Final = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_IMATRIX_HINT: Final = (
    "Make one with llama-imatrix and pass it with --gguf-imatrix=FILE, or choose a K-quant of 3 bits or more."
)
_FLOATS: Final = frozenset({"F32", "F16", "BF16"})


def quantize_file(
    files: Sequence[Path],
    destination: Path,
    quant: str,
    *,
    threads: int,
    imatrix: Path | None = None,
    tensor_types: Mapping[str, str] | None = None,
    pure: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `files` as `quant` to `destination`: whole, or not at all.

    Quantizing a model that is quantized already is allowed, as with `llama-quantize --allow-requantize`: whoever
    names such a model as reference is told that it is one.

    Args:
        files: the source, or all its splits.
        destination: a .gguf file, replaced if it exists.
        quant: a name from `harness.quants.FTYPES`.
        threads: CPU threads.
        imatrix: importance matrix in GGUF format, as llama-imatrix writes it.
        tensor_types: type by regular expression on the tensor's name, as `llama-quantize --tensor-type`.
        pure: all tensors of one type, as `llama-quantize --pure`.
        progress: called with (tensors done, tensors).

    Raises:
        QuantizeError: llama.cpp refused; no space; a type that needs an importance matrix has none.
    """
    if quant in NEEDS_IMATRIX and imatrix is None:
        raise QuantizeError(
            f"{quant} needs an importance matrix, and none was given.",
            _IMATRIX_HINT,
        )
    size = sum(file.stat().st_size for file in files)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _check_space(destination.parent, size if quant not in _FLOATS else 4 * size, quant)
        descriptor, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.stem}.", suffix=".gguf")
        os.close(descriptor)
    except OSError as error:
        raise QuantizeError(
            f"{destination} cannot be written: {error.strerror}.", "Choose another --gguf-cache folder."
        ) from error
    temporary = Path(name)
    try:
        _run(files[0], temporary, quant, threads, imatrix, tensor_types or {}, pure, progress)
        read_header(temporary)
        temporary.chmod(0o644)
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def load_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix: mean squared input per column, in_sum2 / counts (common/imatrix-loader.cpp).

    Raises:
        QuantizeError: not an importance matrix in GGUF format.
    """
    from gguf import GGUFReader

    read_header(path)
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(path).tensors}
    result: ImportanceMatrix = {}
    for name, sums in tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        stem = name.removesuffix(".in_sum2")
        counts = tensors.get(f"{stem}.counts")
        if counts is None:
            raise QuantizeError(f"{path.name}: {name} has no {stem}.counts beside it.", "Make it with llama-imatrix.")
        rows = sums.reshape(counts.size, -1).astype(np.float32)
        column = counts.reshape(-1, 1).astype(np.float32)
        # An expert that never ran says nothing: all its columns count alike.
        result[stem] = np.where(column > 0, rows / np.maximum(column, 1), np.float32(1)).astype(np.float32).ravel()
    if not result:
        raise QuantizeError(f"{path.name} holds no importance matrix.", "Make one with llama-imatrix (GGUF format).")
    return result


def _run(
    source: Path,
    destination: Path,
    quant: str,
    threads: int,
    imatrix: Path | None,
    tensor_types: Mapping[str, str],
    pure: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = FTYPES[quant]
    parameters.allow_requantize = True
    parameters.pure = pure
    # ctypes keeps no reference to what a pointer field points at: hold them until the call returns.
    kept = [_set_tensor_types(parameters, tensor_types)]
    if imatrix is not None:
        kept.append(_set_imatrix(parameters, load_imatrix(imatrix)))
    log = EngineLog(_step_reader(progress))
    with log.capture():
        llama_cpp.llama_backend_init()
        status = llama_cpp.llama_model_quantize(
            str(source).encode(), str(destination).encode(), ctypes.byref(parameters)
        )
    del kept
    if status != 0:
        reason = log.last_problem()
        hint = "Its log has more; `gguf-harness inspect` shows whether the source is sound."
        raise QuantizeError(
            f"llama.cpp could not quantize {source.name} to {quant}: {reason}",
            _IMATRIX_HINT if "imatrix" in reason else hint,
        )


def _set_imatrix(parameters: Any, matrix: ImportanceMatrix) -> object:
    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix) + 1))()
    for entry, (name, values) in zip(entries, matrix.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    parameters.imatrix = entries
    return entries, matrix


def _set_tensor_types(parameters: Any, types: Mapping[str, str]) -> object:
    if not types:
        return None
    numbers = {name.removeprefix("GGML_TYPE_"): value for name, value in _ggml_types()}
    entries = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for entry, (pattern, kind) in zip(entries, types.items(), strict=False):
        if kind.upper() not in numbers:
            raise QuantizeError(f"Unknown tensor type {kind!r} for {pattern!r}.", f"Known: {', '.join(numbers)}.")
        entry.pattern = pattern.encode()
        entry.type = numbers[kind.upper()]
    parameters.tt_overrides = entries
    return entries


def _ggml_types() -> Iterator[tuple[str, int]]:
    from harness.gguf_file import TENSOR_TYPES

    for number, kind in TENSOR_TYPES.items():
        yield kind.name, number


def _step_reader(progress: Callable[[int, int], None] | None) -> Callable[[str], None] | None:
    if progress is None:
        return None

    def read(line: str) -> None:
        if match := _STEP.match(line):
            progress(int(match[1]), int(match[2]))

    return read


def _check_space(folder: Path, size: int, quant: str) -> None:
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < size:
            raise QuantizeError(
                f"Quantizing to {quant} may need {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free.",
                "Free some space, or choose another --gguf-cache folder.",
            )
