"""Attention in float64 numpy, as the architectures of `small_models.ARCHITECTURES` are published.

Independent of llama.cpp: only weights and hyperparameters come from the GGUF file, no tensor of a graph.

Sources, beside each model's configuration and modelling code in Hugging Face's transformers:
    attention: Vaswani et al. 2017, arXiv:1706.03762; keys shared by groups of queries: arXiv:2305.13245
    rope: Su et al. 2021, arXiv:2104.09864; ALiBi: Press et al. 2022, arXiv:2108.12409
    LayerNorm: Ba et al. 2016, arXiv:1607.06450; RMSNorm: Zhang & Sennrich 2019, arXiv:1910.07467
    bloom: arXiv:2211.05100. gemma2: arXiv:2408.00118. gemma3: arXiv:2503.19786. gpt2: Radford et al. 2019.
    mixtral: arXiv:2401.04088. phi3: arXiv:2404.14219, rope on a part of each head arXiv:2503.01743.
    qwen2: arXiv:2407.10671. qwen3, qwen3moe: arXiv:2505.09388. smollm3: layers without rope arXiv:2501.18795.

What GGUF keeps in another way than the published weights:
    Gemma's norms multiply by 1 + weight: the file has the sum.
    Rope turns entry i of a head with entry i + dims / 2 ("halves"). Llama's conversion (mixtral, smollm3) reorders the
    rows of Q and K so that both stand side by side ("pairs").
    Joint projections have all rows of Q, then K, then V, also where a model interleaves them (bloom).

What GGUF does not keep: Gemma's query_pre_attn_scalar, which is the size of a head in all sizes but 27B. There it is
d_model / heads, and the number of layers tells that it is there.

Not covered: the factors by which long-context variants of Phi-3 and Llama 3 stretch single frequencies; ALiBi with a
number of heads that is no power of two.

Where llama.cpp departs from the publication: it ignores the sliding window of phi3, and so does `Model.definition`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from tests.integration.small_models import architecture_of

__all__ = ["Attention", "Definition", "Model", "Rope", "Rounded", "Style"]

Array = NDArray[np.float64]

_LAYER_NORM = frozenset({"bloom", "gpt2"})
_QK_NORM = frozenset({"gemma3", "qwen3", "qwen3moe"})
_GEMMA = frozenset({"gemma2", "gemma3"})
_WITHOUT_ROPE = frozenset({"bloom", "gpt2"})
_PAIRS = frozenset({"llama", "mixtral", "smollm3"})
_GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6}
"""The last of every n layers sees all keys, the others those in the sliding window."""
_GEMMA3_LOCAL_BASE = 10000.0
_ROPE_BASE = 10000.0
"""Where a file says nothing."""
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
_NO_ROPE_EVERY = {"smollm3": 4}


Rounded = Callable[[Array, Array, Array], tuple[Array, Array, Array]]
"""From q [pos, head, d_head], k and v [pos, kv_head, d_head]; the same shapes."""

Norm = Literal["layer", "rms"]
Style = Literal["pairs", "halves"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: the angle of frequency i at position p is p / factor * base ** (-2 i / dims).

    Attributes:
        style: which two entries of a head turn together: "pairs" 2 i and 2 i + 1, "halves" i and i + dims / 2.
        dims: entries of each head that turn; those after them stay.
        base: of the frequencies.
        factor: by which positions are compressed.
    """

    style: Style
    dims: int
    base: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Definition:
    """Attention of one layer, without its weights.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        d_head: entries of a head.
        norm: before the projections; with a bias if "layer".
        eps: added to the variance in every norm of the layer.
        qk_norm: RMSNorm of each head of Q and K, before rope.
        rope: None for none.
        scale: of the products of queries and keys.
        alibi: a bias of -slope * distance on the scaled scores.
        soft_cap: scaled scores s become cap * tanh(s / cap).
        window: keys that a query sees, its own included; None for all.
        post_norm: RMSNorm of the projected output, before it is added to the residual stream.
    """

    heads: int
    kv_heads: int
    d_head: int
    norm: Norm
    eps: float
    qk_norm: bool
    rope: Rope | None
    scale: float
    alibi: bool
    soft_cap: float | None
    window: int | None
    post_norm: bool


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention of one layer computes.

    Attributes:
        q: [pos, head, d_head] queries after rope, not scaled.
        k: [pos, kv_head, d_head] keys after rope.
        v: [pos, kv_head, d_head] values.
        scores: [head, pos, key] products of q and k, neither scaled nor masked.
        pattern: [head, pos, key] attention weights.
        z: [pos, head * d_head] mixed values.
        attn_out: [pos, d_model] what is added to the residual stream.
    """

    q: Array
    k: Array
    v: Array
    scores: Array
    pattern: Array
    z: Array
    attn_out: Array


class Model:
    """A GGUF file; quantized weights are dequantized.

    Args:
        file: the GGUF file.
        kind: one of `small_models.ARCHITECTURES`, or `llama`.
        layers: read the first layers only; None for all.
    """

    def __init__(self, file: Path, kind: str, layers: int | None = None) -> None:
        reader = GGUFReader(file)
        self.kind = kind
        self._weights: dict[str, Array] = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
            if layers is None or not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < layers
        }
        prefix = f"{architecture_of(kind)}."
        fields = reader.fields.items()
        self._numbers = {name.removeprefix(prefix): f.contents() for name, f in fields if name.startswith(prefix)}

    def embeddings(self, tokens: NDArray[np.int32]) -> Array:
        """[pos, d_model] rows of the embedding matrix. Gemma's are scaled by sqrt(d_model)."""
        rows = self._weights["token_embd.weight"][tokens]
        return rows * np.sqrt(rows.shape[1]) if self.kind in _GEMMA else rows

    def first_residual(self, embeddings: Array) -> Array:
        """[pos, d_model] input of layer 0, from `embeddings`: GPT-2 adds positions, BLOOM norms."""
        if self.kind == "gpt2":
            return embeddings + self._weights["position_embd.weight"][: len(embeddings)]
        if self.kind == "bloom":
            return self._norm("token_embd_norm", embeddings, "layer", self._numbers["attention.layer_norm_epsilon"])
        return embeddings

    def definition(self, layer: int) -> Definition:
        """What the publication and the hyperparameters in the file say of a layer."""
        numbers, kind = self._numbers, self.kind
        norm: Norm = "layer" if kind in _LAYER_NORM else "rms"
        key = "attention.layer_norm_epsilon" if norm == "layer" else "attention.layer_norm_rms_epsilon"
        return Definition(
            heads=numbers["attention.head_count"],
            kv_heads=numbers["attention.head_count_kv"],
            d_head=self._head(),
            norm=norm,
            eps=numbers[key],
            qk_norm=kind in _QK_NORM,
            rope=self._rope(layer),
            scale=self._query_size() ** -0.5,
            alibi=kind == "bloom",
            soft_cap=numbers["attn_logit_softcapping"] if kind == "gemma2" else None,
            window=numbers["attention.sliding_window"] if self._is_local(layer) else None,
            post_norm=kind in _GEMMA,
        )

    def _query_size(self) -> float:
        if self._numbers["block_count"] == _LAYERS_OF_27B.get(self.kind):
            return float(self._numbers["embedding_length"] / self._numbers["attention.head_count"])
        return float(self._head())

    def _head(self) -> int:
        """Entries of a head: d_model / heads where the file does not say."""
        numbers = self._numbers
        return int(numbers.get("attention.key_length", numbers["embedding_length"] // numbers["attention.head_count"]))

    def _is_local(self, layer: int) -> bool:
        every = _GLOBAL_EVERY.get(self.kind)
        return every is not None and (layer + 1) % every != 0

    def _rope(self, layer: int) -> Rope | None:
        every = _NO_ROPE_EVERY.get(self.kind)
        if self.kind in _WITHOUT_ROPE or (every is not None and (layer + 1) % every == 0):
            return None
        style: Style = "pairs" if self.kind in _PAIRS else "halves"
        dims = self._numbers["rope.dimension_count"]
        if self.kind == "gemma3" and self._is_local(layer):
            return Rope(style, dims, _GEMMA3_LOCAL_BASE)
        base = self._numbers.get("rope.freq_base", _ROPE_BASE)
        return Rope(style, dims, base, self._numbers.get("rope.scaling.factor", 1.0))

    def attend(
        self,
        layer: int,
        residual: Array,
        definition: Definition | None = None,
        off: Collection[int] = (),
        rounded: Rounded | None = None,
    ) -> Attention:
        """Attention of one layer over one sequence.

        Args:
            layer: counted from 0.
            residual: [pos, d_model] input of the layer: `first_residual`, or the residual stream after the one before.
            definition: another than that of the model, to see what a part of it does.
            off: heads whose mixed values are zero.
            rounded: takes q, k and v, after rope, and gives what a cache makes of them.
        """
        what = definition or self.definition(layer)
        block = f"blk.{layer}"
        n = len(residual)
        q, k, v = self._qkv(block, self._norm(f"{block}.attn_norm", residual, what.norm, what.eps), what)
        if what.qk_norm:
            q = self._norm(f"{block}.attn_q_norm", q, "rms", what.eps)
            k = self._norm(f"{block}.attn_k_norm", k, "rms", what.eps)
        if what.rope is not None:
            q, k = _rotate(q, what.rope), _rotate(k, what.rope)
        if rounded is not None:
            q, k, v = rounded(q, k, v)
        groups = what.heads // what.kv_heads
        scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, groups, axis=1))
        pattern = _softmax(_biased_and_masked(scores * what.scale, what))
        mixed = np.einsum("hqk,khd->qhd", pattern, np.repeat(v, groups, axis=1))
        mixed[:, list(off)] = 0
        z = mixed.reshape(n, -1)
        out = self._linear(f"{block}.attn_output", z)
        if what.post_norm:
            out = self._norm(f"{block}.post_attention_norm", out, "rms", what.eps)
        return Attention(q, k, v, scores, pattern, z, out)

    def gated_mlp(self, layer: int, residual: Array) -> Array:
        """[pos, d_model] what the MLP of a llama adds to the stream: SwiGLU of Shazeer (2020), arXiv:2002.05202."""
        block = f"blk.{layer}"
        x = self._norm(f"{block}.ffn_norm", residual, "rms", self._numbers["attention.layer_norm_rms_epsilon"])
        gate = self._linear(f"{block}.ffn_gate", x)
        return self._linear(f"{block}.ffn_down", gate / (1 + np.exp(-gate)) * self._linear(f"{block}.ffn_up", x))

    def final(self, residual: Array) -> Array:
        """[pos, d_model] the last residual stream after the final norm."""
        kind: Norm = "layer" if self.kind in _LAYER_NORM else "rms"
        key = "attention.layer_norm_epsilon" if kind == "layer" else "attention.layer_norm_rms_epsilon"
        return self._norm("output_norm", residual, kind, self._numbers[key])

    def logits(self, residual: Array) -> Array:
        """[pos, vocabulary] of the last residual stream: final norm, unembedding, and Gemma 2's cap."""
        rows = self._weights.get("output.weight", self._weights["token_embd.weight"])
        logits: Array = self.final(residual) @ rows.T
        cap = self._numbers.get("final_logit_softcapping")
        return logits if cap is None else cap * np.tanh(logits / cap)

    @property
    def n_layer(self) -> int:
        """Blocks, as the file says."""
        return int(self._numbers["block_count"])

    def _qkv(self, block: str, x: Array, what: Definition) -> tuple[Array, Array, Array]:
        """[pos, head, d_head] of the joint projection, or of three."""
        if f"{block}.attn_qkv.weight" in self._weights:
            widths = np.array([what.heads, what.kv_heads]) * what.d_head
            parts = np.split(self._linear(f"{block}.attn_qkv", x), np.cumsum(widths), axis=1)
        else:
            parts = [self._linear(f"{block}.attn_{name}", x) for name in "qkv"]
        q, k, v = (part.reshape(len(x), -1, what.d_head) for part in parts)
        return q, k, v

    def _linear(self, name: str, x: Array) -> Array:
        y = x @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: Array, kind: Norm, eps: float) -> Array:
        weight = self._weights[f"{name}.weight"]
        if kind == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        scaled: Array = weight * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        return scaled + self._weights[f"{name}.bias"] if kind == "layer" else scaled


