"""Measure and build the graphs that `gguf-harness graph` writes: of a model, and of its work on a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from gguf_harness import api
from gguf_harness.errors import GraphError, NoData, OptionError
from gguf_harness.gguf.header import read_header
from gguf_harness.graphs import AttentionGraph, CosineNetwork, Graph, LayerTokenFlow, ModelStructure
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import ModelSource, expand_one

__all__ = ["DEFAULT_PROMPT", "graph_of"]

DEFAULT_PROMPT: Final = "When Mary and John went to the store, John gave a drink to Mary."
"""A sentence with repeated names, in which previous-token and induction heads can be seen."""

_WITH_PROMPT: Final = ("attention", "flow")


def graph_of(
    model: str, kind: str, *, prompt: str | None = None, words: Path | None = None, threads: int | None = None
) -> Graph:
    """Measure the data of a graph, and build it.

    Args:
        model: a path, an alias or hf:org/repo:file, as for --models.
        kind: "structure" (headers alone are read), "attention", "flow" or "cosine".
        prompt: for attention and flow; `DEFAULT_PROMPT` if not given.
        words: for cosine, a word list; the built-in one if not given.
        threads: CPU threads.

    Raises:
        HarnessError: not exactly one model, a model that cannot be loaded or cannot take the prompt, a tensor that
            llama.cpp does not provide for its architecture, or an option that this kind does not use.
    """
    if prompt is not None and kind not in _WITH_PROMPT:
        raise OptionError(f"--prompt has no meaning for --kind={kind}.", f"It is for {' and '.join(_WITH_PROMPT)}.")
    if words is not None and kind != "cosine":
        raise OptionError(f"--words has no meaning for --kind={kind}.", "It is for cosine.")
    source = expand_one(model)
    if kind == "structure":
        return ModelStructure(source.name, [read_header(file) for file in source.files]).build()
    if kind == "cosine":
        return _cosine(source, model, words, threads)
    return _of_prompt(source, model, kind, DEFAULT_PROMPT if prompt is None else prompt, threads)


def _of_prompt(source: ModelSource, model: str, kind: str, prompt: str, threads: int | None) -> Graph:
    attention = api.attention(model, prompt, threads=threads)
    if attention.layers != tuple(range(len(attention.layers))) or len(attention.layers) != load_info(source).n_layer:
        raise GraphError(
            f"{source.name} has attention in layers {', '.join(map(str, attention.layers))} only: the graph would have "
            "no edges for the others.",
            "Give a model with attention in every layer; use suites/attention to measure others.",
        )
    provenance = {"model": source.name, "prompt": prompt, "tokens": attention.tokens.tolist()}
    if kind == "attention":
        return AttentionGraph(source.name, attention.pattern, attention.pieces, provenance=provenance).build()
    states = api.hidden_states(model, prompt, threads=threads)
    stream = np.concatenate([states.embed[None], states.resid_post])
    return LayerTokenFlow(source.name, stream, attention.pattern, attention.pieces, provenance=provenance).build()


def _cosine(source: ModelSource, model: str, words: Path | None, threads: int | None) -> Graph:
    embeddings = api.word_embeddings(model, words, threads=threads)
    # Untrained rows may be zero: they have no similar rows.
    there = np.logical_and(np.isfinite(embeddings.vectors).all(axis=1), embeddings.vectors.any(axis=1))
    if not there.any():
        raise NoData(f"{source.name}: it has embeddings of none of the words.", "Give other words: --words=FILE.")
    kept = np.flatnonzero(there).tolist()
    zero = [embeddings.words[index] for index in np.flatnonzero(~there).tolist()]
    return CosineNetwork(
        source.name,
        embeddings.vectors[kept],
        [embeddings.words[index] for index in kept],
        provenance={
            "model": source.name,
            "words": "built-in" if words is None else words.name,
            "missing": [*embeddings.missing, *zero],
        },
        groups=[embeddings.groups[index] for index in kept],
    ).build()
