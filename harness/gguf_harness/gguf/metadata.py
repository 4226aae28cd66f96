"""The metadata of a GGUF file by key and type: any key may have any type, whatever the specification says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from gguf_harness.errors import InvalidGGUF

__all__ = ["ArraySummary", "Metadata", "check_metadata"]

_MOST_NAME: Final = 200
_SHOWN: Final = 60
_LARGEST: Final = 2**31 - 1
"""llama.cpp counts layers, heads, tokens and widths in 32 bits."""
_MOST_LAYERS: Final = 10_000
_MOST_TOKEN: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """A long array of metadata (a vocabulary): number of elements, and a hash of them."""

    count: int
    sha256: str


class Metadata(dict[str, Any]):
    """Values by key: whole numbers, floats, bools and texts; arrays as tuples, or as an `ArraySummary`.

    Each method returns the value of a key as one type; None if the file has no such key.

    Attributes:
        types: by key, as ggml's docs/gguf.md names them: `uint32`, `array of string`.

    Args:
        file: its name, for messages.

    Raises:
        InvalidGGUF: from each method: the value has another type, or is out of range.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file
        self.types: dict[str, str] = {}

    def integer(self, key: str, least: int = 0, most: int = _LARGEST) -> int | None:
        """A whole number; booleans are not accepted."""
        value = self.get(key)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            self.refuse(key, f"a whole number of {least} to {most}")
        return value

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self.get(key)
        if value is None:
            return None
        if type(value) not in {int, float} or not math.isfinite(value):
            self.refuse(key, "a finite number")
        return float(value)

    def boolean(self, key: str) -> bool | None:
        """True or false."""
        value = self.get(key)
        if value is not None and type(value) is not bool:
            self.refuse(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """A text of any length."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "a text")
        return value

    def name(self, key: str) -> str | None:
        """A text that names something: printable and short."""
        value = self.text(key)
        if value is not None and not (len(value) <= _MOST_NAME and value.isprintable()):
            self.refuse(key, f"at most {_MOST_NAME} printable characters")
        return value

    def by_layer(self, key: str, layers: int, most: int = _LARGEST) -> tuple[int, ...] | None:
        """A whole number per layer, [layers]: an array of them, or one for all layers."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, tuple):
            return (self.integer(key, most=most) or 0,) * layers
        if len(value) < layers or not all(type(count) is int and 0 <= count <= most for count in value):
            self.refuse(key, f"a whole number of 0 to {most}, or one for each of {layers} layers")
        return value[:layers]

    def count(self, key: str, *elements: str) -> int | None:
        """Elements of an array.

        Args:
            key: of the array.
            elements: types that they may have, such as `string`.
        """
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, tuple | ArraySummary) or self.types[key].removeprefix("array of ") not in elements:
            self.refuse(key, f"an array of {' or '.join(elements)}")
        return len(value) if isinstance(value, tuple) else value.count

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise an error with the value of a key and what was expected.

        Raises:
            InvalidGGUF: always.
        """
        value = self[key]
        shown = f"{value.count} elements" if isinstance(value, ArraySummary) else repr(value)
        shown = f"{shown[:_SHOWN]}..." if len(shown) > _SHOWN else shown
        raise InvalidGGUF(
            f"{self._file} is not a valid GGUF model: {key} is {shown} ({self.types[key]}), expected {expected}.",
            "Download or convert it again; `gguf-dump` of the package gguf shows its metadata.",
        )


def check_metadata(metadata: Metadata, architecture: str) -> None:
    """Check the types of the keys that this package and llama.cpp read from most models, if present.

    llama.cpp refuses most wrong ones when it loads a model, aborts on some, and reads beyond the end of others. It is
    stricter on the width of numbers.

    Args:
        metadata: of a model's (first) file.
        architecture: `general.architecture`.

    Raises:
        InvalidGGUF: a wrong one.
    """
    layers = metadata.integer(f"{architecture}.block_count", most=_MOST_LAYERS) or 0
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        metadata.by_layer(f"{architecture}.{key}", layers)
    for key in ("context_length", "embedding_length", "vocab_size", "rope.dimension_count"):
        metadata.integer(f"{architecture}.{key}")
    for key in (
        "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon",
        "rope.freq_base",
        "logit_scale",
        "final_logit_softcapping",
    ):
        metadata.number(f"{architecture}.{key}")
    metadata.integer("general.file_type")
    _check_tokenizer(metadata)


def _check_tokenizer(metadata: Metadata) -> None:
    prefix = "tokenizer.ggml"
    for key in ("model", "pre"):
        metadata.name(f"{prefix}.{key}")
    for key in ("bos", "eos", "eot", "unknown", "padding"):
        metadata.integer(f"{prefix}.{key}_token_id", most=_MOST_TOKEN)
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        metadata.boolean(f"{prefix}.{key}")
    metadata.text("tokenizer.chat_template")
    tokens = metadata.count(f"{prefix}.tokens", "string") or 0
    metadata.count(f"{prefix}.merges", "string")
    for key, elements in (("scores", ("float32",)), ("token_type", ("int32", "uint32"))):
        count = metadata.count(f"{prefix}.{key}", *elements)
        if count is not None and count < tokens:
            metadata.refuse(f"{prefix}.{key}", f"one for each of {tokens} tokens")
