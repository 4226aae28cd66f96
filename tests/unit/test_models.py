"""What files hold, and how models go together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import InvalidGGUF, VocabularyMismatch
from harness.file_hashes import hash_files
from harness.models import (
    ModelInfo,
    check_same_vocabulary,
    choose_reference,
    load_info,
    twins,
)
from harness.sources import ModelSource, expand
from tests.random_llama import write_random_llama


def test_file_facts(llama_file: Path) -> None:
    info = load_info(expand(str(llama_file))[0])
    assert (info.architecture, info.n_layer, info.n_head, info.n_embd) == ("llama", 2, 4, 256)
    assert info.quantization == "F32"
    assert info.bits_per_weight == 32
    assert info.parameters == sum(row["parameters"] for row in info.tensor_types.values())
    assert info.n_vocab == 258
    assert info.fallbacks == ()
    assert info.warnings == ()


def test_a_name_that_promises_another_type_is_said(llama_file: Path, tmp_path: Path) -> None:
    file = shutil.copy(llama_file, tmp_path / "model-Q4_K_M.gguf")
    (warning,) = load_info(expand(str(file))[0]).warnings
    assert "named Q4_K_M" in warning
    assert "F32" in warning


def test_a_file_without_a_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(InvalidGGUF, match="holds no model"):
        load_info(ModelSource("empty", (file,), "empty"))


def test_hashes_are_remembered_and_notice_changes(llama_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(llama_file, tmp_path / "m.gguf"))
    first = hash_files([file], tmp_path / "cache")
    assert hash_files([file], tmp_path / "cache") == first
    with file.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert hash_files([file], tmp_path / "cache") != first
    assert hash_files([file, file], tmp_path / "cache") != hash_files([file], tmp_path / "cache")


def _info(llama_file: Path, **changes: object) -> ModelInfo:
    return replace(load_info(expand(str(llama_file))[0]), **changes)  # type: ignore[arg-type]


def test_the_reference_is_the_most_precise_of_the_largest_family(llama_file: Path) -> None:
    infos = [
        _info(llama_file, name="q4", bits_per_weight=4.5, quantization="Q4_K_M"),
        _info(llama_file, name="f16", bits_per_weight=16.0, quantization="F16"),
        _info(llama_file, name="bf16", bits_per_weight=16.0, quantization="BF16"),
        _info(llama_file, name="stranger", bits_per_weight=32.0, vocab_sha256="other"),
    ]
    best, reason = choose_reference(infos)
    assert best.name == "bf16"
    assert "highest precision of the 3 models" in reason


def test_another_vocabulary_names_both(llama_file: Path, tmp_path: Path) -> None:
    other = load_info(expand(str(write_random_llama(tmp_path / "other.gguf", extra_tokens=3)))[0])
    with pytest.raises(VocabularyMismatch) as caught:
        check_same_vocabulary(other, _info(llama_file))
    for part in ("other", "random-F32", "261 tokens", "258 tokens"):
        assert part in str(caught.value)


def test_twins_are_named(llama_file: Path) -> None:
    a, b = _info(llama_file, name="IQ3_XS"), _info(llama_file, name="Q2_K")
    assert twins([(a, "1"), (b, "1")]) == ["IQ3_XS and Q2_K are the same file."]
    assert "same size and tensor types" in twins([(a, "1"), (b, "2")])[0]
    assert twins([(a, "1"), (replace(b, bytes=7), "2")]) == []


def test_fallbacks_of_a_real_model(smollm2_file: Path) -> None:
    """Q4_1 has blocks of 32 and needs no fallback: nothing is reported where nothing fell back."""
    info = load_info(expand(str(smollm2_file))[0])
    assert info.quantization == "Q4_1"
    assert info.fallbacks == ()
