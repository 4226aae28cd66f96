"""Names of taps, i.e. tensors inside a model, and their names in llama.cpp's graphs.

This is the only table; differences by architecture are in tables next to it.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from gguf_harness.errors import TapNotFound

__all__ = [
    "ENCODER_PREFIX",
    "NEEDS_FLASH_ATTENTION_OFF",
    "TAPS",
    "GraphNode",
    "TapInfo",
    "expand_taps",
    "generic_tap",
    "graph_nodes",
]


@dataclass(frozen=True, slots=True)
class TapInfo:
    """A tensor that can be read or patched during a decode.

    Attributes:
        graph: llama.cpp's name for it in its graph, without the layer.
        shape: numpy's order, as it is read; pos is the token in the batch, key the position attended to (padded by
            llama.cpp to a multiple of 256: cells without a token have a pattern of 0). With a KV cache split by
            sequence, scores and pattern start with [stream, ...].
        meaning: one sentence.
        operation: if llama.cpp uses a name several times, the operation of the intended node.
        operations: possible operations if `operation` is not set; empty for any.
    """

    graph: str
    shape: str
    meaning: str
    operation: str | None = None
    operations: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GraphNode:
    """How to recognize a tap in llama.cpp's graph.

    Attributes:
        name: llama.cpp's name; in tables with {i} for the layer.
        operations: possible operations of the node; empty for any.
        root: the weight or cache at the end of the chain of first operands, if two nodes cannot be distinguished
            otherwise; empty for any.
    """

    name: str
    operations: frozenset[str]
    root: str = ""


# build_qkv gives the projection, the biased projection and the result the same name. The result is always a reshape of
# them, or a view where Q, K and V come from one matrix.
_QKV = frozenset({"RESHAPE", "VIEW"})
# Without and with flash attention. Some graphs give the output projection the same name.
_MIXED = frozenset({"CONT", "RESHAPE"})

TAPS: dict[str, TapInfo] = {
    "embed": TapInfo("embd", "[pos, d_model]", "Token embeddings, scaled where the model scales them."),
    "blocks.{i}.attn.q": TapInfo("Qcur", "[pos, head, d_head]", "Queries, after rope.", "ROPE", _QKV),
    "blocks.{i}.attn.k": TapInfo("Kcur", "[pos, kv_head, d_head]", "Keys, after rope.", "ROPE", _QKV),
    "blocks.{i}.attn.v": TapInfo("Vcur", "[pos, kv_head, d_head]", "Values.", operations=_QKV),
    "blocks.{i}.attn.scores": TapInfo(
        "kq", "[head, pos, key]", "Raw q k^T: not masked, and scaled only where the graph scales q first (Gemma, Phi)."
    ),
    "blocks.{i}.attn.pattern": TapInfo("kq_soft_max", "[head, pos, key]", "Attention weights: rows sum to one."),
    "blocks.{i}.attn.z": TapInfo(
        "kqv_out", "[pos, head * d_head]", "Mixed values, before the output projection.", operations=_MIXED
    ),
    "blocks.{i}.attn_out": TapInfo(
        "attn_out",
        "[pos, d_model]",
        "Update of the residual stream by attention, or by the other token mixer of a layer.",
    ),
    "blocks.{i}.resid_mid": TapInfo("ffn_inp", "[pos, d_model]", "Residual stream between attention and MLP."),
    "blocks.{i}.mlp_out": TapInfo("ffn_out", "[pos, d_model]", "Update of the residual stream by the MLP."),
    "blocks.{i}.resid_post": TapInfo("l_out", "[pos, d_model]", "Residual stream after the block."),
    "ln_final.normalized": TapInfo("result_norm", "[pos, d_model]", "After the final norm."),
    "logits": TapInfo("result_output", "[pos, vocabulary]", "Logits."),
}
"""Tap names follow TransformerLens. Graph names are those of llama.cpp's graph builders (src/models).

The prefix `encoder.` means the encoder's tensor, available while a context encodes; the others are available while it
decodes. An encoder has no logits, its pattern no padding, and its last block keeps all tokens.

