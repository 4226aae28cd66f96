"""What was quantized before is used again only if it still is what was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.file_hashes import hash_files
from tests.command_line import parse_command_line

pytestmark = pytest.mark.model


def _quantized(llama_file: Path, cache: Path) -> Subject:
    """Q8_0 of a small model, in a session of its own."""
    arguments = [f"--models={llama_file}", "--gguf-quants=Q8_0", f"--gguf-cache={cache}", "-p", "no:cacheprovider"]
    options = read_options(parse_command_line(*arguments))
    core = Core(options, SilentProgress())
    (model,) = plan_ladder(options).candidates
    try:
        return core.subject(model)
    finally:
        core.close()


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _exchange(file: Path) -> None:
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-64, os.SEEK_END)
        stream.write(bytes(64))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _forget(file: Path) -> None:
    file.with_name("meta.json").unlink()


@pytest.mark.parametrize("damage", [_truncate, _exchange, _forget, Path.unlink])
def test_a_quantized_file_that_is_not_what_was_written_is_made_again(
    llama_file: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = _quantized(llama_file, tmp_path)
    (file,) = first.files
    assert _quantized(llama_file, tmp_path) == first
    damage(file)
    assert _quantized(llama_file, tmp_path) == first
    assert hash_files([file], tmp_path) == first.sha256
