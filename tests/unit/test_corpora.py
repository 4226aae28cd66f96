"""Corpora: known names, files, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_harness.errors import CorpusError
from gguf_harness.inputs.corpora import load_corpus, pydoc_topics


def test_pydoc_is_the_help_topics_of_this_python() -> None:
    from pydoc_data.topics import topics

    corpus = load_corpus("pydoc")
    assert len(corpus.text) > 300_000
    first = topics[min(topics)].encode()
    assert corpus.text.startswith(first)


def test_one_trailing_newline_is_stripped(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"some text\n\n")
    assert load_corpus(str(file)).text == b"some text\n"
    assert load_corpus(str(file)).sha256 == load_corpus(str(file)).sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"ab\xff\xfe", "not UTF-8 text: byte 0xff at offset 2"),
        (b"a\0b\0", "not UTF-8 text: byte 0x00 at offset 1"),
    ],
)
def test_bad_texts_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        load_corpus(str(file))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no-such-corpus", "neither a known name nor a file"),
        ("hf:x", "malformed"),
        ("/", "cannot be read"),
        ("", "--gguf-corpus is empty"),
        ("/dev/zero", "a pipe or a device"),
    ],
)
def test_bad_specs_are_named(spec: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(spec)


@pytest.mark.parametrize("spec", ["wikitext2", "hf:nobody/nothing:file.txt"])
def test_a_download_without_network_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CorpusError, match="could not be downloaded"):
        load_corpus(spec)


def test_topics_that_a_model_was_trained_on_are_left_out() -> None:
    topics = pydoc_topics()
    chosen = ("yield", "if", "no such topic")
    corpus = load_corpus("pydoc", held_out_topics=chosen)
    assert corpus.text.decode() == f"{topics['if']}\n\n{topics['yield']}".removesuffix("\n")
    assert corpus.name == "pydoc (2 topics held out from training)"
    assert load_corpus("pydoc").name == "pydoc"
    # What one file says of itself must not cost the other models their text.
    assert load_corpus("pydoc", held_out_topics=("no such topic",)) == load_corpus("pydoc")


def test_a_text_of_ones_own_is_never_cut(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("some text", encoding="utf-8")
    assert load_corpus(str(file), held_out_topics=("if",)).text == b"some text"
