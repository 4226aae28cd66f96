"""What llama.cpp can do with types of the KV cache in a model, from the file's header: before anything is loaded.

Sources: `llama_init_from_model` (src/llama-context.cpp) for what it refuses, the constructor of `llama_kv_cache`
(src/llama-kv-cache.cpp) and `build_attn` (src/llama-graph.cpp) for what it rotates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gguf_harness.engine.settings import CACHE_BLOCK
from gguf_harness.errors import NoData
from gguf_harness.gguf.cache_layout import CacheShape, read_cache_layout
from gguf_harness.gguf.header import read_header
from gguf_harness.store.file_hashes import file_states

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.gguf.cache_layout import CacheLayer, CacheLayout
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.store.file_hashes import FileState

__all__ = ["Rotation", "cache_facts", "cache_layout", "cache_shape", "rotates", "rotation", "why_not"]

_NO_FLASH: Final = frozenset({"grok"})
"""Architectures for which llama.cpp turns flash attention off."""
_ROTATED_BY: Final = 64
"""Heads of a multiple of this size are rotated; values by a matrix of this size."""


def cache_layout(info: ModelInfo) -> CacheLayout:
    """The cache of a model.

    Raises:
        NoData: it has none, or one of another kind.
    """
    file = info.files[0]
    found = _layout_of(file, *file_states([file]))
    if isinstance(found, NoData):
        raise found
    return found


@lru_cache(maxsize=64)
def _layout_of(file: Path, state: FileState | None) -> CacheLayout | NoData:  # noqa: ARG001 - a changed file is another
    """Of a file in a state: a session asks for it once for each way in which the file is run."""
    try:
        return read_cache_layout(read_header(file).metadata)
    except NoData as error:
        return error


def cache_shape(settings: SessionSettings, *, full_windows: bool = True) -> CacheShape:
    """How large a context with these settings makes its cache: flash attention is used unless it is off."""
    return CacheShape(
        n_ctx=settings.n_ctx,
        n_seq=settings.n_seq,
        n_ubatch=min(settings.n_ubatch, settings.n_batch),
        k=settings.cache_type_k,
        v=settings.cache_type_v,
        transposed=settings.flash_attention == "off",
        full_windows=full_windows,
    )


def why_not(info: ModelInfo, settings: SessionSettings) -> str | None:
    """Why a model cannot be run with the types of the KV cache in these settings, as a sentence; None if it can.

    Models whose caches `read_cache_layout` does not know are left to llama.cpp.
    """
    k, v = settings.cache_type_k, settings.cache_type_v
    if k == v and not settings.has_quantized_k:
        return None
    try:
        layout = cache_layout(info)
    except NoData:
        return None
    if layout.mla and k != v:
        return (
            f"The types {k} and {v} differ: this model caches latents in place of K and V (MLA), which have one type."
        )
    if settings.has_quantized_v and layout.architecture in _NO_FLASH:
        return (
            f"A V cache of type {v} needs flash attention, which llama.cpp turns off for the architecture"
            f" {layout.architecture}."
        )
    sizes = {
        "K": (k, settings.has_quantized_k, {layout.d_key, *(layer.d_key for layer in layout.layers)}),
        "V": (v, settings.has_quantized_v, {layout.d_value, *(layer.d_value for layer in layout.layers)}),
    }
    for name, (cache_type, quantized, heads) in sizes.items():
        odd = [size for size in sorted(heads) if size % CACHE_BLOCK]
        if quantized and odd:
            return (
                f"A {name} cache of type {cache_type} has blocks of {CACHE_BLOCK} values, which do not divide the"
                f" {odd[0]} of a head."
            )
    return None


@dataclass(frozen=True, slots=True)
class Rotation:
    """Sizes of the Hadamard matrices that a layer's keys and values are multiplied by in the cache; 0 for none."""

    k: int = 0
    v: int = 0


def rotation(layout: CacheLayout, settings: SessionSettings, layer: CacheLayer) -> Rotation:
    """How llama.cpp rotates a layer's keys and values before it quantizes them.

    Only quantized types, only heads of a multiple of 64, all of one size in layers of one cache (those with a sliding
    window have one of their own); never latents (MLA), although llama.cpp's log says so. Keys are rotated by the
    largest power of two times 64 that divides a head, values by 64.
    """
    if not settings.rotate_kv or layout.mla:
        return Rotation()
    together = [other for other in layout.layers if other.sliding == layer.sliding]
    keys, values = {other.d_key for other in together}, {other.d_value for other in together}
    size = 0
    if settings.has_quantized_k and len(keys) == 1 and layout.d_key % _ROTATED_BY == 0:
        size = _ROTATED_BY
        while layer.d_key % (2 * size) == 0:
            size *= 2
    rotated_v = settings.has_quantized_v and len(values) == 1 and layout.d_value % _ROTATED_BY == 0
    return Rotation(size, _ROTATED_BY if rotated_v else 0)


def rotates(info: ModelInfo, settings: SessionSettings) -> tuple[bool, bool]:
    """Whether llama.cpp rotates the keys, and the values, of any layer in the cache."""
    if not (settings.has_quantized_k or settings.has_quantized_v):
        return False, False  # most files of a session, whose headers need not be read again
    if not (settings.has_quantized_k or settings.has_quantized_v):
        return False, False
    try:
        layout = cache_layout(info)
    except NoData:
        return False, False
    rotations = [rotation(layout, settings, layer) for layer in layout.layers]
    return any(each.k for each in rotations), any(each.v for each in rotations)


def cache_facts(info: ModelInfo, settings: SessionSettings) -> list[str]:
    """Sentences on a file's cache that a reader of its numbers has to know; the same for all types but for f32."""
    try:
        layout = cache_layout(info)
    except NoData as error:
        return [error.message]
    facts = layout.facts()
    if (settings.has_quantized_k or settings.has_quantized_v) and settings.rotate_kv:
        facts.append(_rotation_of(layout, settings))
    floats = [t for t in (settings.cache_type_k, settings.cache_type_v) if t == "f32"]
    if floats and settings.flash_attention != "off":
        facts.append("Flash attention reads an f32 cache in half precision.")
    return facts


def _rotation_of(layout: CacheLayout, settings: SessionSettings) -> str:
    """Whether llama.cpp rotates what is quantized: the same sentence for all quantized types of a file."""
    if layout.mla:
        return "Quantized latents are not rotated, although llama.cpp's log says so."
    quantized = replace(settings, cache_type_k="q8_0", cache_type_v="q8_0", flash_attention="auto")
    rotations = [rotation(layout, quantized, layer) for layer in layout.layers]
    names = [name for name, size in (("K", max(r.k for r in rotations)), ("V", max(r.v for r in rotations))) if size]
    if names:
        return f"llama.cpp rotates quantized {' and '.join(names)} (Hadamard) before it stores them."
    sizes = " and ".join(str(size) for size in sorted({layer.d_key for layer in layout.layers}))
    return f"Quantized K and V are not rotated: heads have {sizes} values, not a multiple of {_ROTATED_BY}."
