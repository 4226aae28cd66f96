"""Activations on disk: what was written comes back, and what is not whole does not count."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from gguf_harness.errors import FilesLost, StoreError
from gguf_harness.measure.attention.activations import ActivationReader, ActivationWriter

Values = NDArray[np.floating[Any]]

NOTHING_LEFT = Path("/dev/full")
"""Every write to it fails: no space left on device."""


@st.composite
def _slices(draw: st.DrawFn) -> tuple[int, list[Values]]:
    """An axis, and arrays that differ in their length along it alone."""
    kind = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shape = draw(arrays.array_shapes(max_dims=4, max_side=5))
    axis = draw(st.integers(0, len(shape) - 1))
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    return axis, [
        draw(arrays.arrays(kind, (*shape[:axis], length, *shape[axis + 1 :]), elements={"allow_nan": False}))
        for length in lengths
    ]


@given(st.dictionaries(st.text(min_size=1, max_size=8), _slices(), max_size=4))
def test_what_was_written_comes_back(content: dict[str, tuple[int, list[Values]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = ActivationWriter(folder, 10**6)
        # Names take turns, as layers do in a decode that needs several batches.
        for turn in range(4):
            for key, (_, slices) in content.items():
                if turn < len(slices):
                    writer.add(key, slices[turn])
        assert not ActivationReader.is_there(folder)
        writer.close()
        assert ActivationReader.is_there(folder)
        reader = ActivationReader(folder)
        for key, (axis, slices) in content.items():
            assert key in reader
            for found, given_ in zip(reader.slices(key), slices, strict=True):
                assert found.dtype == given_.dtype
                np.testing.assert_array_equal(found, given_)
                assert not (found.flags.writeable and found.size)
            np.testing.assert_array_equal(reader.array(key, axis), np.concatenate(slices, axis=axis))
        assert "not there" not in reader
        ActivationReader.discard(folder)
        assert list(folder.iterdir()) == []


def test_a_view_that_is_not_contiguous_is_written_in_its_order(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer = ActivationWriter(tmp_path, 10**4)
    writer.add("turned", values.transpose(2, 0, 1))
    writer.add("skipped", values[:, ::2])
    writer.close()
    reader = ActivationReader(tmp_path)
    np.testing.assert_array_equal(reader.array("turned"), values.transpose(2, 0, 1))
    np.testing.assert_array_equal(reader.array("skipped"), values[:, ::2])


def _written(folder: Path) -> Path:
    writer = ActivationWriter(folder, 10**4)
    writer.add("a", np.ones(100, dtype=np.float32))
    writer.close()
    return folder / "activations.bin"


@pytest.mark.parametrize("size", [0, 1, 399])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    data = _written(tmp_path)
    data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(StoreError, match=r"cannot be read.*\n.*--gguf-fresh"):
        ActivationReader(tmp_path)
    assert not ActivationReader.is_there(tmp_path)


@pytest.mark.parametrize(
    "index", ["", "{", "[]", "null", "{}", '{"bytes": 400}', '{"arrays": {}}', '{"bytes": "many", "arrays": {}}']
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    _written(tmp_path)
    (tmp_path / "activations.json").write_text(index)
    with pytest.raises(StoreError, match="cannot be read"):
        ActivationReader(tmp_path)


def test_missing_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        ActivationReader(tmp_path)
    _written(tmp_path).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        ActivationReader(tmp_path)


def test_writing_again_forgets_what_was_there_at_once(tmp_path: Path) -> None:
    _written(tmp_path)
    writer = ActivationWriter(tmp_path, 10**4)
    writer.add("b", np.ones(200, dtype=np.float32))
    # The process might be killed here.
    assert not ActivationReader.is_there(tmp_path)
    writer.close()
    reader = ActivationReader(tmp_path)
    assert "a" not in reader
    assert "b" in reader


def test_the_limit_counts_every_byte(tmp_path: Path) -> None:
    writer = ActivationWriter(tmp_path, 1000)
    writer.add("a", np.ones(100, dtype=np.float32))
    with pytest.raises(StoreError, match=r"more than 0\.0 GB.*\n.*--gguf-logprobs-limit"):
        writer.add("a", np.ones(200, dtype=np.float32))
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    writer = ActivationWriter(tmp_path, 64)
    writer.add("one byte over, with what aligns it", np.ones(1, dtype=np.float16))
    with pytest.raises(StoreError):
        writer.add("b", np.ones(1, dtype=np.float16))
    writer.discard()


@pytest.mark.skipif(not NOTHING_LEFT.exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(("size", "times"), [(100, 2), (100, 10_000), (100_000, 1)])
def test_a_full_disk_is_one_message(tmp_path: Path, size: int, times: int) -> None:
    """Small writes fail when the buffer goes out, at the end or half-way; large ones at once."""
    (tmp_path / "activations.bin").symlink_to(NOTHING_LEFT)
    writer = ActivationWriter(tmp_path, 10**7)
    with pytest.raises(StoreError, match=r"activations\.bin could not be written: No space left.*\n.*--gguf-cache"):
        _write_all(writer, [np.ones(size, dtype=np.float32)] * times)
    # As whoever writes does with any error: it must not become another one.
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def _write_all(writer: ActivationWriter, slices: list[Values]) -> None:
    for values in slices:
        writer.add("a", values)
    writer.close()


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        ActivationWriter(tmp_path / "file" / "folder", 100)


def test_an_unfinished_set_can_be_discarded(tmp_path: Path) -> None:
    writer = ActivationWriter(tmp_path, 10**4)
    writer.add("a", np.ones(100, dtype=np.float32))
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    _written(tmp_path)
    assert json.loads((tmp_path / "activations.json").read_text())["bytes"] == 400
    ActivationReader.discard(tmp_path)
    ActivationReader.discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "harm", [lambda text: text.replace('"crc"', '"other"'), lambda text: text.replace("[3]", "[9999]")]
)
def test_an_index_that_does_not_fit_is_noticed(tmp_path: Path, harm: Callable[[str], str]) -> None:
    _three(tmp_path)
    index = tmp_path / "activations.json"
    index.write_text(harm(index.read_text()))
    with pytest.raises(FilesLost, match="activations of x cannot be read"):
        ActivationReader(tmp_path).array("x")


def test_damaged_activations_are_noticed(tmp_path: Path) -> None:
    _three(tmp_path)
    data = tmp_path / "activations.bin"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    with pytest.raises(FilesLost, match="activations of x are damaged"):
        ActivationReader(tmp_path).array("x")


def _three(folder: Path) -> None:
    writer = ActivationWriter(folder, 10**6)
    writer.add("x", np.arange(3, dtype=np.float32))
    writer.close()
