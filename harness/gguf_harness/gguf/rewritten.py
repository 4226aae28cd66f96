"""GGUF files written again with other tensors: metadata byte for byte, the list of tensors and their data anew."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from gguf_harness.errors import InvalidGGUF
from gguf_harness.gguf.header import TENSOR_TYPES, GGUFHeader, TensorInfo

__all__ = ["Content", "padded", "read_blocks", "stored", "write_tensors"]

Content = tuple[TensorInfo, Callable[[], Iterable[bytes]]]
"""A tensor as it is to be written, and what gives its data; its offset is not used."""

_COPY_BLOCK: Final = 1 << 23
_NUMBERS: Final = {kind.name: number for number, kind in TENSOR_TYPES.items()}


def write_tensors(header: GGUFHeader, contents: Sequence[Content], path: Path) -> Path:
    """Write a new file with the metadata of another one.

    Args:
        header: of the file whose metadata is copied.
        contents: its tensors, in order, as many as there.
        path: the new file, which must not exist.

    Raises:
        OSError: it cannot be written.
        InvalidGGUF: a file that is read has shrunk.
    """
    with header.path.open("rb") as source, path.open("xb") as out:
        out.writelines(read_blocks(source, 0, header.tensors_offset))
        offset = 0
        for info, _ in contents:
            name = info.name.encode()
            out.write(struct.pack(f"<Q{len(name)}sI{len(info.shape)}Q", len(name), name, len(info.shape), *info.shape))
            out.write(struct.pack("<IQ", _NUMBERS[info.type], offset))
            offset += padded(info.bytes, header.alignment)
        _pad(out, header.alignment)
        for _, data in contents:
            out.writelines(data())
            _pad(out, header.alignment)
    return path


def stored(header: GGUFHeader, info: TensorInfo) -> Content:
    """A tensor as it is in a file."""

    def data() -> Iterator[bytes]:
        with header.path.open("rb") as source:
            yield from read_blocks(source, header.data_offset + info.offset, info.bytes)

    return info, data


def read_blocks(source: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    """Bytes of a file, a few megabytes at a time.

    Raises:
        InvalidGGUF: the file is shorter.
    """
    source.seek(offset)
    for start in range(0, size, _COPY_BLOCK):
        wanted = min(size - start, _COPY_BLOCK)
        block = source.read(wanted)
        if len(block) != wanted:
            raise InvalidGGUF(
                f"{Path(source.name).name} has shrunk since its header was read.", "Download or create it again."
            )
        yield block


def padded(size: int, alignment: int) -> int:
    """The size with its padding."""
    return -(-size // alignment) * alignment


def _pad(out: BinaryIO, alignment: int) -> None:
    out.write(bytes(padded(out.tell(), alignment) - out.tell()))
