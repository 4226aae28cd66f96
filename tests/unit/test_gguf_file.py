"""The validator against gguf's own reader, hostile files, and arbitrary bytes."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gguf_harness.errors import InvalidGGUF
from gguf_harness.gguf.header import TENSOR_TYPES, read_header
from gguf_harness.gguf.metadata import ArraySummary


def test_agrees_with_the_gguf_package(smollm2_file: Path) -> None:
    header, reader = read_header(smollm2_file), GGUFReader(smollm2_file)
    ours = [(t.name, t.shape, t.type, t.bytes, header.data_offset + t.offset) for t in header.tensors]
    theirs = [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.n_bytes, int(t.data_offset)) for t in reader.tensors
    ]
    assert ours == theirs
    assert header.version == reader.fields["GGUF.version"].contents()
    for key, value in header.metadata.items():
        if isinstance(value, ArraySummary):
            assert value.count == len(reader.fields[key].data)
        else:
            expected = reader.fields[key].contents()
            assert (list(value) if isinstance(value, tuple) else value) == expected


def test_type_table_agrees_with_the_gguf_package() -> None:
    for kind, (block, size) in GGML_QUANT_SIZES.items():
        ours = TENSOR_TYPES[GGMLQuantizationType(kind).value]
        assert (ours.name, ours.block, ours.block_bytes) == (kind.name, block, size)


def test_same_vocabulary_has_the_same_hash(llama_file: Path, tmp_path: Path) -> None:
    from tests.random_llama import write_random_llama

    same = write_random_llama(tmp_path / "same.gguf", seed=5)
    other = write_random_llama(tmp_path / "other.gguf", extra_tokens=1)
    assert read_header(llama_file).vocab_sha256 == read_header(same).vocab_sha256
    assert read_header(llama_file).vocab_sha256 != read_header(other).vocab_sha256


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _string(text: bytes) -> bytes:
    return _u64(len(text)) + text


def _file(
    kv: list[bytes] | None = None, tensors: list[bytes] | None = None, data: bytes = b"\0" * 64, version: int = 3
) -> bytes:
    """A GGUF file from raw metadata and tensor entries."""
    kv, tensors = kv or [], tensors or []
    head = b"GGUF" + _u32(version) + _u64(len(tensors)) + _u64(len(kv)) + b"".join(kv) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def _tensor(name: bytes = b"w", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return _string(name) + _u32(len(shape)) + b"".join(map(_u64, shape)) + _u32(kind) + _u64(offset)


def _kv(key: bytes, value: int = 1) -> bytes:
    return _string(key) + _u32(4) + _u32(value)


HOSTILE = {
    "empty": (b"", "is empty"),
    "text": (b"Hello, this is a text file with a wrong name.", "expected b'GGUF'"),
    "html": (b"<!DOCTYPE html><html>", "an HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "zip": (b"PK\x03\x04whatever", "zip archive"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
    "version 1": (_file(version=1), "version is 1"),
    "tensors": (b"GGUF" + _u32(3) + _u64(2**60) + _u64(0), "claims 1152921504606846976 tensors"),
    "entries": (b"GGUF" + _u32(3) + _u64(0) + _u64(2**62), "metadata entries, impossible"),
    "only magic": (b"GGUF", "truncated"),
    "key length": (_file([_u64(2**50) + b"key" + _u32(4) + _u32(0)]), "claims to be"),
    "empty key": (_file([_kv(b"")]), "expected a printable name"),
    "control in key": (_file([_kv(b"a\x1b[2J")]), "expected a printable name"),
    "same key": (_file([_kv(b"a"), _kv(b"a")]), "occurs twice"),
    "value type": (_file([_string(b"a") + _u32(77) + _u32(0)]), "has type 77"),
    "string value": (_file([_string(b"a") + _u32(8) + _u64(2**40)]), "inside a"),
    "array type": (_file([_string(b"a") + _u32(9) + _u32(9) + _u64(1)]), "array of type 9"),
    "array length": (_file([_string(b"a") + _u32(9) + _u32(4) + _u64(2**61)]), "more than the file has room for"),
    "alignment": (_file([_kv(b"general.alignment", 33)]), "power of two"),
    "alignment 0": (_file([_kv(b"general.alignment", 0)]), "power of two"),
    "tensor name": (_file(tensors=[_tensor(b"x" * 64)]), "expected at most 63"),
    "same tensor": (_file(tensors=[_tensor(), _tensor(offset=32)]), "occurs twice"),
    "dimensions": (_file(tensors=[_tensor(shape=(1, 1, 1, 1, 1))]), "5 dimensions"),
    "no dimensions": (_file(tensors=[_tensor(shape=())]), "0 dimensions"),
    "zero size": (_file(tensors=[_tensor(shape=(0, 4))]), "impossible shape"),
    "overflow": (_file(tensors=[_tensor(shape=(2**40, 2**40))]), "impossible shape"),
    "tensor type": (_file(tensors=[_tensor(kind=4)]), "has type 4"),
    "row": (_file(tensors=[_tensor(shape=(100,), kind=12)]), "not a multiple of Q4_K's block of 256"),
    "offset": (_file(tensors=[_tensor(offset=32)]), "starts at offset 32, expected 0"),
    "overlap": (_file(tensors=[_tensor(b"a"), _tensor(b"b", offset=0)]), "expected 32"),
    "truncated data": (_file(tensors=[_tensor(shape=(1000,))]), "bytes are missing"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(InvalidGGUF) as caught:
        read_header(file)
    assert message in str(caught.value)
    assert "bad.gguf" in str(caught.value)
    assert str(caught.value).isprintable() or "\n" in str(caught.value)


def test_a_sound_file_made_by_hand_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "good.gguf"
    file.write_bytes(_file([_kv(b"a.b", 7)], [_tensor(b"w", (8,)), _tensor(b"v", (4,), offset=32)], bytes(64)))
    header = read_header(file)
    assert header.metadata == {"a.b": 7}
    assert [(t.name, t.bytes) for t in header.tensors] == [("w", 32), ("v", 16)]


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path / "missing.gguf"])
def test_folders_and_missing_files_are_named(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(InvalidGGUF, match="is not a file"):
        read_header(make(tmp_path))


@given(st.binary(max_size=400))
@example(b"GGUF" + _u32(3) + bytes(8) + bytes(8))
def test_any_bytes_give_a_header_or_a_message(content: bytes) -> None:
    _read_bytes(content)
    _read_bytes(b"GGUF" + _u32(3) + content)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_real_files_give_a_header_or_a_message(llama_file: Path, data: st.DataObject) -> None:
    content = bytearray(llama_file.read_bytes()[:9000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 8))
        content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    _read_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))


def _read_bytes(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(InvalidGGUF):
            assert read_header(Path(file.name)).file_bytes == len(content)


def test_a_link_to_nothing_says_where_it_leads(tmp_path: Path) -> None:
    """As downloads are left whose blobs were cleared."""
    (tmp_path / "m.gguf").symlink_to("blobs/abc")
    with pytest.raises(InvalidGGUF, match=r"m\.gguf is a link to blobs/abc, which does not exist"):
        read_header(tmp_path / "m.gguf")


def test_zeros_have_no_byte_order(tmp_path: Path) -> None:
    """As preallocated downloads are left."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InvalidGGUF, match="its GGUF version is 0"):
        read_header(tmp_path / "m.gguf")
