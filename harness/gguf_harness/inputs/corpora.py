"""Corpora: texts for perplexity and divergence."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

from gguf_harness.errors import CorpusError, HubError, visible
from gguf_harness.store.paths import option_path
from gguf_harness.store.text_files import decode_text, read_bytes

__all__ = ["Corpus", "load_corpus", "pydoc_topics"]

_WIKITEXT: Final = ("ggml-org/ci", "wikitext-2-raw-v1.zip", "wikitext-2-raw/wiki.test.raw")


@dataclass(frozen=True)
class Corpus:
    """A text, as bytes of UTF-8.

    Attributes:
        name: as the user gave it, with a note on held-out topics.
        text: one trailing newline is stripped, as by `llama-perplexity -f`.
    """

    name: str
    text: bytes

    @cached_property
    def sha256(self) -> str:
        """Hash of the text; part of every cache key."""
        return hashlib.sha256(self.text).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return {"name": self.name, "sha256": self.sha256, "bytes": len(self.text)}


def load_corpus(spec: str, *, held_out_topics: Sequence[str] = ()) -> Corpus:
    """Read a corpus.

    Args:
        spec: `pydoc` (the help topics of the running Python: 465 kB of technical English), `wikitext2` (downloaded
            once), `hf:org/dataset:file` on the Hugging Face hub, or the path of a text file.
        held_out_topics: topics of `pydoc` to keep, if a model was trained on the others; empty for all.

    Raises:
        CorpusError: missing, empty, a pipe, or not UTF-8 text; or no network for a download.
    """
    name = spec
    if spec == "pydoc":
        # The metadata of a file may name any topics: unknown ones are ignored.
        topics = sorted(set(held_out_topics) & set(pydoc_topics())) or sorted(pydoc_topics())
        raw = "\n\n".join(pydoc_topics()[topic] for topic in topics).encode()
        if len(topics) < len(pydoc_topics()):
            name = f"pydoc ({len(topics)} topics held out from training)"
    elif spec == "wikitext2":
        raw = _wikitext()
    elif spec.startswith("hf:"):
        raw = _hub(spec)
    elif not spec:
        raise CorpusError("--gguf-corpus is empty.", "Give a path or a name such as pydoc; an unset variable is empty.")
    else:
        raw = _read(option_path(spec), spec)
    # Decoded as UTF-8: a byte order mark is not part of the text.
    text = decode_text(raw, f"Corpus {spec!r}", CorpusError).encode().removesuffix(b"\n")
    if not text.strip():
        raise CorpusError(f"Corpus {spec!r} is empty.", "Give a text file with at least two windows of text.")
    return Corpus(visible(name), text)


def pydoc_topics() -> dict[str, str]:
    """The help topics of the running Python by name: its language reference, about 465 kB."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return topics


def _read(path: Path, spec: str) -> bytes:
    if not path.exists():
        raise CorpusError(
            f"Corpus {spec!r} is neither a known name nor a file.",
            "Known names: pydoc, wikitext2, hf:ORG/DATASET:FILE; otherwise give the path of a text file.",
        )
    return read_bytes(path, "Corpus", CorpusError)


def _wikitext() -> bytes:
    repository, archive, member = _WIKITEXT
    path = _download(repository, archive, "wikitext2")
    try:
        with ZipFile(path) as file:
            return file.read(member)
    except (BadZipFile, KeyError) as error:
        raise CorpusError(
            f"Corpus 'wikitext2': {path} is damaged: {error}.", "Delete that file and try again."
        ) from None


def _hub(spec: str) -> bytes:
    repository, separator, name = spec.removeprefix("hf:").partition(":")
    if not separator or repository.count("/") != 1 or not name:
        raise CorpusError(f"Corpus {spec!r} is malformed.", "Expected hf:ORG/DATASET:FILE.")
    return _read(_download(repository, name, spec), spec)


def _download(repository: str, name: str, spec: str) -> Path:
    from gguf_harness.inputs import hub

    try:
        return hub.download(repository, name, kind="dataset")
    except HubError as error:
        raise CorpusError(
            f"Corpus {spec!r} could not be downloaded from the Hugging Face hub: {error.message}.",
            f"{error.hint} `--gguf-corpus=pydoc` needs no download.",
        ) from None
