"""What a report needs to show the steps of attention: queries, keys and values of a prompt as they were computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.measure.layers.unembedding import ModelFile

if TYPE_CHECKING:
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.measure.attention.activations import ActivationReader
    from gguf_harness.store.arrays import Arrays

__all__ = ["STEP_TOKENS", "attention_facts", "step_arrays"]

STEP_TOKENS: Final = 48
"""Tokens that a table of steps has room for."""

_LARGEST_HALF: Final = float(np.finfo(np.float16).max)


def step_arrays(
    reader: ActivationReader, prompt: str, kept: NDArray[np.int64], heads: NDArray[np.int64], *, causal: bool
) -> Arrays:
    """Vectors of the first tokens of a prompt, for all layers: which heads changed most is known only after all models.

    Half precision is what llama.cpp multiplies keys and values of an F16 cache in.

    Args:
        reader: of the model's activations.
        prompt: its id.
        kept: [K, 2] layer and head of those to show.
        heads: [H, 2] of all heads.
        causal: whether later keys are masked.

    Returns:
        step_causal, [1]; step_kv, [K, 2] which key head and which value head each of them uses; and by layer
        step_q_3, [pos, its heads in `kept`, d_head], step_k_3 and step_v_3, [pos, kv_head, d_head].
    """
    arrays: Arrays = {"step_causal": np.array([causal])}
    shared = np.zeros_like(kept)
    for layer in dict.fromkeys(kept[:, 0].tolist()):
        count = int((heads[:, 0] == layer).sum())
        here = kept[:, 0] == layer
        q, k, v = (reader.array(f"{prompt}/{layer}/{kind}")[:STEP_TOKENS] for kind in "qkv")
        for column, vectors in enumerate((k, v)):
            # Heads of queries share those of keys one group after the other.
            shared[here, column] = kept[here, 1] // max(1, count // vectors.shape[1])
        for kind, vectors in (("q", q[:, kept[here, 1]]), ("k", k), ("v", v)):
            arrays[f"step_{kind}_{layer}"] = _half(vectors)
    return arrays | {"step_kv": shared}


def attention_facts(file: ModelFile, settings: SessionSettings) -> Arrays:
    """What else a model's attention does, as its file says.

    Returns:
        step_scale, step_softcap and step_window, [1], 0 where the file names none; step_facts, [F] sentences.
    """
    scale, softcap, window, alibi = (
        _number(file, key)
        for key in (
            "attention.scale", "attn_logit_softcapping", "attention.sliding_window", "attention.max_alibi_bias"
        )
    )  # fmt: skip
    facts = []
    if window:
        facts.append(f"Some or all layers have a sliding window of {window:.0f} tokens.")
    if softcap:
        facts.append(f"Scores are soft-capped at {softcap:g}.")
    if alibi or file.architecture == "bloom":
        facts.append("ALiBi: scores fall with the distance of a key, which the products do not show.")
    if any(name.endswith("attn_sinks.weight") for name in file.names):
        facts.append("Attention sinks: each head also attends to a learned score that belongs to no token.")
    if settings.has_quantized_k:
        facts.append(f"The K cache is of type {settings.cache_type_k}: llama.cpp used rounded keys, not these.")
    return {
        "step_scale": np.array([scale]),
        "step_softcap": np.array([softcap]),
        "step_window": np.array([window]),
        "step_facts": np.array(facts, dtype=np.str_),
    }


def _number(file: ModelFile, key: str) -> float:
    """0 for what is no number: these facts are only told, and no reason to refuse a file that llama.cpp takes."""
    value = file.metadata.get(f"{file.architecture}.{key}")
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else 0.0


def _half(vectors: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return vectors.astype(np.float16) if float(np.abs(vectors).max(initial=0)) < _LARGEST_HALF else vectors