From the last block's `resid_mid` on (its `attn_out` too where a norm follows attention), llama.cpp keeps only the
tokens whose logits were requested: pos counts these, and a batch may have none.
"""

ENCODER_PREFIX = "encoder."

NEEDS_FLASH_ATTENTION_OFF = frozenset({"blocks.{i}.attn.scores", "blocks.{i}.attn.pattern"})
"""Flash attention never computes these tensors."""

_WITHOUT_ROPE = frozenset({
    "bert", "bloom", "gpt2", "jais", "jamba", "jina-bert-v2", "mpt", "nemotron_h", "nemotron_h_moe", "refact",
    "starcoder",
})  # fmt: skip

_Q, _K, _V, _SCORES, _PATTERN, _Z = (f"blocks.{{i}}.attn.{name}" for name in ("q", "k", "v", "scores", "pattern", "z"))
_ATTN, _MID, _MLP, _POST = (f"blocks.{{i}}.{name}" for name in ("attn_out", "resid_mid", "mlp_out", "resid_post"))
_OTHERWISE: dict[str, dict[str, str | None]] = {
    "bailingmoe2": {_MID: "sa_out"},
    "exaone4": {_ATTN: "attn_post_norm", _MLP: None},
    "gemma": {"embed": "inp_scaled", _MID: "sa_out"},
    "gemma-embedding": {"embed": "inp_scaled", _ATTN: "attn_post_norm", _MID: "sa_out", _MLP: None},
    "gemma2": {"embed": "inp_scaled", _ATTN: "attn_post_norm", _MID: "sa_out", _MLP: None},
    "gemma3": {"embed": "inp_scaled", _ATTN: "attn_post_norm", _MID: "sa_out", _MLP: "ffn_post_norm"},
    "gemma4": {
        "embed": "inp_scaled", _Q: "Qcur_pos", _K: "Kcur_pos", _V: "Vcur_normed",
        _ATTN: "attn_post_norm", _MID: "attn_out", _MLP: "ffn_post_norm",
    },
    # Its `ffn_inp` is the mixer's output before it is added to the stream.
    "jamba": {_ATTN: "ffn_inp", _MID: None},
    "minicpm3": {"embed": "inp_scaled"},
    "olmo2": {_ATTN: "attn_post_norm", _MLP: None},
}  # fmt: skip
"""Graph names that differ by architecture; None if llama.cpp does not name the tensor by layer.

Models with a norm after attention or MLP: the update of the residual stream is the output of that norm, while `ffn_out`
would be its input.
"""

_EXPERTS_OUT = frozenset({
    "dbrx", "jamba", "llada-moe", "llama", "maple", "mellum", "mimo2", "minimax-m2", "mistral3", "olmoe", "gpt-oss",
    "phi3", "phimoe", "qwen3moe", "qwen3vlmoe", "rnd1",
})  # fmt: skip
"""Architectures whose layers with experts have `ffn_moe_out` where the others have `ffn_out`. Elsewhere `ffn_moe_out`
comes besides `ffn_out`: without the experts that every token passes."""

_ROPE_SKIPS = {"smollm3": 4}
"""Architectures without rope in every n-th layer."""


def _t5(stack: str, reshaped: str = "") -> dict[str, tuple[GraphNode, ...]]:
    """Differences common to T5's encoder and decoder. `l_out` of the last block is renamed to `result_embd`."""

    def node(name: str, operation: str, weight: str) -> GraphNode:
        return GraphNode(name, frozenset({operation}), f"{stack}.blk.{{i}}.{weight}.weight")

    return {
        _Q: (node(f"Qcur-{{i}}{reshaped}", "RESHAPE", "attn_q"),),
        _K: (node(f"Kcur-{{i}}{reshaped}", "RESHAPE", "attn_k"),),
        _V: (node(f"Vcur-{{i}}{reshaped}", "RESHAPE", "attn_v"),),
        _ATTN: (node("kqv_out-{i}", "MUL_MAT", "attn_o"),),
        _MLP: (node("ffn_out-{i}", "MUL_MAT", "ffn_down"),),
        _POST: (node("l_out-{i}", "ADD", "ffn_down"), node("result_embd", "ADD", "ffn_down")),
    }


_T5_ENCODER = _t5("enc", " (reshaped)")
# Cross-attention has the same names: only self-attention reads the cache. Its resid_mid, as TransformerLens has it, is
# what cross-attention reads and adds to, before the MLP does; the last block has all tokens in it.
_T5_DECODER = _t5("dec") | {
    _SCORES: (GraphNode("kq-{i}", frozenset({"MUL_MAT"}), "cache_k_l{i}"),),
    _PATTERN: (GraphNode("kq_soft_max-{i}", frozenset({"SOFT_MAX"}), "cache_k_l{i}"),),
    _Z: (GraphNode("kqv_out-{i}", frozenset({"CONT"}), "cache_v_l{i}"),),
    _MID: (GraphNode("cross_inp-{i}", frozenset({"ADD"}), "dec.blk.{i}.attn_o.weight"),),
}
_ENCODERS = {"t5": _T5_ENCODER, "t5encoder": _T5_ENCODER}
"""Architectures with an encoder, and the differences of its graph from `TAPS`."""

_DECODERS = {"t5": _T5_DECODER}
"""Differences of a decoder's graph from `TAPS` beyond names."""

_ENCODER_ONLY = frozenset({"t5encoder"})