def _rotate(x: Array, rope: Rope) -> Array:
    """Rope of [pos, head, d_head], positions counted from 0: pairs of entries as complex numbers, turned."""
    half = rope.dims // 2
    angles = np.arange(len(x))[:, None] / rope.factor * rope.base ** (-np.arange(half) / half)
    first, second = (
        (slice(0, rope.dims, 2), slice(1, rope.dims, 2))
        if rope.style == "pairs"
        else (slice(0, half), slice(half, rope.dims))
    )
    turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)[:, None, :]
    result = x.copy()
    result[..., first], result[..., second] = turned.real, turned.imag
    return result


def _biased_and_masked(scores: Array, what: Definition) -> Array:
    """[head, pos, key] scaled scores, soft-capped, biased by distance, minus infinity where a query may not look."""
    heads, n, _ = scores.shape
    distance = np.arange(n)[:, None] - np.arange(n)
    if what.soft_cap is not None:
        scores = what.soft_cap * np.tanh(scores / what.soft_cap)
    if what.alibi:
        slopes = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)
        scores = scores - slopes[:, None, None] * distance
    visible = distance >= 0
    if what.window is not None:
        visible &= distance < what.window
    return np.where(visible, scores, -np.inf)


def _softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = weights / weights.sum(axis=-1, keepdims=True)
    return result
