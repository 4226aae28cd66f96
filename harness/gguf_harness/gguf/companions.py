"""GGUF files next to models that are not models, detected by content (llama.cpp's gguf-py/gguf/constants.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.gguf.header import GGUFHeader

__all__ = ["CACHE_SIGNATURE", "CACHE_TAG", "cache_above", "companion_kind", "holds_gguf"]

_TYPES: Final = {
    "adapter": "an adapter",
    "mmproj": "a projector of images or sound",
    "imatrix": "an importance matrix",
}
"""`general.type` (gguf.GGUFType) of files that are not models."""

CACHE_TAG: Final = "CACHEDIR.TAG"
CACHE_SIGNATURE: Final = "Signature: 8a477f597d28d172789f06886806bc55"
"""The file in a cache folder that backup programs look for, and its first line: https://bford.info/cachedir/"""

_ARCHITECTURES: Final = {"clip": "a projector of images or sound", "controlvector": "a control vector"}
_ENDINGS: Final = (
    ((".lora_a", ".lora_b"), "a LoRA adapter"),
    ((".in_sum2", ".counts"), "an importance matrix"),
)
"""Endings of all tensor names in files that do not declare what they are."""


def companion_kind(headers: Sequence[GGUFHeader]) -> str | None:
    """Kind of a GGUF file that is not a model by itself, with the reason; None for a model.

    Args:
        headers: of the file, or of all its splits.
    """
    metadata = headers[0].metadata
    names = [tensor.name for header in headers for tensor in header.tensors]
    kind = _text(metadata, "general.type")
    if kind in _TYPES:
        return f"{_TYPES[kind]} (general.type is {kind})"
    architecture = _text(metadata, "general.architecture")
    if architecture in _ARCHITECTURES:
        return f"{_ARCHITECTURES[architecture]} (general.architecture is {architecture})"
    if "adapter.type" in metadata:
        return f"an adapter (adapter.type is {_text(metadata, 'adapter.type') or 'no text'})"
    for endings, what in _ENDINGS:
        if names and all(name.endswith(endings) for name in names):
            return f"{what} (its tensors end in {' and '.join(endings)})"
    if not names and "tokenizer.ggml.tokens" in metadata:
        return "a vocabulary without weights (it has no tensors)"
    return None


def _text(metadata: dict[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def holds_gguf(file: Path) -> bool:
    """Whether a file starts like GGUF, whatever its name."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def cache_above(file: Path, named: Path) -> Path | None:
    """The cache folder that contains a file (https://bford.info/cachedir/), unless the user named a path inside it.

    Args:
        file: that a pattern matched.
        named: the pattern: its folders up to the first wildcard count as named by the user.
    """
    for folder in file.parents:
        tag = folder / CACHE_TAG
        if tag.is_file() and folder.absolute() not in named.absolute().parents:
            with tag.open("rb") as stream:
                if stream.read(len(CACHE_SIGNATURE)) == CACHE_SIGNATURE.encode():
                    return folder
    return None
