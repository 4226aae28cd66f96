"""Keys and values that llama.cpp caches for a model, and their size in bytes, from the file's header alone.

Source: `llama_kv_cache`, `llama_kv_cache_iswa` and `llama_model::create_memory` of the llama.cpp that the supported
llama-cpp-python contains (src/llama-kv-cache.cpp, src/llama-kv-cache-iswa.cpp, src/llama-model.cpp, src/models).
Some facts are in no header, only in llama.cpp's loaders: they are tables here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import NoData
from gguf_harness.gguf.header import TENSOR_TYPES

if TYPE_CHECKING:
    from gguf_harness.gguf.metadata import Metadata

__all__ = ["CacheLayer", "CacheLayout", "CacheShape", "read_cache_layout", "row_bytes"]

CELLS: Final = 256
"""llama.cpp makes the cells of a cache a multiple of this."""
_MOST_LAYERS: Final = 10_000
_BY_NAME: Final = {kind.name.lower(): kind for kind in TENSOR_TYPES.values()}


def row_bytes(cache_type: str, values: int) -> int:
    """Bytes of a row of values in a type: whole blocks, q8_0 with 34 bytes for 32 values.

    Args:
        cache_type: as llama.cpp's options name it: `f16`, `q4_0`.
        values: a multiple of the type's block.
    """
    kind = _BY_NAME[cache_type]
    if values % kind.block:
        raise ValueError(f"A row of {values} values is not whole blocks of {kind.block} ({cache_type})")
    return values // kind.block * kind.block_bytes


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What a layer keeps of each token.

    Attributes:
        layer: number in the model.
        heads: heads of keys and values.
        d_key: values of a head's key.
        d_value: values of a head's value; 0 where only keys are kept (MLA).
        sliding: whether it attends to a sliding window, and keeps no more than that.
    """

    layer: int
    heads: int
    d_key: int
    d_value: int
    sliding: bool = False

    @property
    def key_values(self) -> int:
        """Values of a token's key, all heads together."""
        return self.heads * self.d_key

    @property
    def value_values(self) -> int:
        """Values of a token's value, likewise."""
        return self.heads * self.d_value


