"""The heads of a model: how many each layer has, and which values are whose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf_harness.errors import EngineError, ModelError
from gguf_harness.gguf.header import read_header

__all__ = ["HeadLayout", "read_layout", "stream_tap", "z_tap"]

_MOST_HEADS: Final = 1 << 17
"""Most heads of a model: the largest models have 16 thousand."""


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Layout of the query heads of a model; `heads` is their number by layer, 0 for a layer without attention."""

    architecture: str
    heads: tuple[int, ...]

    @property
    def all(self) -> list[tuple[int, int]]:
        """(layer, head) of every head."""
        return [(layer, head) for layer, count in enumerate(self.heads) for head in range(count)]

    @property
    def layers(self) -> list[int]:
        """Layers that have heads."""
        return [layer for layer, count in enumerate(self.heads) if count]

    def columns(self, layer: int, head: int, width: int) -> slice:
        """The columns of z that belong to a head; heads that share keys and values have separate columns."""
        size, rest = divmod(width, self.heads[layer])
        if rest:
            raise EngineError(
                f"Layer {layer} mixes {width} values, which {self.heads[layer]} heads cannot share.",
                f"Heads of the architecture {self.architecture} cannot be distinguished here.",
            )
        return slice(head * size, (head + 1) * size)


def read_layout(file: Path) -> HeadLayout:
    """The heads of a model, from the header of its (first) file.

    Raises:
        ModelError: the file does not say how many heads its layers have.
    """
    metadata = read_header(file).metadata
    architecture = metadata.name("general.architecture") or "none"
    # Checked before use: a header may claim anything.
    layers = metadata.integer(f"{architecture}.block_count", most=_MOST_HEADS)
    heads = metadata.by_layer(f"{architecture}.attention.head_count", layers or 0)
    kv_heads = metadata.by_layer(f"{architecture}.attention.head_count_kv", layers or 0)
    if heads is not None and kv_heads is not None:
        # A layer without keys and values has another mixer, or none: it has no heads.
        heads = tuple(count if kv else 0 for count, kv in zip(heads, kv_heads, strict=True))
    if heads is None or not 0 < sum(heads) <= _MOST_HEADS:
        raise ModelError(
            f"{file.name} has {layers} layers and {heads} heads by its header, expected plausible numbers.",
            "Heads can be measured in models with attention only.",
        )
    return HeadLayout(architecture, heads)


def z_tap(layer: int) -> str:
    """The mixed values of a layer's heads, before the output projection."""
    return f"blocks.{layer}.attn.z"


def stream_tap(layer: int) -> str:
    """The residual stream that enters a layer after the first one."""
    return f"blocks.{layer - 1}.resid_post"
