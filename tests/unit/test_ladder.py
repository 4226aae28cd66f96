"""Which model is the reference, and what has to be quantized first."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.errors import ModelNotFound
from gguf_harness.gguf.types import DEFAULT_QUANTS
from gguf_harness.inputs.ladder import Ladder, plan_ladder, quantized_name
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.sources import TINY_FILE
from tests.command_line import parse_command_line
from tests.companions import write_gguf
from tests.random_llama import write_random_llama


def _plan(*arguments: str) -> Ladder:
    return plan_ladder(read_options(parse_command_line(*arguments)))


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
    assert ladder.reference.model.source is not None
    assert ladder.reference.name == "tiny-F16"
    assert [file.name for file in ladder.reference.model.source.files] == ["tiny-F16.gguf"]
    assert [model.name for model in ladder.candidates] == [f"tiny-{quant}" for quant in DEFAULT_QUANTS]
    assert all(model.model.base is ladder.reference.model for model in ladder.candidates)


def test_smollm2_is_expanded_to_f16(smollm2_file: Path) -> None:
    ladder = _plan("--models=smollm2-135m", "--gguf-quants=Q8_0")
    assert ladder.reference is not None
    assert ladder.reference.model.source is not None
    assert (ladder.reference.name, ladder.reference.model.quant) == ("smollm2-135m-F16", "F16")
    assert ladder.reference.model.source.files == (smollm2_file,)
    assert [model.name for model in ladder.candidates] == ["smollm2-135m-Q8_0"]


def test_a_named_reference_is_no_candidate(llama_file: Path, tmp_path: Path) -> None:
    other = shutil.copy(llama_file, tmp_path / "other.gguf")
    ladder = _plan(f"--models={llama_file},{other}", f"--reference={other}")
    assert ladder.reference is not None
    assert ladder.reference.name == "other"
    assert [model.name for model in ladder.candidates] == ["random-F32"]
    assert ladder.reason == "other is the reference, as requested."


def test_a_reference_alone_can_be_a_ladder(llama_file: Path) -> None:
    ladder = _plan(f"--reference={llama_file}", "--gguf-quants=Q8_0")
    assert [model.name for model in ladder.models] == ["random-F32", "random-Q8_0"]


def test_caches_of_the_default_are_a_grid_on_the_reference_and_two_pairs_on_the_ends() -> None:
    ladder = _plan("--gguf-quants=Q8_0,Q6_K,Q2_K", "--models=tiny")
    assert [subject.name for subject in ladder.candidates] == ["tiny-Q8_0", "tiny-Q6_K", "tiny-Q2_K"]
    types = [f"{k}/{v}" for k in ("f16", "q8_0", "q4_0") for v in ("f16", "q8_0", "q4_0")]
    both = ("q8_0/q8_0", "q4_0/q4_0")
    assert [subject.name for subject in ladder.cached] == [
        *(f"tiny-F16 [kv={pair}]" for pair in types[1:]),
        *(f"tiny-{quant} [kv={pair}]" for quant in ("Q8_0", "Q2_K") for pair in both),
    ]
    assert {ladder.with_full_cache(subject).name for subject in ladder.cached} == {"tiny-F16", "tiny-Q8_0", "tiny-Q2_K"}
    # All of one file stand together, whatever they are for.
    files = [subject.model.name for subject in ladder.subjects]
    assert files == sorted(files, key=files.index)


def test_caches_that_were_asked_for_are_those_of_each_file() -> None:
    ladder = _plan("--models=tiny", "--gguf-quants=Q8_0", "--gguf-kv=q4_0/q4_0+norot", "--gguf-kv-reference=bf16/bf16")
    expected = ["tiny-F16 [kv=q4_0/q4_0+norot]", "tiny-Q8_0 [kv=q4_0/q4_0+norot]"]
    assert [subject.name for subject in ladder.cached] == expected
    assert [subject.name for subject in ladder.candidates] == expected
    assert ladder.with_full_cache(ladder.cached[0]).name == "tiny-F16 [kv=bf16/bf16]"


def test_scalings_of_positions_are_candidates_too() -> None:
    ladder = _plan("--models=tiny", "--gguf-quants=Q8_0", "--gguf-rope=none,yarn:4")
    assert [subject.name for subject in ladder.candidates] == [
        f"tiny-{quant} [rope={scaling}]" for quant in ("F16", "Q8_0") for scaling in ("none", "yarn:4")
    ]


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
    with pytest.raises(ModelNotFound, match="matches 2 models"):
        _plan(f"--models={llama_file}", f"--reference={tmp_path}")


def test_a_file_is_never_replaced_by_what_is_quantized(llama_file: Path, tmp_path: Path) -> None:
    for name in ("random-Q8_0", "random-q4_k_m"):
        write_random_llama(tmp_path / f"{name}.gguf", noise=0.5)
    ladder = _plan(f"--models={llama_file},{tmp_path}", f"--reference={llama_file}", "--gguf-quants=Q8_0,Q4_K_M,Q2_K")
    candidates = {model.name: model for model in ladder.candidates}
    assert list(candidates) == [
        "random-Q8_0",
        "random-q4_k_m",
        "random-Q8_0 (quantized here)",
        "random-Q4_K_M (quantized here)",
        "random-Q2_K",
    ]
    assert candidates["random-Q8_0"].model.source is not None
    assert ladder.reference is not None
    assert candidates["random-Q8_0 (quantized here)"].model.base is ladder.reference.model
    assert (
        "random-Q8_0 is the name of a given file; "
        "the model quantized from random-F32 is called 'random-Q8_0 (quantized here)'." in ladder.notes
    )


def test_the_reference_is_no_candidate_under_its_own_name() -> None:
    """Quantized to its own type: the name is the reference's."""
    ladder = _plan("--models=tiny", "--gguf-quants=F16")
    assert [model.name for model in ladder.models] == ["tiny-F16", "tiny-F16 (quantized here)"]


