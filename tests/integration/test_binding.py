"""Tensor access through ggml: types, strides and what lies between the elements of a view."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from gguf_harness.engine import binding
from gguf_harness.errors import EngineError, UnsupportedEngine
from gguf_harness.gguf.header import TENSOR_TYPES

pytestmark = pytest.mark.model

TYPES = {kind.name: number for number, kind in TENSOR_TYPES.items()}
NE = (64, 3, 2, 2)
SHAPE = (2, 2, 3, 64)


class Memory:
    """Tensors in a buffer of ggml's CPU backend."""

    def __init__(self) -> None:
        self.ggml = binding.library()
        self.context = self.ggml.ggml_init(binding._InitParams(1 << 16, None, True))
        folder = Path(str(llama_cpp.__file__)).parent / "lib"
        libraries = [ctypes.CDLL(str(file)) for stem in ("ggml-base", "ggml")
                     for file in binding._shared_libraries(folder, stem)]  # fmt: skip
        self.base, self.all = libraries
        self.buffer: int | None = None
        self.backend: int | None = None

    def call(self, name: str, arguments: list[Any], result: Any, *values: Any) -> Any:
        function = getattr(self.base, name, None) or getattr(self.all, name)
        function.argtypes, function.restype = arguments, result
        return function(*values)

    def new(self, kind: str) -> Any:
        return self.ggml.ggml_new_tensor_4d(self.context, TYPES[kind], *NE)

    def permuted(self, tensor: Any, *axes: int) -> Any:
        pointer = ctypes.POINTER(binding.Tensor)
        arguments = [ctypes.c_void_p, pointer, *[ctypes.c_int] * 4]
        return self.call("ggml_permute", arguments, pointer, self.context, tensor, *axes)

    def allocate(self) -> None:
        self.backend = self.call(
            "ggml_backend_init_by_type", [ctypes.c_int, ctypes.c_char_p], ctypes.c_void_p, 0, None
        )  # fmt: skip
        self.buffer = self.call(
            "ggml_backend_alloc_ctx_tensors", [ctypes.c_void_p] * 2, ctypes.c_void_p, self.context, self.backend
        )
        assert self.buffer

    def fill(self, tensor: Any, raw: NDArray[Any]) -> None:
        raw = np.ascontiguousarray(raw)
        assert raw.nbytes == self.ggml.ggml_nbytes(tensor)
        self.ggml.ggml_backend_tensor_set(ctypes.addressof(tensor.contents), raw.ctypes.data, 0, raw.nbytes)

    def close(self) -> None:
        if self.buffer:
            self.call("ggml_backend_buffer_free", [ctypes.c_void_p], None, self.buffer)
        if self.backend:
            self.call("ggml_backend_free", [ctypes.c_void_p], None, self.backend)
        self.ggml.ggml_free(self.context)


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


