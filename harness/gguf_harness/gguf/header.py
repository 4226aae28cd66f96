"""Read and validate the header of a GGUF file before llama.cpp does, which aborts on some invalid ones.

The format is specified in ggml's docs/gguf.md. For any bytes, the result is a header or an `InvalidGGUF` that says what
is wrong, in time and memory bounded by the file size. Standard library only: this runs while pytest collects.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from gguf_harness.errors import InvalidGGUF, visible
from gguf_harness.gguf.metadata import ArraySummary, Metadata

__all__ = ["TENSOR_TYPES", "GGUFHeader", "TensorInfo", "TensorType", "read_header"]


@dataclass(frozen=True, slots=True)
class TensorType:
    """Storage of a type: `block_bytes` bytes for each `block` weights of a row."""

    name: str
    block: int
    block_bytes: int


def _types(*rows: tuple[int, str, int, int]) -> dict[int, TensorType]:
    return {number: TensorType(name, block, size) for number, name, block, size in rows}


TENSOR_TYPES: Final = _types(
    (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 40), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18), (42, "Q2_0", 64, 18),
)  # fmt: skip
"""`enum ggml_type` with block sizes (ggml/include/ggml.h, ggml/src/ggml-common.h)."""

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SCALARS: Final[dict[int, struct.Struct]] = {
    number: struct.Struct(f"<{code}")
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_STRING, _ARRAY = 8, 9
_TYPE_NAMES: Final = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"),
    *("bool", "string", "array", "uint64", "int64", "float64"),
)
_U64: Final = struct.Struct("<Q")
_MIN_KV_BYTES, _MIN_TENSOR_BYTES = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8
_MAX_NAME, _MAX_KEY, _MAX_DIMS, _KEPT_ELEMENTS = 63, 65535, 4, 4096
_LOOKS_LIKE: Final = {
    b"version https://git-lfs": "a git-lfs pointer: fetch the real file with `git lfs pull`",
    b"<!DOCTYPE": "an HTML page: the download went wrong",
    b"<html": "an HTML page: the download went wrong",
    b"PK\x03\x04": "a zip archive (perhaps a PyTorch checkpoint): convert it with llama.cpp's convert_hf_to_gguf.py",
    b"ggml": "a GGML file from before GGUF: convert the original model again",
    b"ggjt": "a GGJT file from before GGUF: convert the original model again",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor.

    Attributes:
        name: as llama.cpp knows it.
        shape: ggml's order; the first number is the length of a row.
        type: name of the type.
        offset: from the start of the data section.
        bytes: size of its data.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Everything in a GGUF file except the weights.

    Attributes:
        metadata: key to value; arrays are tuples when short and of numbers, otherwise an `ArraySummary`.
        tensors_offset: where the list of tensors starts, after the metadata.
        alignment: of the list's end and of each tensor's data.
        vocab_sha256: hash of tokenizer model and token list; None for a file without vocabulary.
    """

    path: Path
    version: int
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    tensors_offset: int
    data_offset: int
    alignment: int
    file_bytes: int
    vocab_sha256: str | None