def test_a_file_keeps_its_name_beside_what_an_alias_is_made_into(
    llama_file: Path, smollm2_file: Path, tmp_path: Path
) -> None:
    assert smollm2_file.exists()
    mine = shutil.copy(llama_file, tmp_path / "smollm2-135m-F16.gguf")
    ladder = _plan(f"--models=smollm2-135m,{mine}", "--reference=smollm2-135m")
    assert [model.name for model in ladder.models] == ["smollm2-135m-F16 (quantized here)", "smollm2-135m-F16"]


@pytest.mark.parametrize("way", ["relative", "link", "alias"])
def test_a_reference_by_another_path_is_no_candidate_of_itself(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "alias":
        ladder = _plan(f"--models={TINY_FILE},{llama_file}", "--reference=tiny")
        assert [model.name for model in ladder.models] == ["tiny-F16", "random-F32"]
        return
    file = tmp_path / "a.gguf"
    shutil.copy(llama_file, file)
    shutil.copy(llama_file, tmp_path / "b.gguf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "newest.gguf").symlink_to(file)
    spec = "./a.gguf" if way == "relative" else str(tmp_path / "links" / "newest.gguf")
    ladder = _plan(f"--models={tmp_path}", f"--reference={spec}")
    assert ladder.reference is not None
    assert (ladder.reference.name, [model.name for model in ladder.candidates]) == ("a", ["b"])


def test_models_of_other_shapes_are_named(llama_file: Path, tmp_path: Path) -> None:
    draft = write_random_llama(tmp_path / "draft.gguf", n_layer=1)
    foreign = write_random_llama(tmp_path / "foreign.gguf", extra_tokens=1)
    twin = shutil.copy(llama_file, tmp_path / "twin.gguf")
    ladder = _plan(f"--models={draft},{llama_file},{twin},{foreign}")
    assert ladder.reference is not None
    assert ladder.reference.name == "random-F32"
    assert not ladder.asked_for
    (shape, vocabulary) = ladder.notes
    assert shape.startswith(
        "draft is not compared with random-F32: draft is a model of architecture llama with 1 layers"
    )
    assert vocabulary == "foreign is not compared with random-F32: they have different vocabularies."
    asked = _plan(f"--models={draft}", f"--reference={llama_file}")
    assert asked.asked_for
    assert asked.notes[0].startswith("draft is compared with random-F32 because --reference asks for it: draft is")


def test_a_reference_less_precise_than_a_candidate_is_said(tmp_path: Path) -> None:
    """The type of a tensor's numbers is all that a plan reads."""
    rough = write_gguf(tmp_path / "rough.gguf", "llama", ["token_embd.weight"], dtype=np.float16)
    fine = write_gguf(tmp_path / "fine.gguf", "llama", ["token_embd.weight"])
    assert _plan(f"--models={fine}", f"--reference={rough}").notes == ()
    byte = write_gguf(tmp_path / "byte.gguf", "llama", ["token_embd.weight"], dtype=np.int8)
    (note,) = _plan(f"--models={fine}", f"--reference={byte}").notes
    assert note.startswith("fine is more precise than its reference: 32.00 bits per weight, byte has 8.00.")
