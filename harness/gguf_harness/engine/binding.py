"""What llama-cpp-python lacks: ggml's tensor access and device list, through ctypes.

ggml's own functions do the work where they exist. The only struct that must be read directly, `ggml_tensor`, is checked
against tensors made by the loaded library: a different layout is an error at the start instead of garbage in a result.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import EngineError, UnsupportedEngine
from gguf_harness.gguf.header import TENSOR_TYPES

__all__ = [
    "EngineInfo",
    "Tensor",
    "engine_info",
    "read_tensor",
    "require_supported_engine",
    "view_tensor",
    "write_tensor",
]

OLDEST: Final = (0, 3, 36)
NEWEST_BEFORE: Final = (0, 3, 37)
"""Supported versions of llama-cpp-python: from the first, up to but not including the second. Extend after running the
tests.
"""

_MAX_DIMS, _MAX_SRC, _MAX_NAME, _OP_PARAMS = 4, 10, 64, 16


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` (ggml/include/ggml.h); `check_layout` compares it with the loaded library."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _MAX_DIMS),
    ("nb", ctypes.c_size_t * _MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * _OP_PARAMS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * _MAX_SRC),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _MAX_NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]

TensorPointer = Any
"""A `ctypes.POINTER(Tensor)` instance, or the address that a callback gives."""


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


_SIGNATURES: Final[dict[str, tuple[list[Any], Any]]] = {
    "ggml_nbytes": ([ctypes.c_void_p], ctypes.c_size_t),
    "ggml_op_desc": ([ctypes.c_void_p], ctypes.c_char_p),
    "ggml_backend_tensor_get": ([ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t], None),
    "ggml_backend_tensor_set": ([ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t], None),
    "ggml_backend_buffer_is_host": ([ctypes.c_void_p], ctypes.c_bool),
    "ggml_backend_buffer_get_size": ([ctypes.c_void_p], ctypes.c_size_t),
    "ggml_get_type_traits": ([ctypes.c_int], ctypes.c_void_p),
    "ggml_get_type_traits_cpu": ([ctypes.c_int], ctypes.c_void_p),
    "ggml_tensor_overhead": ([], ctypes.c_size_t),
    "ggml_init": ([_InitParams], ctypes.c_void_p),
    "ggml_free": ([ctypes.c_void_p], None),
    "ggml_new_tensor_4d": ([ctypes.c_void_p, ctypes.c_int, *[ctypes.c_int64] * 4], ctypes.POINTER(Tensor)),
    "ggml_view_4d": (
        [ctypes.c_void_p, ctypes.POINTER(Tensor), *[ctypes.c_int64] * 4, *[ctypes.c_size_t] * 4],
        ctypes.POINTER(Tensor),
    ),
    "ggml_set_input": ([ctypes.POINTER(Tensor)], None),
    "ggml_set_name": ([ctypes.POINTER(Tensor), ctypes.c_char_p], ctypes.POINTER(Tensor)),
    "ggml_commit": ([], ctypes.c_char_p),
    "ggml_version": ([], ctypes.c_char_p),
    "ggml_backend_dev_count": ([], ctypes.c_size_t),
    "ggml_backend_dev_get": ([ctypes.c_size_t], ctypes.c_void_p),
    "ggml_backend_dev_name": ([ctypes.c_void_p], ctypes.c_char_p),
    "ggml_backend_dev_description": ([ctypes.c_void_p], ctypes.c_char_p),
    "ggml_backend_dev_memory": (
        [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)],
        None,
    ),
}


def require_supported_engine() -> None:
    """Check version and struct layout before anything is read.

    Raises:
        UnsupportedEngine: names the installed and the supported versions.
    """
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST_BEFORE))
    try:
        installed = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        raise UnsupportedEngine(
            "llama-cpp-python is not installed.", f"pip install 'llama-cpp-python=={oldest}'"
        ) from None
    numbers = tuple(int(part) for part in installed.split("+")[0].split(".")[:3] if part.isdigit())
    if not OLDEST <= numbers < NEWEST_BEFORE:
        raise UnsupportedEngine(
            f"llama-cpp-python {installed} is installed; this version of gguf-harness supports {oldest} up to, but not"
            f" including, {newest}.",
            f"pip install 'llama-cpp-python=={oldest}'",
        )
    check_layout()


@functools.cache
def library() -> Any:
    """Ggml's functions with their signatures.

    Raises:
        UnsupportedEngine: the library lacks one.
    """
    from gguf_harness.engine.c_api import llama_cpp

    # The folder that llama-cpp-python loads from: a second copy of ggml would not share tensors with the first.
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    folder = Path(override) if override else Path(str(llama_cpp.__file__)).parent / "lib"
    # libggml depends on libggml-base: symbols of both are found through the already loaded libraries.
    loaded = [ctypes.CDLL(str(file)) for stem in ("ggml-base", "ggml") for file in _shared_libraries(folder, stem)]
    functions: dict[str, Any] = {}
    for name, (arguments, result) in _SIGNATURES.items():
        function = next((getattr(lib, name) for lib in loaded if hasattr(lib, name)), None)
        if function is None:
            raise UnsupportedEngine(f"The ggml library in {folder} has no function {name}.", "Reinstall gguf-harness.")
        function.argtypes, function.restype = arguments, result
        functions[name] = function
    return type("Library", (), {name: staticmethod(function) for name, function in functions.items()})


def _shared_libraries(folder: Path, stem: str) -> list[Path]:
    names = (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll")
    return [folder / name for name in names if (folder / name).is_file()]


@functools.cache
def check_layout() -> None:
    """Check `Tensor` against tensors made by the loaded library.

    Raises:
        UnsupportedEngine: a field is not where it is expected.
    """
    ggml = library()
    context = ggml.ggml_init(_InitParams(1 << 16, None, True))
    try:
        source = ggml.ggml_new_tensor_4d(context, 0, 7, 5, 3, 2)
        ggml.ggml_set_name(source, b"layout-probe")
        ggml.ggml_set_input(source)
        view = ggml.ggml_view_4d(context, source, 3, 2, 2, 1, 28, 140, 420, 56)
        tensor, seen = source.contents, view.contents
        layout = {
            "type": tensor.type,
            "ne": list(tensor.ne),
            "nb": list(tensor.nb),
            "name": tensor.name,
            "flags": tensor.flags,
            "size": ctypes.sizeof(Tensor) <= ggml.ggml_tensor_overhead(),
            "view_src": seen.view_src == ctypes.addressof(tensor),
            "view_offs": seen.view_offs,
            "src": ctypes.addressof(seen.src[0].contents) == ctypes.addressof(tensor) if seen.src[0] else False,
            "op": ggml.ggml_op_desc(ctypes.addressof(seen)),
        }
    finally:
        ggml.ggml_free(context)
    expected = {
        "type": 0,
        "ne": [7, 5, 3, 2],
        "nb": [4, 28, 140, 420],
        "name": b"layout-probe",
        "flags": 1,
        "size": True,
        "view_src": True,
        "view_offs": 56,
        "src": True,
        "op": b"VIEW",
    }
    wrong = {name: value for name, value in layout.items() if value != expected[name]}
    if wrong:
        raise UnsupportedEngine(
            f"The loaded ggml has another tensor layout than expected: {wrong}.",
            "Install the llama-cpp-python version that gguf-harness requires.",
        )


def read_tensor(pointer: TensorPointer) -> NDArray[np.float32]:
    """Read a tensor, whatever its type, strides and backend.

    Returns:
        A float32 copy in numpy's order: the shape is ggml's `ne` reversed, [ne3, ne2, ne1, ne0].

    Raises:
        EngineError: a quantized type that the gguf package cannot dequantize.
    """
    tensor, address = _tensor(pointer)
    ggml = library()
    size = ggml.ggml_nbytes(address)
    raw = np.empty(size, dtype=np.uint8)
    ggml.ggml_backend_tensor_get(address, raw.ctypes.data, 0, size)
    kind = _kind(tensor.type)
    shape = tuple(reversed(tensor.ne))
    if kind in _NUMPY_TYPES:
        strided = np.ndarray(shape, _NUMPY_TYPES[kind], buffer=raw, strides=tuple(reversed(tensor.nb)))
        if kind == "BF16":
            widened = strided.astype(np.uint32) << 16
            return widened.view(np.float32)
        # The bytes are already a copy.
        return strided.astype(np.float32, copy=False)
    return _dequantize(raw, tensor, kind, shape)


def view_tensor(pointer: TensorPointer) -> NDArray[np.float32]:
    """View a tensor in place if it has single precision and is in this process's memory; otherwise return a copy.

    Returns:
        As `read_tensor`, but not to be written to. A view is valid until the graph continues and llama.cpp reuses the
        memory. Copy what you keep.
    """
    tensor, address = _tensor(pointer)
    buffer = Tensor.from_address(tensor.view_src).buffer if tensor.view_src else tensor.buffer
    ggml = library()
    if _kind(tensor.type) == "F32" and buffer and tensor.data and ggml.ggml_backend_buffer_is_host(buffer):
        memory = (ctypes.c_char * ggml.ggml_nbytes(address)).from_address(tensor.data)
        shape, strides = tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
        values: NDArray[np.float32] = np.ndarray(shape, np.float32, buffer=memory, strides=strides)
    else:
        values = read_tensor(address)
    values.flags.writeable = False
    return values


def write_tensor(pointer: TensorPointer, values: NDArray[np.float32]) -> None:
    """Write a tensor in place; all later operations of the graph see it.

    Args:
        pointer: a F32, F16 or BF16 tensor.
        values: in the shape returned by `read_tensor`.

    Raises:
        EngineError: another shape, or a quantized tensor.
    """
    tensor, address = _tensor(pointer)
    kind, shape = _kind(tensor.type), tuple(reversed(tensor.ne))
    if values.shape != shape:
        raise EngineError(f"A tensor of shape {shape} cannot be patched with an array of shape {values.shape}.")
    if kind not in _WRITABLE:
        raise EngineError(f"A {kind} tensor cannot be patched, expected one of {', '.join(_WRITABLE)}.")
    ggml = library()
    size = ggml.ggml_nbytes(address)
    raw = np.empty(size, dtype=np.uint8)
    # Bytes between the elements of a strided view belong to other tensors: read them and write them back unchanged.
    ggml.ggml_backend_tensor_get(address, raw.ctypes.data, 0, size)
    strided = np.ndarray(shape, _NUMPY_TYPES[kind], buffer=raw, strides=tuple(reversed(tensor.nb)))
    if kind == "BF16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        strided[...] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    else:
        strided[...] = values
    ggml.ggml_backend_tensor_set(address, raw.ctypes.data, 0, size)


_NUMPY_TYPES: Final[dict[str, Any]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}
_WRITABLE: Final = ("F32", "F16", "BF16")


def _tensor(pointer: TensorPointer) -> tuple[Tensor, int]:
    address = pointer if isinstance(pointer, int) else ctypes.addressof(pointer.contents)
    return Tensor.from_address(address), address


def _kind(number: int) -> str:
    try:
        return TENSOR_TYPES[number].name
    except KeyError:
        raise UnsupportedEngine(f"A tensor of the graph has the unknown type {number}.") from None


def _dequantize(raw: NDArray[np.uint8], tensor: Tensor, kind: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    row_bytes = tensor.ne[0] // TENSOR_TYPES[tensor.type].block * TENSOR_TYPES[tensor.type].block_bytes
    strides = (*reversed(tensor.nb[1:]), 1)
    rows = np.ndarray((*shape[:-1], row_bytes), np.uint8, buffer=raw, strides=strides)
    try:
        values = dequantize(np.ascontiguousarray(rows), GGMLQuantizationType[kind])
    except (KeyError, NotImplementedError):
        raise EngineError(f"A {kind} tensor cannot be read: the gguf package does not know the type.") from None
    return np.asarray(values, dtype=np.float32).reshape(shape)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """llama.cpp's description of itself."""

    llama_cpp_python: str
    llama_cpp: str
    backends: list[dict[str, Any]]
    system_info: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def engine_info() -> EngineInfo:
    """Build, devices and CPU features."""
    from gguf_harness.engine.c_api import llama_cpp

    llama_cpp.llama_backend_init()
    ggml = library()
    commit, version = (value.decode() if value else "unknown" for value in (ggml.ggml_commit(), ggml.ggml_version()))
    return EngineInfo(
        llama_cpp_python=metadata.version("llama-cpp-python"),
        llama_cpp=f"{commit} (ggml {version})",
        backends=[_device(ggml, index) for index in range(ggml.ggml_backend_dev_count())],
        system_info=llama_cpp.llama_print_system_info().decode("utf-8", "replace"),
    )


def _device(ggml: Any, index: int) -> dict[str, Any]:
    device = ggml.ggml_backend_dev_get(index)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return {
        "name": ggml.ggml_backend_dev_name(device).decode("utf-8", "replace"),
        "description": ggml.ggml_backend_dev_description(device).decode("utf-8", "replace"),
        "memory_bytes": total.value,
    }
