"""What people call models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gguf_harness.errors import ModelNotFound
from gguf_harness.inputs.sources import expand, expand_all, parse_specs, select
from tests.companions import COMPANIONS


@pytest.fixture
def folder(tmp_path: Path, llama_file: Path) -> Path:
    for name in ("a-F16.gguf", "b-Q8_0.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"):
        shutil.copy(llama_file, tmp_path / name)
    COMPANIONS["projector"].write(tmp_path / "c-F16.gguf")
    (tmp_path / "notes.txt").write_text("no model")
    return tmp_path


def test_lists_are_split_and_repetitions_dropped() -> None:
    assert parse_specs(["a,b", " c ", "a,"]) == ["a", "b", "c"]


def test_a_comma_may_belong_to_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "a, b"
    folder.mkdir()
    for name in ("x,y", "x", "z"):
        (folder / f"{name}.gguf").touch()
    assert parse_specs([f"{folder}/x,y.gguf,{folder}/*.gguf, {folder} ,tiny"]) == [
        f"{folder}/x,y.gguf",
        f"{folder}/*.gguf",
        str(folder),
        "tiny",
    ]
    assert parse_specs(["x,y.gguf,z.gguf"], folder) == ["x,y.gguf", "z.gguf"]
    assert parse_specs([f"{folder}/x.gguf,z.gguf,none"], folder) == [f"{folder}/x.gguf", "z.gguf", "none"]


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


def test_names_that_differ_in_case_or_unicode_form_are_told_apart(folder: Path, llama_file: Path) -> None:
    """Logs and quantized files are called after models, on file systems that take such names for one too."""
    for name in ("A-f16.gguf", "caf\u00e9.gguf", "cafe\u0301.gguf"):
        shutil.copy(llama_file, folder / name)
    names = [source.name for source in expand_all([str(folder)])]
    assert len({name.casefold() for name in names}) == len(names) == 6
    assert sorted(name for name in names if "a-f16" in name.casefold()) == [
        f"{folder.name}/A-f16",
        f"{folder.name}/a-F16 (2)",
    ]


def test_a_number_is_not_taken_from_a_file_that_is_called_so(folder: Path, llama_file: Path) -> None:
    for place in ("one/same", "two/same"):
        (folder / place).mkdir(parents=True)
        shutil.copy(llama_file, folder / place / "m.gguf")
    names = [s.name for s in expand_all([f"{folder}/one/same", f"{folder}/two/same"])]
    assert names == ["same/m", "same/m (2)"]


@pytest.mark.parametrize("kind", ["relative", "dots", "slashes", "symbolic", "hard", "folder link"])
def test_a_file_is_one_model_whatever_path_leads_to_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = folder / "a-F16.gguf"
    monkeypatch.chdir(folder)
    (folder / "links").mkdir()
    (folder / "links" / "in").symlink_to(folder)
    (folder / "links" / "soft.gguf").symlink_to(file)
    os.link(file, folder / "links" / "hard.gguf")
    other = {
        "relative": "a-F16.gguf",
        "dots": f"{folder}/links/../a-F16.gguf",
        "slashes": f"{folder}//.//a-F16.gguf",
        "symbolic": f"{folder}/links/soft.gguf",
        "hard": f"{folder}/links/hard.gguf",
        "folder link": f"{folder}/links/in/a-F16.gguf",
    }[kind]
    selection = select([str(file), other])
    assert [source.name for source in selection.models] == ["a-F16"]
    name = Path(other).name
    said = [f"{name} is the same file as a-F16.gguf: it is measured once, as a-F16."] if name != "a-F16.gguf" else []
    assert list(selection.notes) == said


def test_a_folder_calls_a_file_by_its_own_name(tmp_path: Path, llama_file: Path) -> None:
    shutil.copy(llama_file, tmp_path / "model.gguf")
    (tmp_path / "latest.gguf").symlink_to("model.gguf")
    selection = select([str(tmp_path)])
    assert [source.name for source in selection.models] == ["model"]
    assert selection.notes == ("latest.gguf is the same file as model.gguf: it is measured once, as model.",)


def test_a_copy_is_a_model_of_its_own(folder: Path) -> None:
    assert len(expand_all([str(folder / "a-F16.gguf"), str(folder / "b-Q8_0.gguf")])) == 2


def test_what_a_file_is_made_into_is_not_the_file(smollm2_file: Path) -> None:
    sources = expand_all(["smollm2-135m", str(smollm2_file)])
    assert [source.expand_to for source in sources] == ["F16", None]


@pytest.mark.parametrize("way", ["{folder}", "{folder}/*.gguf", "{folder}/*"])
def test_companions_are_left_out_and_named(tmp_path: Path, llama_file: Path, way: str) -> None:
    """Their names say nothing: these are called like models, and the models like them."""
    models = ["lora-merged-Q4_K_M", "mmproj", "my-imatrix-quant", "ggml-vocab-like"]
    for name in models:
        shutil.copy(llama_file, tmp_path / f"{name}.gguf")
    for index, companion in enumerate(COMPANIONS.values()):
        companion.write(tmp_path / f"model-{index}-Q8_0.gguf")
    selection = select([way.format(folder=tmp_path)])
    assert [source.name for source in selection.models] == sorted(models)
    assert len(selection.notes) == len(COMPANIONS)
    for index, companion in enumerate(COMPANIONS.values()):
        assert selection.notes[index].startswith(f"model-{index}-Q8_0.gguf is left out: it is {companion.what}")


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_companion_that_is_named_is_refused(tmp_path: Path, name: str) -> None:
    file, what = COMPANIONS[name].write(tmp_path / "model-Q8_0.gguf"), COMPANIONS[name].what
    with pytest.raises(ModelNotFound, match=rf"is not a model: model-Q8_0\.gguf is {what}"):
        expand(str(file))
    with pytest.raises(ModelNotFound, match=rf"model-Q8_0\.gguf is left out: it is {what}"):
        expand(str(tmp_path))


def test_what_else_is_left_out_is_named(folder: Path, llama_file: Path) -> None:
    shutil.copy(llama_file, folder / "a-F16.gguf.bak")
    shutil.copy(llama_file, folder / ".hidden.gguf")
    (folder / "old.gguf").mkdir()
    (folder / "damaged.gguf").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    selection = select([str(folder)])
    assert [source.name for source in selection.models] == ["a-F16", "b-Q8_0", "big", "damaged"]
    assert selection.notes == (
        ".hidden.gguf is left out: its name begins with a dot.",
        "a-F16.gguf.bak is left out: it is a GGUF file, but its name does not end in .gguf.",
        "old.gguf is left out: it is a folder.",
        "c-F16.gguf is left out: it is a projector of images or sound (general.architecture is clip).",
    )
    assert [source.name for source in expand(f"{folder}/.hid*.gguf")] == [".hidden"]


def test_upper_case_endings_count(tmp_path: Path, llama_file: Path) -> None:
    for name in ("a.GGUF", "big-00001-of-00002.GGUF", "big-00002-of-00002.GGUF"):
        shutil.copy(llama_file, tmp_path / name)
    for spec in (str(tmp_path), f"{tmp_path}/*"):
        assert [(source.name, len(source.files)) for source in expand(spec)] == [("a", 1), ("big", 2)]


@pytest.mark.parametrize("name", ["m [x]", "a*b", "what?", "[ab]"])
def test_names_that_look_like_patterns_are_names(tmp_path: Path, llama_file: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    shutil.copy(llama_file, place / f"{name}.gguf")
    for spec in (f"{place}/{name}.gguf", str(place), f"{place}/*.gguf"):
        assert [source.name for source in expand(spec)] == [name]


def test_a_folder_that_lacks_a_split_fails_for_that_model_alone(folder: Path) -> None:
    (folder / "big-00002-of-00002.gguf").unlink()
    assert [len(source.files) for source in expand(str(folder))] == [1, 1, 2]


@pytest.mark.parametrize("name", ["x-00000-of-00000.gguf", "x-00003-of-00002.gguf"])
def test_an_impossible_split_is_a_name(folder: Path, llama_file: Path, name: str) -> None:
    file = Path(shutil.copy(llama_file, folder / name))
    assert [source.files for source in expand(str(file))] == [(file,)]


def test_an_alias_that_is_also_here_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "tiny").mkdir()
    selection = select(["tiny"])
    assert [source.name for source in selection.models] == ["tiny-F16"]
    assert selection.notes == ("tiny is the model of that alias; for the file of that name here, write ./tiny.",)


def test_subfolders_that_hold_models_are_named(folder: Path) -> None:
    outer = folder.parent / "outer"
    outer.mkdir()
    folder.rename(outer / "inner")
    with pytest.raises(ModelNotFound, match=r"Subfolders are not searched; these hold \.gguf files: inner"):
        expand(str(outer))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_one_message(folder: Path) -> None:
    folder.chmod(0)
    try:
        with pytest.raises(ModelNotFound, match="cannot be read: Permission denied"):
            expand(str(folder))
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{folder}/a-F61.gguf", "Did you mean a-F16.gguf"),
        ("{folder}/*.bin", "No .gguf file matches"),
        ("{folder}/empty", "contains no .gguf model"),
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


def test_a_link_to_nothing_is_a_model_whose_tests_say_so(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to("none")
    assert [source.name for source in expand_all([f"{tmp_path}/m.gguf", str(tmp_path)])] == ["m"]


def test_a_pattern_leaves_caches_out_and_says_so(tmp_path: Path, llama_file: Path) -> None:
    kept = tmp_path / "results" / "cache" / "models"
    kept.mkdir(parents=True)
    shutil.copyfile(llama_file, tmp_path / "mine.gguf")
    shutil.copyfile(llama_file, kept / "Q8_0.gguf")
    (kept.parent / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# of some program\n")
    selection = select([f"{tmp_path}/**/*.gguf"])
    assert [source.files[0].name for source in selection.models] == ["mine.gguf"]
    assert selection.notes == (f"Q8_0.gguf is left out: it is in the cache {kept.parent}.",)
    # Who names a place in a cache means it.
    assert [source.name for source in select([f"{kept}/*.gguf"]).models] == ["Q8_0"]
