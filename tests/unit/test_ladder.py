"""Which model is the reference, and what has to be quantized first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.errors import ModelNotFound
from harness.ladder import Ladder, plan_ladder, quantized_name
from harness.options import read_options
from harness.quants import DEFAULT_QUANTS
from tests.random_llama import write_random_llama


def _plan(*arguments: str) -> Ladder:
    return plan_ladder(read_options(pytest.Config.fromdictargs({}, ["-p", "no:cacheprovider", *arguments])))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model-F16", "model-Q8_0"),
        ("model.bf16", "model-Q8_0"),
        ("F16", "F16-Q8_0"),
        ("model-Q4_K_M", "model-Q4_K_M-Q8_0"),
    ],
)
def test_names_of_quantized_models(name: str, expected: str) -> None:
    assert quantized_name(name, "Q8_0") == expected


def test_the_default_is_a_ladder_of_the_embedded_model() -> None:
    ladder = _plan()
    assert ladder.reference is not None
    assert ladder.reference.source is not None
    assert ladder.reference.name == "tiny-F16"
    assert [file.name for file in ladder.reference.source.files] == ["tiny-F16.gguf"]
    assert [model.name for model in ladder.candidates] == [f"tiny-{quant}" for quant in DEFAULT_QUANTS]
    assert all(model.base is ladder.reference for model in ladder.candidates)


def test_smollm2_is_expanded_to_f16(smollm2_file: Path) -> None:
    ladder = _plan("--models=smollm2-135m", "--gguf-quants=Q8_0")
    assert ladder.reference is not None
    assert ladder.reference.source is not None
    assert (ladder.reference.name, ladder.reference.quant) == ("smollm2-135m-F16", "F16")
    assert ladder.reference.source.files == (smollm2_file,)
    assert [model.name for model in ladder.candidates] == ["smollm2-135m-Q8_0"]


def test_a_named_reference_is_no_candidate(llama_file: Path, tmp_path: Path) -> None:
    other = shutil.copy(llama_file, tmp_path / "other.gguf")
    ladder = _plan(f"--models={llama_file},{other}", f"--reference={other}")
    assert ladder.reference is not None
    assert ladder.reference.name == "other"
    assert [model.name for model in ladder.candidates] == ["random-F32"]
    assert ladder.reason == "other is the reference, as asked for."


def test_a_reference_alone_can_be_a_ladder(llama_file: Path) -> None:
    ladder = _plan(f"--reference={llama_file}", "--gguf-quants=Q8_0")
    assert [model.name for model in ladder.models] == ["random-F32", "random-Q8_0"]


def test_broken_and_foreign_models_stay_candidates(llama_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    foreign = write_random_llama(tmp_path / "foreign.gguf", extra_tokens=1)
    twin = shutil.copy(llama_file, tmp_path / "twin.gguf")
    ladder = _plan(f"--models={foreign},{broken},{llama_file},{twin}")
    assert ladder.reference is not None
    assert ladder.reference.name == "random-F32"
    assert [model.name for model in ladder.candidates] == ["foreign", "broken", "twin"]


def test_without_a_valid_model_there_is_no_reference(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"")
    ladder = _plan(f"--models={broken}", "--gguf-quants=Q8_0")
    assert ladder.reference is None
    assert [model.name for model in ladder.candidates] == ["broken"]


def test_several_references_are_refused(llama_file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(llama_file, tmp_path / name)
    with pytest.raises(ModelNotFound, match="names 2 models"):
        _plan(f"--models={llama_file}", f"--reference={tmp_path}")
