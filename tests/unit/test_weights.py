"""Dequantized weights against the package gguf's own, whatever the block."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import InvalidGGUF, ModelError
from gguf_harness.gguf import weights
from gguf_harness.gguf.header import TENSOR_TYPES
from gguf_harness.gguf.weights import Weights

DEQUANTIZED = ["F32", "F16", *sorted(kind.name for kind in quants._type_traits)]
TINY = Path(__file__).parents[2] / "fixtures/data/tiny-F16.gguf"


def write_raw(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], seed: int = 0) -> Path:
    """A GGUF file of random bytes: any bytes are weights, some of them not finite.

    Args:
        path: destination.
        tensors: by name: type, shape in numpy's order.
        seed: of the bytes.
    """
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    for name, (kind, shape) in tensors.items():
        number = GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[number]
        raw = random.integers(0, 256, (*shape[:-1], shape[-1] // block * size), dtype=np.uint8)
        writer.add_tensor(name, raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {f"{kind}.weight": (kind, (37, 512)) for kind in DEQUANTIZED}
    return write_raw(tmp_path_factory.mktemp("weights") / "types.gguf", tensors)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", DEQUANTIZED)
def test_equal_to_ggufs_own(every_type: Path, kind: str) -> None:
    name = f"{kind}.weight"
    (stored,) = (tensor for tensor in GGUFReader(every_type).tensors if tensor.name == name)
    expected = quants.dequantize(stored.data, stored.tensor_type)
    opened = Weights([every_type])
    assert opened.type(name) == kind
    assert opened.shape(name) == (37, 512)
    np.testing.assert_array_equal(opened.tensor(name), expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(st.sampled_from(["F16", "Q4_K", "IQ2_XS"]), st.integers(0, 37), st.integers(0, 37), st.integers(1, 20_000))
def test_rows_and_blocks_are_the_tensors(every_type: Path, kind: str, first: int, second: int, block: int) -> None:
    opened, name = Weights([every_type]), f"{kind}.weight"
    whole = opened.tensor(name)
    start, stop = sorted((first, second))
    np.testing.assert_array_equal(opened.rows(name, start, stop), whole[start:stop])
    blocks = list(opened.blocks(name, block))
    assert all(part.size <= max(block, 512) for part in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_size_of_a_piece_does_not_matter(every_type: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Weights([every_type]).tensor("Q6_K.weight")
    monkeypatch.setattr(weights, "_PIECE_WEIGHTS", 1)
    np.testing.assert_array_equal(Weights([every_type]).tensor("Q6_K.weight"), before)


@pytest.mark.parametrize("number", [n for n, kind in TENSOR_TYPES.items() if kind.name not in DEQUANTIZED])
def test_a_type_that_gguf_cannot_dequantize_is_named(tmp_path: Path, number: int) -> None:
    """Patched into a file, for gguf does not write all of them."""
    kind = TENSOR_TYPES[number]
    width = 256 // kind.block * kind.block_bytes
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("odd", np.zeros(width, dtype=np.uint8), raw_dtype=GGMLQuantizationType.I8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    raw = (tmp_path / "x.gguf").read_bytes()
    old = b"odd" + (1).to_bytes(4, "little") + width.to_bytes(8, "little") + (24).to_bytes(4, "little")
    new = b"odd" + (1).to_bytes(4, "little") + (256).to_bytes(8, "little") + number.to_bytes(4, "little")
    assert old in raw
    (tmp_path / "x.gguf").write_bytes(raw.replace(old, new))
    opened = Weights([tmp_path / "x.gguf"])
    assert opened.type("odd") == kind.name
    with pytest.raises(ModelError, match=rf"'odd' has type {kind.name}, which gguf \S+ cannot dequantize"):
        opened.tensor("odd")


def test_splits_are_one_model(tmp_path: Path) -> None:
    files = [write_raw(tmp_path / f"{i}.gguf", {f"blk.{i}.ffn_up.weight": ("F16", (3, 64))}, seed=i) for i in range(2)]
    opened = Weights(files)
    assert opened.names == ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight")
    for file, name in zip(files, opened.names, strict=True):
        np.testing.assert_array_equal(opened.tensor(name), Weights([file]).tensor(name))
    with pytest.raises(InvalidGGUF, match=r"is in 0\.gguf and in 0\.gguf"):
        Weights([files[0], files[0]])


def test_experts_and_vectors(tmp_path: Path) -> None:
    file = write_raw(tmp_path / "x.gguf", {"exps": ("Q8_0", (3, 5, 64)), "norm": ("F32", (40,))})
    opened = Weights([file])
    assert (opened.shape("exps"), opened.count_rows("exps")) == ((3, 5, 64), 15)
    np.testing.assert_array_equal(opened.rows("exps", 5, 10), opened.tensor("exps")[1])
    assert (opened.shape("norm"), opened.count_rows("norm"), opened.rows("norm", 0, 1).shape) == ((40,), 1, (1, 40))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    opened = Weights([TINY])
    assert "token_embd.weight" in opened
    assert "output.weight" not in opened
    with pytest.raises(ModelError, match=r"no tensor 'token_embed\.weight'") as caught:
        opened.tensor("token_embed.weight")
    assert "token_embd.weight" in caught.value.hint
    with pytest.raises(IndexError, match="4096 rows"):
        opened.rows("token_embd.weight", 4000, 4097)


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    file = write_raw(tmp_path / "x.gguf", {"a": ("F16", (64, 64))})
    opened = Weights([file])
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(InvalidGGUF, match="shrunk since its header was read"):
        opened.tensor("a")
    file.unlink()
    with pytest.raises(InvalidGGUF, match="cannot be read"):
        opened.tensor("a")
