"""What people call models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.errors import ModelNotFound
from harness.sources import expand, expand_all, parse_specs


@pytest.fixture
def folder(tmp_path: Path, llama_file: Path) -> Path:
    for name in ("a-F16.gguf", "b-Q8_0.gguf", "mmproj-a.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"):
        shutil.copy(llama_file, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no model")
    return tmp_path


def test_lists_are_split_and_repetitions_dropped() -> None:
    assert parse_specs(["a,b", " c ", "a,"]) == ["a", "b", "c"]


def test_a_folder_holds_its_models(folder: Path) -> None:
    sources = expand(str(folder))
    assert [(s.name, len(s.files)) for s in sources] == [("a-F16", 1), ("b-Q8_0", 1), ("big", 2)]


def test_globs_and_paths(folder: Path) -> None:
    assert [s.name for s in expand(f"{folder}/*Q8*.gguf")] == ["b-Q8_0"]
    assert [s.name for s in expand_all([f"{folder}/a-F16.gguf", str(folder)])] == ["a-F16", "b-Q8_0", "big"]


def test_any_part_names_the_split_model(folder: Path) -> None:
    (source,) = expand(str(folder / "big-00002-of-00002.gguf"))
    assert [file.name for file in source.files] == ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]


def test_a_missing_part_is_named(folder: Path) -> None:
    (folder / "big-00001-of-00002.gguf").unlink()
    with pytest.raises(ModelNotFound, match=r"missing: big-00001-of-00002\.gguf"):
        expand(str(folder / "big-00002-of-00002.gguf"))


def test_equal_names_are_told_apart(folder: Path, llama_file: Path) -> None:
    other = folder / "other"
    other.mkdir()
    shutil.copy(llama_file, other / "a-F16.gguf")
    names = [s.name for s in expand_all([str(folder / "a-F16.gguf"), str(other / "a-F16.gguf")])]
    assert names == [f"{folder.name}/a-F16", "other/a-F16"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{folder}/a-F61.gguf", "Did you mean a-F16.gguf"),
        ("{folder}/*.bin", "No .gguf file matches"),
        ("{folder}/empty", "holds no .gguf model"),
        ("{folder}/nowhere/x.gguf", "does not exist either"),
        ("smollm2-135", "Did you mean smollm2-135m"),
        ("hf:only-a-name", "Expected hf:ORG/REPO:FILE.gguf"),
    ],
)
def test_what_names_nothing_is_said(folder: Path, spec: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=message):
        expand(spec.format(folder=folder))


def test_a_hub_spec_without_network_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="could not be downloaded from the Hugging Face hub"):
        expand("hf:nobody/nothing-GGUF:model.gguf")