@dataclass(frozen=True, slots=True)
class CacheShape:
    """How a context is run, as far as the size of its cache depends on it.

    Attributes:
        n_ctx: tokens of a sequence.
        n_seq: sequences, each with cells of its own.
        n_ubatch: physical batch: sliding windows need room for one.
        k: type of keys.
        v: type of values.
        transposed: whether values are stored transposed, as they are without flash attention: then every layer has
            room for the longest value of any.
        full_windows: whether layers with a sliding window keep everything nevertheless, as in contexts of this package,
            which llama.cpp lets continue from any token; llama-server and llama-cli keep the window.
    """

    n_ctx: int
    n_seq: int = 1
    n_ubatch: int = 512
    k: str = "f16"
    v: str = "f16"
    transposed: bool = False
    full_windows: bool = True

    @property
    def cells(self) -> int:
        """Cells of a sequence in layers that keep everything."""
        return _padded(_padded(self.n_ctx * self.n_seq) // self.n_seq)

    def sliding_cells(self, window: int) -> int:
        """Cells of a sequence in layers with a sliding window."""
        if self.full_windows:
            return self.cells
        return _padded(min(self.cells, window + min(self.n_ubatch, self.cells * self.n_seq)))


def _padded(cells: int) -> int:
    return -(-cells // CELLS) * CELLS


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Keys and values that llama.cpp caches for a model.

    Attributes:
        architecture: `general.architecture`.
        layers: those with keys and values of their own. Others are recurrent, or use an earlier layer's.
        n_layer: number of layers of the model, without those for drafts.
        d_key: size of a key that llama.cpp checks and rotates by: of the first layer, whether cached or not.
        d_value: likewise of a value.
        window: tokens of the sliding window; 0 without.
        mla: whether latents are kept in place of keys and values (multi-head latent attention, DeepSeek-V2,
            arXiv:2405.04434): there is no V cache.
    """

    architecture: str
    layers: tuple[CacheLayer, ...]
    n_layer: int
    d_key: int
    d_value: int
    window: int = 0
    mla: bool = False

    @property
    def sliding(self) -> tuple[CacheLayer, ...]:
        """Layers that keep a sliding window."""
        return tuple(layer for layer in self.layers if layer.sliding)

    def token_bytes(self, k: str, v: str, *, sliding: bool | None = None) -> int:
        """Bytes of one token's keys and values.

        Args:
            k: type of keys.
            v: type of values.
            sliding: only layers with a sliding window, or only those without; None for all.
        """
        return sum(
            row_bytes(k, layer.key_values) + row_bytes(v, layer.value_values)
            for layer in self.layers
            if sliding is None or layer.sliding == sliding
        )

    def total_bytes(self, shape: CacheShape) -> int:
        """Bytes of llama.cpp's buffers for keys and values."""
        longest = max((layer.value_values for layer in self.layers), default=0)
        total = 0
        for layer in self.layers:
            cells = shape.sliding_cells(self.window) if layer.sliding else shape.cells
            value = longest if shape.transposed and layer.d_value else layer.value_values
            total += cells * shape.n_seq * (row_bytes(shape.k, layer.key_values) + row_bytes(shape.v, value))
        return total

    def bytes_per_token(self, shape: CacheShape) -> float:
        """Bytes that one more token of context costs: the growth of a sequence's cache by 256 cells, over 256.

        Layers with a sliding window cost nothing once the window and a batch have room.
        """
        one = replace(shape, n_seq=1)
        more = replace(one, n_ctx=shape.n_ctx + CELLS)
        return (self.total_bytes(more) - self.total_bytes(one)) / CELLS

    def facts(self) -> list[str]:
        """Sentences on what is unusual about this cache: MLA, sliding windows, layers without keys and values."""
        facts = []
        if self.mla:
            facts.append("Only latents are cached in place of keys and values (MLA): there is no V cache, and the type"
                         " of V has to be that of K.")  # fmt: skip
        if sliding := self.sliding:
            facts.append(f"{len(sliding)} of {len(self.layers)} layers with a cache keep a sliding window of"
                         f" {self.window} tokens.")  # fmt: skip
        if without := self.n_layer - len(self.layers):
            facts.append(f"{without} of {self.n_layer} layers have no keys and values of their own.")
        return facts


# -- reading ----------------------------------------------------------------------------------------------------------

_NO_CACHE: Final = frozenset({
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "wavtokenizer-dec", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1", "t5encoder", "clip",
    "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7",
})  # fmt: skip
_OTHER_CACHES: Final = frozenset({
    "deepseek32", "deepseek4", "glm-dsa", "glm5-next", "hy_v4", "dots3note", "minimax-m3", "qwen4exp", "dflash",
    "eagle3", "gemma4-assistant", "nanbeige", "hrm_text", "graniteswitch", "pockettts",
})  # fmt: skip
"""Architectures with further caches (of indexers, of compressed states), or that run layers several times."""

_MLA: Final = frozenset({"deepseek2", "mistral4", "kimi-linear", "kimi-k3", "bailingmoe3"})
_RECURRENT_WITHOUT_KV_HEADS: Final = frozenset({
    "jamba", "granitehybrid", "plamo2", "lfm2", "lfm2moe", "kimi-linear", "kimi-k3", "bailingmoe3", "nemotron_h",
    "nemotron_h_moe",
})  # fmt: skip
_FULL_EVERY: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""Hybrids in which each n-th layer has attention, unless the file says otherwise."""
_WITHOUT_KV_FROM: Final = {"gemma3n": 20}
"""Architectures whose layers from this one on use the keys and values of earlier ones."""


@dataclass(frozen=True, slots=True)
class _Windows:
    """Sliding windows of an architecture.

    Attributes:
        period: each n-th layer sees everything, unless the file says otherwise; 0 for all layers with a window.
        full_first: whether that is the first of each period, rather than the last.
        window: what the loader sets, unless the file says otherwise.
        fixed: whether the loader keeps its own even then.
        listed: whether only the file says which layers.
        optional: whether a file without the key has no windows.
    """

    period: int = 0
    full_first: bool = False
    window: int | None = None
    fixed: bool = False
    listed: bool = False
    optional: bool = False


_SLIDING: Final[dict[str, _Windows]] = {
    "afmoe": _Windows(4, optional=True),
    "cohere2": _Windows(4),
    "cohere2moe": _Windows(4, full_first=True),
    "exaone-moe": _Windows(4, window=128),
    "exaone4": _Windows(4, window=4096),
    "gemma2": _Windows(2, window=4096),
    "gemma3": _Windows(6, optional=True),
    "gemma3n": _Windows(5),
    "gemma4": _Windows(listed=True),
    "gpt-oss": _Windows(2),
    "granite_swa": _Windows(listed=True),
    "laguna": _Windows(4, full_first=True, optional=True),
    "lfm2": _Windows(optional=True),
    "llama4": _Windows(4, window=8192, fixed=True),
    "maple": _Windows(listed=True),
    "mellum": _Windows(4, optional=True),
    "mimo2": _Windows(listed=True),
    "muse-glimmer": _Windows(4),
    "olmo2": _Windows(4, optional=True),
    "plamo3": _Windows(8, optional=True),
    "smallthinker": _Windows(4, full_first=True, window=4096, fixed=True, optional=True),
    "spark2_5": _Windows(listed=True),
    "step35": _Windows(listed=True),
}
"""Architectures in which llama.cpp has sliding windows; it ignores the key elsewhere (phi3)."""
_EXAONE4_LAYERS: Final = 64
"""Of the EXAONE 4 models only the one with 64 layers has sliding windows."""


def read_cache_layout(metadata: Metadata) -> CacheLayout:
    """The cache of a model, from the metadata of its (first) file.

    Raises:
        NoData: the architecture has no such cache, or one of another kind.
        InvalidGGUF: a key has a wrong type.
    """
    architecture = metadata.name("general.architecture") or "none"
    if architecture in _NO_CACHE:
        raise NoData(f"Models of the architecture {architecture} have no cache of keys and values.")
    if architecture in _OTHER_CACHES:
        raise NoData(
            f"Models of the architecture {architecture} have caches of another kind besides keys and values, whose size"
            " is not computed here."
        )
    return _Reader(metadata, architecture).layout()


class _Reader:
    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self._metadata, self._name = metadata, architecture
        self._all = self._number("block_count", most=_MOST_LAYERS) or 0
        self._trunk = self._all - min(self._number("nextn_predict_layers", most=_MOST_LAYERS) or 0, self._all)
        self._heads = self._by_layer("attention.head_count") or (0,) * self._all
        self._kv_heads = self._by_layer("attention.head_count_kv") or self._heads

    def layout(self) -> CacheLayout:
        d_model, first = self._number("embedding_length") or 0, self._heads[0] if self._heads else 0
        derived = d_model // first if first else 0
        d_key, d_value = (
            (self._number(f"attention.{name}_length") or derived) if first else 0 for name in ("key", "value")
        )
        mla = self._name in _MLA and all(self._number(f"attention.{name}_length_mla") for name in ("key", "value"))
        window, sliding = self._windows()
        of_window = [
            self._number(f"attention.{name}_length_swa") or size for name, size in (("key", d_key), ("value", d_value))
        ]
        layers = []
        for layer in self._with_cache():
            key, value = of_window if sliding[layer] else (d_key, d_value)
            heads = self._kv_heads[layer]
            layers.append(CacheLayer(layer, heads, key, 0 if mla else value, sliding[layer]))
        if not layers or not all(layer.heads and layer.d_key for layer in layers):
            raise NoData(f"The header of this {self._name} model does not say how many keys and values it caches.")
        first_key, first_value = of_window if sliding[0] else (d_key, d_value)
        return CacheLayout(self._name, tuple(layers), self._trunk, first_key, first_value, window, mla)

    def _with_cache(self) -> list[int]:
        layers = range(self._trunk)
        if self._name in _FULL_EVERY:
            every = self._number("full_attention_interval") or _FULL_EVERY[self._name]
            listed = self._flags("attention.recurrent_layers")
            return [i for i in layers if not (listed[i] if listed else (i + 1) % every)]
        if self._name in _RECURRENT_WITHOUT_KV_HEADS:
            forward = self._by_layer("feed_forward_length") or (0,) * self._all
            mixes = [not forward[i] if self._name.startswith("nemotron_h") else True for i in layers]
            return [i for i in layers if self._kv_heads[i] and mixes[i]]
        shared = self._number("attention.shared_kv_layers") or 0
        until = _WITHOUT_KV_FROM.get(self._name, self._all - shared if self._name == "gemma4" else self._all)
        # Layers without attention, of models that mix both kinds freely, have an empty row.
        return [i for i in layers if i < until and self._kv_heads[i]]

    def _windows(self) -> tuple[int, Sequence[bool]]:
        """(tokens of the window, whether each layer has it)."""
        nowhere = (False,) * self._all
        rule, told = _SLIDING.get(self._name), self._number("attention.sliding_window")
        if rule is None or (rule.optional and not told) or (self._name == "llama4" and told == 0):
            return 0, nowhere
        if self._name == "exaone4" and self._trunk != _EXAONE4_LAYERS:
            return 0, nowhere
        window = rule.window if rule.fixed or told is None else told
        if window is None:
            raise NoData(f"The header of this {self._name} model does not name its sliding window.")
        listed = self._flags("attention.sliding_window_pattern")
        if listed is not None:
            return window, listed
        if rule.listed:
            raise NoData(f"The header of this {self._name} model does not say which layers have a sliding window.")
        period = self._number("attention.sliding_window_pattern") or rule.period
        place = 0 if rule.full_first else period - 1
        return window, [i < self._trunk and (not period or i % period != place) for i in range(self._all)]

    def _number(self, key: str, most: int = 2**31 - 1) -> int | None:
        if isinstance(self._metadata.get(f"{self._name}.{key}"), tuple):
            return None
        return self._metadata.integer(f"{self._name}.{key}", most=most)

    def _by_layer(self, key: str) -> tuple[int, ...] | None:
        return self._metadata.by_layer(f"{self._name}.{key}", self._all)

    def _flags(self, key: str) -> tuple[bool, ...] | None:
        """A flag for each layer; None where the file has no list."""
        value = self._metadata.get(f"{self._name}.{key}")
        if not isinstance(value, tuple):
            return None
        if len(value) < self._all:
            self._metadata.refuse(f"{self._name}.{key}", f"one for each of {self._all} layers")
        return tuple(map(bool, value[: self._all]))
