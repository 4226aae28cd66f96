"""GGUF headers taken apart and put together again, byte by byte: what gguf's writer would not write."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_harness.gguf.header import read_header

__all__ = ["ARRAY", "SCALARS", "STRING", "RawGGUF", "array", "read_raw", "scalar", "string"]

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`struct` codes by number of `enum gguf_type`."""
STRING, ARRAY = 8, 9


def scalar(kind: int, value: float) -> bytes:
    """A value with its type."""
    return struct.pack(f"<I{SCALARS[kind]}", kind, value)


def string(text: str | bytes) -> bytes:
    """A text with its type."""
    return struct.pack("<I", STRING) + _bytes(text)


def array(kind: int, values: Iterable[float | str | bytes]) -> bytes:
    """An array with its type."""
    values = list(values)
    items = [_bytes(v) if isinstance(v, str | bytes) else struct.pack(f"<{SCALARS[kind]}", v) for v in values]
    return struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(items)


def _bytes(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


@dataclass(frozen=True)
class RawGGUF:
    """A file's metadata as bytes by key, and what follows it: the list of tensors, and their data."""

    metadata: Mapping[str, bytes]
    tensors: int
    infos: bytes
    data: bytes

    def write(self, path: Path, changes: Mapping[str, bytes | None]) -> Path:
        """Write it with other values for some keys, or without them (None)."""
        entries = {key: value for key, value in {**self.metadata, **changes}.items() if value is not None}
        head = b"GGUF" + struct.pack("<IQQ", 3, self.tensors, len(entries))
        head += b"".join(_bytes(key) + value for key, value in entries.items()) + self.infos
        path.write_bytes(head + bytes(-len(head) % 32) + self.data)
        return path


def read_raw(path: Path) -> RawGGUF:
    """Take a sound file apart; its alignment is 32."""
    content, header = path.read_bytes(), read_header(path)
    at, entries = 24, {}
    for _ in header.metadata:
        length = struct.unpack_from("<Q", content, at)[0]
        key = content[at + 8 : at + 8 + length].decode()
        start = at = at + 8 + length
        at = _end_of_value(content, at)
        entries[key] = content[start:at]
    infos = content[at : at + _length_of_infos(content, at, len(header.tensors))]
    return RawGGUF(entries, len(header.tensors), infos, content[header.data_offset :])


def _end_of_value(content: bytes, at: int) -> int:
    kind = struct.unpack_from("<I", content, at)[0]
    at += 4
    if kind == STRING:
        return at + 8 + int(struct.unpack_from("<Q", content, at)[0])
    if kind != ARRAY:
        return at + struct.calcsize(SCALARS[kind])
    inner, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if inner != STRING:
        return at + int(count) * struct.calcsize(SCALARS[inner])
    for _ in range(count):
        at += 8 + struct.unpack_from("<Q", content, at)[0]
    return at


def _length_of_infos(content: bytes, start: int, tensors: int) -> int:
    at = start
    for _ in range(tensors):
        at += 8 + struct.unpack_from("<Q", content, at)[0]
        at += 4 + 8 * struct.unpack_from("<I", content, at)[0] + 4 + 8
    return at - start
