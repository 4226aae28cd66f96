"""What files hold, and how models go together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from numpy.typing import NDArray

from gguf_harness.errors import InvalidGGUF, ShapeMismatch, VocabularyMismatch
from gguf_harness.inputs.models import (
    ModelInfo,
    check_comparable,
    check_same_vocabulary,
    choose_reference,
    load_info,
    shape_difference,
    twins,
)
from gguf_harness.inputs.sources import ModelSource, expand
from tests.companions import write_gguf
from tests.random_llama import write_random_llama
from tests.rewritten import rewrite_gguf


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
    made = shutil.copy(llama_file, tmp_path / "model-Q4_K_M-F32.gguf")
    assert load_info(expand(str(made))[0]).warnings == ()


def test_a_type_that_the_file_does_not_hold_is_said(llama_file: Path, tmp_path: Path) -> None:
    file = rewrite_gguf(
        llama_file, tmp_path / "model.gguf", lambda _, values: values, metadata={"general.file_type": 7}
    )
    assert load_info(expand(str(file))[0]).warnings == (
        "The file says that it is Q8_0, and holds none of that type, but F32.",
    )


def test_a_file_without_a_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(InvalidGGUF, match="contains no model"):
        load_info(ModelSource("empty", (file,), "empty"))


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
    assert "highest precision of the 3 models of its vocabulary and shape" in reason


def test_a_draft_model_is_no_reference(llama_file: Path, tmp_path: Path) -> None:
    """It has the vocabulary of the model that it drafts for, and often more bits per weight."""
    draft = load_info(expand(str(write_random_llama(tmp_path / "draft-F32.gguf", width=128)))[0])
    q8, q4 = (
        _info(llama_file, name=name, precision=bits, bits_per_weight=bits) for name, bits in (("q8", 8.5), ("q4", 4.5))
    )
    best, reason = choose_reference([draft, q4, q8])
    assert best.name == "q8"
    assert "of the 2 models of its vocabulary and shape" in reason
    # One of each: the larger.
    assert choose_reference([draft, q4])[0].name == "q4"
    assert "which no other model given has" in choose_reference([draft, q4])[1]


def test_large_tensors_of_more_bits_do_not_make_a_model_precise(llama_file: Path) -> None:
    """Q8_0 with embeddings in F32 has more bits per weight than F16."""
    infos = [
        _info(llama_file, name="mixed", precision=12.1, bits_per_weight=21.0, quantization="Q8_0"),
        _info(llama_file, name="f16", precision=16.0, bits_per_weight=16.0, quantization="F16"),
    ]
    assert choose_reference(infos)[0].name == "f16"


def test_equals_are_named(llama_file: Path) -> None:
    infos = [_info(llama_file, name=name) for name in ("a", "b", "c")]
    best, reason = choose_reference(infos)
    assert best.name == "a"
    assert "; b, c have the same, and came later." in reason


def test_precision_is_of_the_tensors_that_all_have(llama_file: Path, tmp_path: Path) -> None:
    def half(_name: str, values: NDArray[Any]) -> NDArray[Any]:
        return values.astype(np.float16) if values.ndim > 1 else values

    plain = load_info(expand(str(rewrite_gguf(llama_file, tmp_path / "f16.gguf", half)))[0])
    assert plain.precision == 16
    assert 16 < plain.bits_per_weight < 16.1  # the norms are F32
    assert load_info(expand(str(llama_file))[0]).precision == 16
    assert shape_difference(plain, load_info(expand(str(llama_file))[0])) is None


def test_an_output_of_its_own_is_no_other_shape(tmp_path: Path) -> None:
    tied = write_gguf(tmp_path / "tied.gguf", "llama", ["token_embd.weight", "blk.0.ffn_up.weight"])
    own = write_gguf(tmp_path / "own.gguf", "llama", ["token_embd.weight", "blk.0.ffn_up.weight", "output.weight"])
    more = write_gguf(
        tmp_path / "more.gguf", "llama", ["token_embd.weight", "blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
    )
    tied_info, own_info, more_info = (load_info(expand(str(file))[0]) for file in (tied, own, more))
    assert shape_difference(tied_info, own_info) is None
    assert "more is a model of architecture llama" in str(shape_difference(more_info, tied_info))


def test_an_embedding_model_of_the_same_tensors_is_another_kind(llama_file: Path, tmp_path: Path) -> None:
    pooled = rewrite_gguf(
        llama_file, tmp_path / "pooled.gguf", lambda _, values: values, metadata={"llama.pooling_type": 3}
    )
    info = load_info(expand(str(pooled))[0])
    assert "pooled is an embedding model" in str(shape_difference(info, _info(llama_file)))
    assert choose_reference([info, _info(llama_file, bits_per_weight=4.5), _info(llama_file, name="b")])[0].name == "b"


def test_other_shapes_are_compared_only_when_asked(llama_file: Path, tmp_path: Path) -> None:
    deep = load_info(expand(str(write_random_llama(tmp_path / "deep.gguf", n_layer=3)))[0])
    with pytest.raises(ShapeMismatch) as caught:
        check_comparable(deep, _info(llama_file), asked_for=False)
    for part in ("deep is a model", "3 layers of width 256", "random-F32 is a model", "2 layers", "--reference"):
        assert part in str(caught.value)
    check_comparable(deep, _info(llama_file), asked_for=True)
    check_comparable(_info(llama_file, name="q4", bits_per_weight=4.5), _info(llama_file), asked_for=False)
    with pytest.raises(VocabularyMismatch):
        check_comparable(_info(llama_file, vocab_sha256="x"), _info(llama_file), asked_for=True)


def _split(writer: GGUFWriter, number: int, count: int) -> None:
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)


def test_splits_are_what_the_first_one_says(tmp_path: Path) -> None:
    def write(name: str, number: int | None, count: int = 2) -> Path:
        describe = None if number is None else lambda writer: _split(writer, number, count)
        return write_gguf(tmp_path / f"{name}.gguf", "llama", [f"blk.{number or 0}.ffn_up.weight"], describe)

    first = write("m-00001-of-00002", 0)
    write("m-00002-of-00002", 1)
    assert load_info(expand(str(first))[0]).tensor_types["F32"]["tensors"] == 2
    # Whole files with the names of splits: llama.cpp reads the first one alone.
    whole = write("w-00001-of-00002", None)
    write("w-00002-of-00002", None)
    with pytest.raises(InvalidGGUF, match=r"says that it is split 0 of 1 .* its name that it is 0 of 2"):
        load_info(expand(str(whole))[0])
    with pytest.raises(InvalidGGUF, match=r"says that it is split 0 of 2 .* its name that it is 0 of 1"):
        load_info(expand(str(write("renamed", 0)))[0])
    write("x-00001-of-00002", 1)
    write("x-00002-of-00002", 0)
    with pytest.raises(InvalidGGUF, match="split 1 of 2"):
        load_info(expand(str(tmp_path / "x-00001-of-00002.gguf"))[0])
    assert load_info(expand(str(write("merged", 0, 0)))[0]).parameters == 32


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-00001-of-00002.gguf", "llama", ["a"], lambda writer: _split(writer, 0, 2))
    with pytest.raises(InvalidGGUF, match=r"m has 2 splits, and these are missing: m-00002-of-00002\.gguf"):
        load_info(expand(str(tmp_path))[0])


def test_another_vocabulary_names_both(llama_file: Path, tmp_path: Path) -> None:
    other = load_info(expand(str(write_random_llama(tmp_path / "other.gguf", extra_tokens=3)))[0])
    with pytest.raises(VocabularyMismatch) as caught:
        check_same_vocabulary(other, _info(llama_file))
    for part in ("other", "random-F32", "261 tokens", "258 tokens"):
        assert part in str(caught.value)


def test_twins_are_named(llama_file: Path) -> None:
    a, b = _info(llama_file, name="IQ3_XS"), _info(llama_file, name="Q2_K")
    assert twins([(a, "1"), (b, "1")]) == ["Q2_K and IQ3_XS have identical content."]
    assert "same size and tensor types" in twins([(a, "1"), (b, "2")])[0]
    assert twins([(a, "1"), (replace(b, bytes=7), "2")]) == []


def test_checkpoints_of_one_size_are_no_twins(llama_file: Path) -> None:
    """Their names promise nothing of types. Of many copies, each is said once."""
    steps = [_info(llama_file, name=f"step-{number}") for number in range(5)]
    assert twins([(info, info.name) for info in steps]) == []
    assert len(twins([(info, "1") for info in steps])) == 4


def test_fallbacks_of_a_real_model(smollm2_file: Path) -> None:
    """Q4_1 has blocks of 32 and needs no fallback: nothing is reported where nothing fell back."""
    info = load_info(expand(str(smollm2_file))[0])
    assert info.quantization == "Q4_1"
    assert info.fallbacks == ()