def read_header(path: Path) -> GGUFHeader:
    """Read and validate.

    Raises:
        InvalidGGUF: if anything is wrong with the file.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise InvalidGGUF(
                f"{path} is a link to {visible(str(path.readlink()))}, which does not exist.",
                "Download it again, or link to the file.",
            )
        if not path.is_file():
            raise InvalidGGUF(f"{path} is not a file.", "Give the path of a .gguf file.")
        size = path.stat().st_size
        if size == 0:
            raise InvalidGGUF(f"{path.name} is empty (0 bytes).", "Download or create it again.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(path, data, size).parse()
    except OSError as error:
        raise InvalidGGUF(f"{path} cannot be read: {error.strerror or error}.", "Check its permissions.") from error


class _Parser:
    """A single pass over the bytes; every read is checked against the file's end."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path = path
        self._data = data
        self._size = size
        self._at = 0

    def parse(self) -> GGUFHeader:
        version, n_tensors, n_kv = self._preamble()
        metadata = self._metadata(n_kv)
        alignment = metadata.integer("general.alignment")
        alignment = 32 if alignment is None else alignment
        if alignment < 1 or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment}, expected a power of two")
        tensors_offset = self._at
        infos = self._tensor_infos(n_tensors)
        data_offset = -(-self._at // alignment) * alignment
        self._check_layout(infos, alignment, data_offset)
        return GGUFHeader(
            path=self._path,
            version=version,
            metadata=metadata,
            tensors=infos,
            tensors_offset=tensors_offset,
            data_offset=data_offset,
            alignment=alignment,
            file_bytes=self._size,
            vocab_sha256=_hash_vocabulary(metadata),
        )

    def _preamble(self) -> tuple[int, int, int]:
        magic = bytes(self._data[:4])
        if magic != _MAGIC:
            start = bytes(self._data[:32])
            for prefix, what in _LOOKS_LIKE.items():
                if start.startswith(prefix):
                    self._fail(f"the file looks like {what}")
            self._fail(f"it starts with {start[:8]!r}, expected b'GGUF': this is not a GGUF file, despite its name")
        self._at = 4
        version = self._unpack(_SCALARS[4], "the version")
        if version not in _VERSIONS:
            if version and version & 0xFFFF == 0:
                self._fail("its byte order is big-endian, expected little-endian: convert it on this machine")
            self._fail(f"its GGUF version is {version}, expected 2 or 3: convert the model again")
        n_tensors = self._unpack(_U64, "the number of tensors")
        n_kv = self._unpack(_U64, "the number of metadata entries")
        for count, minimum, what in (
            (n_tensors, _MIN_TENSOR_BYTES, "tensors"),
            (n_kv, _MIN_KV_BYTES, "metadata entries"),
        ):
            if count * minimum > self._size:
                self._fail(f"it claims {count} {what}, impossible in {self._size} bytes")
        return version, n_tensors, n_kv

    def _metadata(self, count: int) -> Metadata:
        metadata = Metadata(self._path.name)
        for index in range(count):
            key = self._string(f"metadata key {index}", _MAX_KEY)
            if not key or not key.isprintable():
                self._fail(f"metadata key {index} is {key[:40]!r}, expected a printable name")
            if key in metadata:
                self._fail(f"metadata key {key!r} occurs twice")
            metadata[key], metadata.types[key] = self._value(key)
        return metadata

    def _value(self, key: str) -> tuple[Any, str]:
        """(value, name of its type)."""
        kind = self._unpack(_SCALARS[4], f"the type of {key}")
        if kind == _STRING:
            return self._string(key), _TYPE_NAMES[kind]
        if kind == _ARRAY:
            kind = self._unpack(_SCALARS[4], f"the element type of {key}")
            return self._array(key, kind), f"array of {_TYPE_NAMES[kind]}"
        if kind not in _SCALARS:
            self._fail(f"metadata {key!r} has type {kind}, expected 0 to 12")
        return self._unpack(_SCALARS[kind], key), _TYPE_NAMES[kind]

    def _array(self, key: str, kind: int) -> tuple[Any, ...] | ArraySummary:
        count = self._unpack(_U64, f"the length of {key}")
        if kind != _STRING and kind not in _SCALARS:
            self._fail(f"metadata {key!r} is an array of type {kind}, expected a scalar or string type")
        smallest = 8 if kind == _STRING else _SCALARS[kind].size
        if count * smallest > self._size - self._at:
            self._fail(f"metadata {key!r} claims {count} elements, more than the file has room for")
        start = self._at
        if kind == _STRING:
            self._skip_strings(key, count)
        else:
            self._at += count * smallest
            if count <= _KEPT_ELEMENTS:
                code = _SCALARS[kind].format[1:]
                return struct.unpack_from(f"<{count}{code}", self._data, start)
        return ArraySummary(count, hashlib.sha256(self._data[start : self._at]).hexdigest())

    def _skip_strings(self, key: str, count: int) -> None:
        at, size, data, unpack = self._at, self._size, self._data, _U64.unpack_from
        for index in range(count):
            if at + 8 > size:
                self._truncated(f"element {index} of {key}")
            at += 8 + unpack(data, at)[0]
            if at > size:
                self._truncated(f"element {index} of {key}")
        self._at = at

    def _tensor_infos(self, count: int) -> tuple[TensorInfo, ...]:
        infos: dict[str, TensorInfo] = {}
        for index in range(count):
            name = self._string(f"the name of tensor {index}", _MAX_NAME)
            if not name or not name.isprintable():
                self._fail(f"tensor {index} is named {name!r}, expected a printable name")
            if name in infos:
                self._fail(f"tensor {name!r} occurs twice")
            infos[name] = self._tensor_info(name)
        return tuple(infos.values())

    def _tensor_info(self, name: str) -> TensorInfo:
        n_dims = self._unpack(_SCALARS[4], f"the dimensions of {name}")
        if not 1 <= n_dims <= _MAX_DIMS:
            self._fail(f"tensor {name!r} has {n_dims} dimensions, expected 1 to {_MAX_DIMS}")
        shape = tuple(self._unpack(_U64, f"the shape of {name}") for _ in range(n_dims))
        number = self._unpack(_SCALARS[4], f"the type of {name}")
        offset = self._unpack(_U64, f"the offset of {name}")
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            self._fail(f"tensor {name!r} has type {number}, which this llama.cpp does not know")
        elements = math.prod(shape)
        if min(shape) < 1 or elements >= 2**63:
            self._fail(f"tensor {name!r} has the impossible shape {shape}")
        if shape[0] % kind.block:
            self._fail(f"tensor {name!r} has rows of {shape[0]}, not a multiple of {kind.name}'s block of {kind.block}")
        return TensorInfo(name, shape, kind.name, offset, elements // kind.block * kind.block_bytes)

    def _check_layout(self, infos: tuple[TensorInfo, ...], alignment: int, data_offset: int) -> None:
        """Check that tensors are packed in order, each padded to the alignment, as ggml's reader requires."""
        expected = 0
        for info in infos:
            if info.offset != expected:
                self._fail(f"tensor {info.name!r} starts at offset {info.offset}, expected {expected}")
            end = data_offset + info.offset + info.bytes
            if end > self._size:
                total = data_offset + sum(-(-i.bytes // alignment) * alignment for i in infos)
                self._fail(
                    f"it is truncated: the data of tensor {info.name!r} ends at byte {end}, the file at {self._size}"
                    f" (about {max(total - self._size, 1):,} of {total:,} bytes are missing)"
                )
            expected += -(-info.bytes // alignment) * alignment

    def _string(self, what: str, limit: int | None = None) -> str:
        length = self._unpack(_U64, f"the length of {what}")
        if limit is not None and length > limit:
            self._fail(f"{what} claims to be {length} bytes long, expected at most {limit}")
        if length > self._size - self._at:
            self._truncated(what)
        raw = self._data[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8", "replace")

    def _unpack(self, kind: struct.Struct, what: str) -> Any:
        if self._at + kind.size > self._size:
            self._truncated(what)
        value = kind.unpack_from(self._data, self._at)[0]
        self._at += kind.size
        return value

    def _truncated(self, what: str) -> NoReturn:
        self._fail(f"it ends at byte {self._size}, inside {what}: the file is truncated or damaged")

    def _fail(self, problem: str) -> NoReturn:
        raise InvalidGGUF(
            f"{self._path.name} is not a valid GGUF file: {problem}.",
            f"Download or create it again. Path: {self._path}",
        )


def _hash_vocabulary(metadata: Metadata) -> str | None:
    """Two models share a vocabulary if each token id means the same text.

    Only that determines the meaning of logits.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return None
    content = repr((metadata.get("tokenizer.ggml.model"), tokens))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
