"""What attention reads while a prompt is decoded: queries, and keys and values as the cache holds them. In a worker."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.cache_types import rotate, through_cache
from gguf_harness.errors import EngineError, NoData
from gguf_harness.inputs.cache_limits import Rotation, rotation
from gguf_harness.metrics.cached_attention import attention_pattern

if TYPE_CHECKING:
    from gguf_harness.engine.cache_state import CachedRows
    from gguf_harness.engine.cache_taps import Attention
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.settings import CacheType, SessionSettings
    from gguf_harness.gguf.cache_layout import CacheLayer, CacheLayout

__all__ = ["MOST_TOKENS", "CacheReader", "LayerReading", "round_queries"]

F32 = NDArray[np.float32]

MOST_TOKENS: Final = 512
"""Of a longer prompt, only these first tokens are read: patterns grow with the square."""

_MULTIPLIED_IN: Final[dict[CacheType, CacheType]] = {"f32": "f32", "f16": "f16", "bf16": "bf16"}
"""What llama.cpp's CPU backend rounds queries to, by type of the keys that they are multiplied with; q8_0 for quantized
ones (`vec_dot_type` in ggml/src/ggml-cpu/ggml-cpu.c). For q4_1 and q5_1 that is q8_1, whose values are the same; its
sum in half precision, which these types also use, is not reproduced: patterns are then off by some thousandths."""


def round_queries(q: F32, keys: CacheType, rotation: int = 0) -> F32:
    """Queries as llama.cpp's CPU backend multiplies them with keys of a type, which may be rotated."""
    return through_cache(_MULTIPLIED_IN.get(keys, "q8_0"), q, rotation)


@dataclass(frozen=True, slots=True)
class LayerReading:
    """Attention of one layer on one prompt. Queries and keys are rotated where the cache is: scores are the same.

    Attributes:
        attention: how the layer reads the cache.
        q: [pos, head, d_key] rounded as llama.cpp rounds it.
        k: [pos, kv_head, d_key] of the cache.
        v: [pos, kv_head, d_value] of the cache; latents where only these are cached.
        mask: [pos, pos] added to scores.
        rotation: of keys and values.
    """

    attention: Attention
    q: F32
    k: F32
    v: F32
    mask: F32
    rotation: Rotation

    @property
    def keys(self) -> F32:
        """Keys as they were before they were rotated."""
        return rotate(self.k, self.rotation.k)

    @property
    def values(self) -> F32:
        """Values, likewise."""
        return rotate(self.v, self.rotation.v)

    @property
    def unrotated_q(self) -> F32:
        """Queries, likewise."""
        return rotate(self.q, self.rotation.k)

    def pattern(self) -> F32:
        """[head, pos, key] attention.

        Raises:
            NoData: scores pass through more than scale, mask and softmax.
        """
        require_plain(self.attention)
        return attention_pattern(self.q, self.k, self.attention.scale, self.mask)


def require_plain(attention: Attention) -> None:
    """Check that scores are scaled and masked, and nothing else.

    Raises:
        NoData: names what else happens.
    """
    if attention.more:
        raise NoData(
            f"Attention of this architecture has {', '.join(attention.more)} between the scores and the pattern, which"
            " are not computed here."
        )


class CacheReader(contextlib.AbstractContextManager["CacheReader"]):
    """A context that decodes prompts and returns what each layer's attention reads.

    Args:
        model: the loaded model.
        layout: its cache.
        settings: how to run it; the context is made as long as the prompts need.
        longest: tokens of the longest prompt.
    """

    def __init__(self, model: Model, layout: CacheLayout, settings: SessionSettings, longest: int) -> None:
        from gguf_harness.engine.cache_taps import CacheTaps
        from gguf_harness.engine.context import Context

        self._layout = layout
        self._settings = replace(settings, n_ctx=longest, n_batch=longest, n_ubatch=longest)
        self._seen: dict[int, tuple[Attention, F32, F32]] = {}
        taps = CacheTaps(layout.architecture, layout.n_layer, query=self._take)
        self._context = Context(model, self._settings, taps)
        self._rounds = not model.offloads

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def _take(self, attention: Attention, q: F32, mask: F32) -> None:
        self._seen[attention.layer] = attention, q, mask

    def read(self, tokens: Tokens) -> dict[int, LayerReading]:
        """Decode a prompt; by layer.

        Raises:
            EngineError: the cache does not hold the prompt's tokens in their order, or a layer did not read it.
        """
        from gguf_harness.engine.cache_state import read_cache

        self._seen.clear()
        self._context.prefill(tokens)
        cached = read_cache(self._context, self._layout)
        return {layer.layer: self._layer(layer, cached, len(tokens)) for layer in self._layout.layers}

    def logits(self, tokens: Tokens) -> F32:
        """[pos, vocabulary] logits of a prompt."""
        return self._context.logits(tokens)

    def _layer(self, layer: CacheLayer, cached: dict[str, dict[int, CachedRows]], n: int) -> LayerReading:
        number = layer.layer
        if number not in self._seen:
            raise EngineError(f"Layer {number} of {self._layout.architecture} did not read its cache in this decode.")
        attention, q, mask = self._seen[number]
        rows = cached["k"][number]
        if not np.array_equal(rows.positions, np.arange(n)):
            raise EngineError(f"The cache of layer {number} does not hold the {n} tokens of the prompt in their order.")
        k = rows.values()
        v = cached["v"][number].values() if layer.d_value else k[..., : self._layout.d_value]
        kind: CacheType = self._settings.cache_type_k
        if kind == "f32" and attention.flash:
            kind, k = "f16", through_cache("f16", k)
        if self._rounds:
            q = round_queries(q, kind)
        rotated = rotation(self._layout, self._settings, layer)
        return LayerReading(attention, q, k, v, mask[:, :n], rotated)