@pytest.fixture
def values() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_are_written_and_read(memory: Memory, values: NDArray[np.float32], kind: str) -> None:
    tensor = memory.new(kind)
    memory.allocate()
    binding.write_tensor(tensor, values)
    read = binding.read_tensor(tensor)
    assert read.dtype == np.float32
    assert read.shape == SHAPE
    # The gguf package rounds BF16 on its own: to nearest, ties to even.
    expected = dequantize(quantize(values, GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
    assert (read == expected.reshape(SHAPE)).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_single_precision_in_host_memory_is_viewed(memory: Memory, values: NDArray[np.float32], kind: str) -> None:
    tensor = memory.new(kind)
    dimensions, strides = (16, *SHAPE[-2::-1]), tensor.contents.nb
    part = memory.ggml.ggml_view_4d(memory.context, tensor, *dimensions, strides[1], strides[2], strides[3], strides[0])
    memory.allocate()
    binding.write_tensor(tensor, values)
    for each in (tensor, part):
        copy, viewed = binding.read_tensor(each), binding.view_tensor(each)
        assert (viewed == copy).all()
        assert not viewed.flags.writeable
        binding.write_tensor(each, copy + 1)
        assert (viewed == binding.read_tensor(each)).all() == (kind == "F32")
    with pytest.raises(ValueError, match="read-only"):
        viewed[...] = 0


def test_integers_are_read(memory: Memory) -> None:
    tensor = memory.new("I32")
    memory.allocate()
    numbers = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE) - 100
    memory.fill(tensor, numbers)
    assert (binding.read_tensor(tensor) == numbers).all()
    with pytest.raises(EngineError, match="A I32 tensor cannot be patched"):
        binding.write_tensor(tensor, numbers.astype(np.float32))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_quantized_tensors_are_read(memory: Memory, values: NDArray[np.float32], kind: str) -> None:
    tensor = memory.new(kind)
    # A view of every second row, as a KV cache gives one.
    view = memory.ggml.ggml_view_4d(
        memory.context, tensor, 64, 2, 2, 2, 2 * tensor.contents.nb[1], tensor.contents.nb[2], tensor.contents.nb[3], 0
    )
    memory.allocate()
    blocks = quantize(values, GGMLQuantizationType[kind])
    memory.fill(tensor, blocks)
    expected = dequantize(blocks, GGMLQuantizationType[kind]).reshape(SHAPE)
    assert (binding.read_tensor(tensor) == expected).all()
    assert (binding.read_tensor(view) == expected[:, :, ::2]).all()
    with pytest.raises(EngineError, match=f"A {kind} tensor cannot be patched"):
        binding.write_tensor(tensor, values)


def test_a_type_that_gguf_does_not_know_is_one_message(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = memory.new("Q8_0")
    memory.allocate()
    memory.fill(tensor, np.zeros(memory.ggml.ggml_nbytes(tensor), dtype=np.uint8))

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("gguf.quants.dequantize", refuse)
    with pytest.raises(EngineError, match="A Q8_0 tensor cannot be read"):
        binding.read_tensor(tensor)


def test_permuted_tensors_are_read_and_written(memory: Memory, values: NDArray[np.float32]) -> None:
    tensor = memory.new("F32")
    view = memory.permuted(tensor, 0, 2, 1, 3)
    memory.allocate()
    memory.fill(tensor, values)
    turned = values.swapaxes(1, 2)
    assert (binding.read_tensor(view) == turned).all()
    binding.write_tensor(view, np.ascontiguousarray(turned * 2))
    assert (binding.read_tensor(tensor) == values * 2).all()


def test_writing_a_view_leaves_what_lies_between(memory: Memory, values: NDArray[np.float32]) -> None:
    """Q in a joint QKV projection: 16 of every 64 numbers."""
    tensor = memory.new("F32")
    strides = tuple(tensor.contents.nb)
    view = memory.ggml.ggml_view_4d(memory.context, tensor, 16, 3, 2, 2, *strides[1:], 32 * 4)
    memory.allocate()
    memory.fill(tensor, values)
    assert (binding.read_tensor(view) == values[..., 32:48]).all()
    binding.write_tensor(view, np.zeros((2, 2, 3, 16), dtype=np.float32))
    expected = values.copy()
    expected[..., 32:48] = 0
    assert (binding.read_tensor(tensor) == expected).all()


def test_a_missing_engine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(UnsupportedEngine, match=r"not installed\.\n  pip install 'llama-cpp-python==0\.3\.36'"):
        binding.require_supported_engine()


def test_a_wrong_version_is_said_without_loading_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.0")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UnsupportedEngine, match=r"0\.4\.0 is installed"):
        binding.require_supported_engine()


def test_another_library_folder_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    binding.library.cache_clear()
    try:
        with pytest.raises(UnsupportedEngine, match=f"in {tmp_path} has no function"):
            binding.library()
    finally:
        monkeypatch.undo()
        binding.library.cache_clear()


def test_the_engine_is_described_in_json_types() -> None:
    (cpu, *_) = binding.engine_info().to_json()["backends"]
    assert {type(value) for value in cpu.values()} == {str, int}
    assert cpu["memory_bytes"] > 0
