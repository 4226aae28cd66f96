"""What is said of a file that cannot be written, and what to do about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.errors import StoreError, write_error
from gguf_harness.measure.attention.activations import ActivationWriter
from gguf_harness.measure.layers.states import StateFiles
from gguf_harness.measure.passes.logprobs import LogprobWriter
from gguf_harness.store.arrays import save_arrays
from gguf_harness.store.cache import Cache
from gguf_harness.store.runs import write_json

SPACE = (errno.ENOSPC, errno.EDQUOT)
OTHERS = (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EMFILE, errno.ENOLCK, errno.EIO)


@pytest.mark.parametrize("number", [*SPACE, *OTHERS])
def test_free_space_is_advised_where_there_is_none(number: int) -> None:
    error = write_error(Path("folder/x"), OSError(number, os.strerror(number)))
    assert os.strerror(number) in error.message
    assert ("Free some space" in error.hint) == (number in SPACE)
    assert "Check permissions" not in error.hint
    assert error.hint.endswith(".")


def test_every_writer_says_the_same(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for folder, reason, hint in (
        (long, "too long", "shorter names"),
        (blocked / "y", "Not a dir", "a file where a folder"),
    ):
        writers = (
            lambda folder=folder: write_json(folder / "x.json", {}),
            lambda folder=folder: save_arrays(folder / "x.npz", {"a": np.zeros(3)}),
            lambda folder=folder: ActivationWriter(folder, 100),
            lambda folder=folder: LogprobWriter(folder / "codes", (1, 1, 1)),
            lambda folder=folder: StateFiles(folder).create("x", (1,)),
            lambda folder=folder: Cache(folder).entry("speed/speed", 2, {}).save({}),
        )
        for write in writers:
            with pytest.raises(StoreError, match=reason) as error:
                write()
            assert hint in error.value.hint


def test_a_name_that_is_not_unicode_can_be_stored(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9-Q4.gguf")
    entry = Cache(tmp_path).entry("passes/reference", 2, {"x": name})
    entry.save({"model": name})
    assert entry.load() == ({"model": name}, {})