def graph_nodes(tap: str, architecture: str, n_layer: int) -> tuple[GraphNode, ...]:
    """Candidate nodes of a tap in llama.cpp's graph; each layer has one of them.

    Args:
        tap: such as `blocks.3.attn.pattern`.
        architecture: `general.architecture` of the model.
        n_layer: number of layers.

    Raises:
        TapNotFound: unknown tap, a layer or encoder that the model does not have, or a tensor that llama.cpp does not
            name.
    """
    encoder, generic, layer = _split(tap)
    _check_known(tap, n_layer)
    if encoder and (architecture not in _ENCODERS or generic == "logits"):
        reason = "an encoder has no logits" if architecture in _ENCODERS else f"{architecture} has no encoder"
        way_out = f"Read {tap.removeprefix(ENCODER_PREFIX)!r}, which is available while a context decodes."
        raise TapNotFound(f"{tap!r}: {reason}.", way_out)
    if not encoder and architecture in _ENCODER_ONLY:
        raise TapNotFound(f"{tap!r}: {architecture} has no decoder.", f"Its taps begin with {ENCODER_PREFIX!r}.")
    nodes = (_ENCODERS if encoder else _DECODERS).get(architecture, {}).get(generic) or _usual_nodes(tap, architecture)

    def of_layer(text: str) -> str:
        return text.replace("{i}", str(layer))

    return tuple(GraphNode(of_layer(node.name), node.operations, of_layer(node.root)) for node in nodes)


def _check_known(tap: str, n_layer: int) -> None:
    encoder, generic, layer = _split(tap)
    if generic not in TAPS:
        prefix = ENCODER_PREFIX if encoder else ""
        names = [name.replace("{i}", "0") for name in TAPS]
        close = difflib.get_close_matches(tap.removeprefix(prefix), names, n=1)
        hint = f"Did you mean {prefix + close[0]!r}? " if close else ""
        raise TapNotFound(f"Unknown tap {tap!r}.", f"{hint}Known taps: {', '.join(TAPS)}.")
    if layer is not None and layer >= n_layer:
        raise TapNotFound(f"{tap!r}: the model has {n_layer} layers.", f"Layers are 0 to {n_layer - 1}.")


def _usual_nodes(tap: str, architecture: str) -> tuple[GraphNode, ...]:
    _, generic, layer = _split(tap)
    info = TAPS[generic]
    graph = _OTHERWISE.get(architecture, {}).get(generic, info.graph)
    if graph is None:
        raise TapNotFound(
            f"{tap!r}: llama.cpp does not name this tensor in models of the architecture {architecture}.",
            "The residual stream before and after it (resid_mid, resid_post) can be read: it is their difference.",
        )
    skips = _ROPE_SKIPS.get(architecture)
    without_rope = architecture in _WITHOUT_ROPE or (skips and layer is not None and (layer + 1) % skips == 0)
    if info.operation is not None and not without_rope:
        operations = frozenset({info.operation})
    else:
        operations = info.operations if graph == info.graph else frozenset()
    suffix = "" if layer is None else "-{i}"
    nodes = [GraphNode(graph + suffix, operations)]
    if generic == _MLP and architecture in _EXPERTS_OUT:
        nodes.append(GraphNode("ffn_moe_out-{i}", frozenset()))
    return tuple(nodes)


def expand_taps(patterns: Iterable[str], n_layer: int) -> tuple[str, ...]:
    """Tap names from names and shell patterns: `blocks.*.attn.pattern`, `blocks.[0-3].attn.z`, `logits`.

    Args:
        patterns: `*`, `?` and `[...]` as in a shell; `*` also matches dots, but not the encoder's taps; use `encoder.*`
            for these.
        n_layer: number of layers.

    Returns:
        Each name once, in the order of the patterns and then of the layers.

    Raises:
        TapNotFound: a pattern that matches nothing.
    """
    layered = [name for name in TAPS if "{i}" in name]
    names = [name.replace("{i}", str(layer)) for layer in range(n_layer) for name in layered]
    names = ["embed", *names, *(name for name in TAPS if "{i}" not in name and name != "embed")]
    taps: dict[str, None] = {}
    for pattern in patterns:
        prefix = ENCODER_PREFIX if pattern.startswith(ENCODER_PREFIX) else ""
        plain = pattern.removeprefix(prefix)
        matches = [
            prefix + name for name in names if fnmatch.fnmatchcase(name, plain) and not (prefix and name == "logits")
        ]
        if not matches:
            # A plain name gets its own message: an invalid layer, or a spelling mistake.
            _check_known(pattern, n_layer)
            raise TapNotFound(f"No tap matches {pattern!r}.", f"Known taps: {', '.join(TAPS)}.")
        taps.update(dict.fromkeys(matches))
    return tuple(taps)


def generic_tap(tap: str) -> str:
    """The name in `TAPS` of a tap of some layer: `blocks.{i}.attn.z` of `encoder.blocks.3.attn.z`."""
    return _split(tap)[1]


def _split(tap: str) -> tuple[bool, str, int | None]:
    """Whether a tap is the encoder's, its name in `TAPS`, and its layer."""
    plain = tap.removeprefix(ENCODER_PREFIX)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", plain)
    generic, layer = (f"blocks.{{i}}.{match[2]}", int(match[1])) if match else (plain, None)
    return plain != tap, generic, layer
