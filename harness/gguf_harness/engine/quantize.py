"""Quantization with llama.cpp, as in llama-quantize: the files are identical."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.logs import EngineLog
from gguf_harness.errors import InvalidGGUF, NotWritten, QuantizeError
from gguf_harness.gguf.header import TENSOR_TYPES, read_header
from gguf_harness.gguf.types import FTYPES, NEEDS_IMATRIX

__all__ = ["ImportanceMatrix", "load_imatrix", "quantize_file"]

ImportanceMatrix = dict[str, NDArray[np.float32]]
"""Importance of each input column of a tensor, [experts * columns], by tensor name."""

_STEP: Final = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_IMATRIX_HINT: Final = (
    "Make one with llama-imatrix and pass it with --gguf-imatrix=FILE, or choose a K-quant of 3 bits or more."
)
_PLANNED: Final = re.compile(r"quant size\s*=\s*([0-9.]+) MiB")
# ggml has these types for activations, indices and scores: it cannot quantize weights to them, and aborts.
_NOT_FOR_WEIGHTS: Final = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})


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
    """Quantize `files` to `quant` and write `destination` atomically.

    Quantizing a model that is quantized already is allowed, as with `llama-quantize --allow-requantize`: users who give
    such a model as reference are told so.

    Args:
        files: the source, or all its splits.
        destination: a .gguf file, replaced if it exists.
        quant: a name from `gguf_harness.gguf.types.FTYPES`.
        threads: CPU threads.
        imatrix: importance matrix in GGUF format, as llama-imatrix writes it.
        tensor_types: type by regular expression on the tensor's name, as `llama-quantize --tensor-type`.
        pure: all tensors of one type, as `llama-quantize --pure`.
        progress: called with (tensors done, tensors).

    Raises:
        QuantizeError: llama.cpp refused; a type that needs an importance matrix has none.
        NotWritten: no space.
    """
    if quant in NEEDS_IMATRIX and imatrix is None:
        raise QuantizeError(
            f"{quant} needs an importance matrix, and none was given.",
            _IMATRIX_HINT,
        )
    parameters, kept = _parameters(quant, threads, imatrix, tensor_types or {}, pure)
    needed = _planned_bytes(files[0], quant, parameters)
    temporary = _reserve(destination, needed, quant)
    try:
        _run(files[0], temporary, quant, parameters, _step_reader(progress))
        _check_written(temporary, quant)
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)
        # ctypes keeps no reference to what a pointer field points at.
        del kept


def load_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix: mean squared input per column, in_sum2 / counts (common/imatrix-loader.cpp).

    Raises:
        QuantizeError: a GGUF file without an importance matrix.
        InvalidGGUF: not a GGUF file (older ones end in .dat: llama-imatrix converts them).
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
            raise QuantizeError(f"{path.name}: {name} has no matching {stem}.counts.", "Make it with llama-imatrix.")
        if counts.size == 0 or sums.size % counts.size:
            raise QuantizeError(
                f"{path.name}: {name} has {sums.size} values for {counts.size} counts.", "Make it with llama-imatrix."
            )
        rows = sums.reshape(counts.size, -1).astype(np.float32)
        column = counts.reshape(-1, 1).astype(np.float32)
        # An expert that never ran has no data: all its columns get the same weight.
        result[stem] = np.where(column > 0, rows / np.maximum(column, 1), np.float32(1)).astype(np.float32).ravel()
    if not result:
        raise QuantizeError(f"{path.name} contains no importance matrix.", "Make one with llama-imatrix (GGUF format).")
    return result


def _parameters(
    quant: str, threads: int, imatrix: Path | None, tensor_types: Mapping[str, str], pure: bool
) -> tuple[Any, list[object]]:
    """Parameters as in llama-quantize, and the objects that must live as long as they are used."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = FTYPES[quant]
    parameters.allow_requantize = True
    parameters.pure = pure
    kept = [_set_tensor_types(parameters, tensor_types)]
    if imatrix is not None:
        kept.append(_set_imatrix(parameters, load_imatrix(imatrix)))
    return parameters, kept


def _planned_bytes(source: Path, quant: str, parameters: Any) -> int:
    """Size of the future file, from a dry run of llama.cpp, which takes milliseconds and writes nothing."""
    parameters.dry_run = True
    log = _run(source, source, quant, parameters, None)
    parameters.dry_run = False
    planned = next((match[1] for line in log.lines if (match := _PLANNED.search(line))), "0")
    return round(float(planned) * 2**20) + read_header(source).data_offset


def _run(
    source: Path, destination: Path, quant: str, parameters: Any, listener: Callable[[str], None] | None
) -> EngineLog:
    log = EngineLog(listener)
    with log.capture():
        llama_cpp.llama_backend_init()
        status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(destination), ctypes.byref(parameters))
    if status != 0:
        reason = log.last_problem()
        hint = "Its log has more; `gguf-harness inspect` shows whether the source is sound."
        if "imatrix" in reason:
            hint = _IMATRIX_HINT
        elif "iostream" in reason:
            hint = f"{destination.parent} could not be written to: its disk may be full."
            raise NotWritten(f"llama.cpp could not quantize {source.name} to {quant}: {reason}", hint)
        raise QuantizeError(f"llama.cpp could not quantize {source.name} to {quant}: {reason}", hint)
    return log


def _check_written(file: Path, quant: str) -> None:
    """Check the header against the file's size, since llama.cpp does not detect every failed write."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())
    try:
        read_header(file)
    except InvalidGGUF as error:
        raise NotWritten(
            f"The {quant} file that llama.cpp wrote is damaged: {error.message}",
            f"The disk of {file.parent} may be full.",
        ) from error
    file.chmod(0o644)


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
    numbers = {kind.name: number for number, kind in TENSOR_TYPES.items() if kind.name not in _NOT_FOR_WEIGHTS}
    entries = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for entry, (pattern, kind) in zip(entries, types.items(), strict=False):
        if kind.upper() not in numbers:
            raise QuantizeError(f"Unknown tensor type {kind!r} for {pattern!r}.", f"Known: {', '.join(numbers)}.")
        entry.pattern = pattern.encode()
        entry.type = numbers[kind.upper()]
    parameters.tt_overrides = entries
    return entries


def _step_reader(progress: Callable[[int, int], None] | None) -> Callable[[str], None] | None:
    if progress is None:
        return None

    def read(line: str) -> None:
        if match := _STEP.match(line):
            progress(int(match[1]), int(match[2]))

    return read


def _reserve(destination: Path, needed: int, quant: str) -> Path:
    """An empty temporary file next to the destination, if there is room for the result."""
    folder = destination.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise NotWritten(
                f"Quantizing to {quant} needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free.",
                "Free some space, or choose another --gguf-cache folder.",
            )
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{destination.stem[:40]}.", suffix=".gguf")
    except OSError as error:
        raise NotWritten(
            f"{destination} cannot be written: {error.strerror}.", "Choose another --gguf-cache folder."
        ) from error
    os.close(descriptor)
    return Path(name)
