"""What is a model and what is not, by what files hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.gguf.companions import companion_kind
from gguf_harness.gguf.header import read_header
from tests.companions import COMPANIONS, write_gguf


@pytest.mark.parametrize("name", COMPANIONS)
def test_what_files_hold_tells_what_they_are(tmp_path: Path, name: str) -> None:
    kind = companion_kind([read_header(COMPANIONS[name].write(tmp_path / "model-Q4_K_M.gguf"))])
    assert kind is not None
    assert kind.startswith(COMPANIONS[name].what)


def test_models_are_models_whatever_they_are_called(llama_file: Path, tmp_path: Path) -> None:
    assert companion_kind([read_header(llama_file)]) is None
    merged = write_gguf(tmp_path / "a.gguf", "llama", ["blk.0.attn_q.weight", "token_embd.weight"])
    assert companion_kind([read_header(merged)]) is None
    part = write_gguf(tmp_path / "b.gguf", "llama", [], lambda writer: writer.add_token_list(["a"]))
    # llama-gguf-split --no-tensor-first-split: the first split alone has no weights.
    assert companion_kind([read_header(part), read_header(merged)]) is None


def test_metadata_of_other_types_says_nothing(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "a.gguf", "llama", ["token_embd.weight"], lambda writer: writer.add_uint32("general.type", 3)
    )
    assert companion_kind([read_header(file)]) is None
