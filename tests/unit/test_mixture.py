"""Files of mixed models: copied byte for byte, whole, and refused where they cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.errors import InvalidGGUF, ModelError, StoreError
from gguf_harness.gguf.header import read_header
from gguf_harness.gguf.mixture import differing_tensors, write_mixture
from gguf_harness.gguf.weights import Weights
from gguf_harness.store.cache import Cache
from tests.random_llama import write_random_llama
from tests.unit.test_weights import write_raw

TENSORS = {"token_embd.weight": ("F16", (5, 256)), "blk.0.a.weight": ("F32", (7,)), "blk.0.b.weight": ("F16", (3, 256))}
SMALLER = {name: ("Q4_K" if shape[-1] == 256 else kind, shape) for name, (kind, shape) in TENSORS.items()}


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return write_raw(tmp_path / "a.gguf", TENSORS, 1), write_raw(tmp_path / "b.gguf", SMALLER, 2)


def _bytes(file: Path) -> dict[str, tuple[str, bytes]]:
    header, raw = read_header(file), file.read_bytes()
    return {info.name: (info.type, raw[header.data_offset + info.offset :][: info.bytes]) for info in header.tensors}


def test_nothing_exchanged_is_the_file(llama_file: Path, tmp_path: Path) -> None:
    (mixed,) = write_mixture([llama_file], [llama_file], [], tmp_path)
    assert mixed.read_bytes() == llama_file.read_bytes()


@pytest.mark.parametrize("names", [{"token_embd.weight"}, {"blk.0.a.weight", "blk.0.b.weight"}, set(TENSORS)])
def test_each_tensor_comes_from_its_model(models: tuple[Path, Path], tmp_path: Path, names: set[str]) -> None:
    a, b = models
    (tmp_path / "out").mkdir()
    (mixed,) = write_mixture([a], [b], names, tmp_path / "out")
    expected = {name: _bytes(b if name in names else a)[name] for name in TENSORS}
    assert _bytes(mixed) == expected
    assert read_header(mixed).metadata == read_header(a).metadata
    assert mixed.name == a.name


def test_an_alignment_of_its_own_is_kept(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    files = []
    for name, values in (("a", np.float32), ("b", np.float16)):
        writer = GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_custom_alignment(128 if name == "a" else 64)
        for tensor in ("x", "y"):
            writer.add_tensor(tensor, np.arange(5, dtype=values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(tmp_path / f"{name}.gguf")
    (tmp_path / "out").mkdir()
    (mixed,) = write_mixture(files[:1], files[1:], ["x"], tmp_path / "out")
    assert [info.offset % 128 for info in read_header(mixed).tensors] == [0, 0]
    opened = Weights([mixed])
    assert (opened.type("x"), opened.type("y")) == ("F16", "F32")
    assert (opened.tensor("x") == opened.tensor("y")).all()


def test_splits_stay_splits(models: tuple[Path, Path], tmp_path: Path) -> None:
    parts = [write_raw(tmp_path / f"s-0000{i + 1}-of-00002.gguf", dict([pair]), i) for i, pair in
             enumerate(list(TENSORS.items())[:2])]  # fmt: skip
    (tmp_path / "out").mkdir()
    mixed = write_mixture(parts, [models[1]], ["blk.0.a.weight"], tmp_path / "out")
    assert [file.name for file in mixed] == [file.name for file in parts]
    assert mixed[0].read_bytes() == parts[0].read_bytes()
    assert _bytes(mixed[1]) == {"blk.0.a.weight": _bytes(models[1])["blk.0.a.weight"]}


def test_what_differs(models: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = models
    assert differing_tensors([a], [a]) == {}
    tensors = differing_tensors([a], [b])
    assert {name: (own.type, other.type) for name, (own, other) in tensors.items()} == {
        "token_embd.weight": ("F16", "Q4_K"),
        "blk.0.a.weight": ("F32", "F32"),
        "blk.0.b.weight": ("F16", "Q4_K"),
    }
    same_types = write_raw(tmp_path / "c.gguf", TENSORS, 1)
    raw = bytearray(same_types.read_bytes())
    raw[-700] ^= 1
    same_types.write_bytes(raw)
    assert list(differing_tensors([a], [same_types])) == ["blk.0.b.weight"]


def test_tensors_that_do_not_fit_are_named(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_raw(tmp_path / "other.gguf", {"blk.0.b.weight": ("F16", (4, 256))})
    with pytest.raises(
        ModelError, match=r"'blk\.0\.b\.weight' of a\.gguf and other\.gguf is \[256, 3\] and \[256, 4\]"
    ):
        write_mixture([models[0]], [other], ["blk.0.b.weight"], tmp_path)
    with pytest.raises(ModelError, match=r"'blk\.0\.a\.weight' .* is \[7\] and missing"):
        write_mixture([models[0]], [other], ["blk.0.a.weight"], tmp_path)
    with pytest.raises(ModelError, match=r"'zzz' .* is missing and missing"):
        write_mixture([models[0]], [other], ["zzz"], tmp_path)


def test_a_full_disk_is_said_beforehand(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = models[0].stat().st_size
    (tmp_path / "out").mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=size // 2))
    with pytest.raises(StoreError, match=r"A mixture of two models needs .* are free"):
        write_mixture([models[0]], [models[1]], [], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=size))
    assert write_mixture([models[0]], [models[1]], [], tmp_path / "out")
    with pytest.raises(StoreError, match="could not be written"):
        write_mixture([models[0]], [models[1]], [], tmp_path / "missing")


def test_a_source_that_shrinks_is_an_error(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_header(models[0])
    monkeypatch.setattr("gguf_harness.gguf.mixture.read_header", lambda _: header)
    os.truncate(models[0], models[0].stat().st_size - 64)
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidGGUF, match="has shrunk"):
        write_mixture([models[0]], [models[0]], [], tmp_path / "out")


def test_scratch_goes_with_its_block_or_with_the_next(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    script = (
        "import os, sys; from pathlib import Path; from gguf_harness.store.cache import Cache\n"
        "with Cache(Path(sys.argv[1])).scratch() as folder:\n"
        "    (folder / 'large').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    with cache.scratch() as mine:
        (mine / "model.gguf").write_bytes(b"x")
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
        (left,) = (folder for folder in (tmp_path / "scratch").iterdir() if folder != mine)
        assert (left / "large").exists()
        with cache.scratch() as another:
            assert not left.exists()
            assert mine.exists()
            assert another != mine
        assert (mine / "model.gguf").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_random_models_differ_where_they_should(llama_file: Path, tmp_path: Path) -> None:
    noisy = write_random_llama(tmp_path / "noisy.gguf", noise=0.1)
    names = differing_tensors([llama_file], [noisy])
    assert all("norm" not in name for name in names)
    assert len(names) == 1 + 2 * 7
