"""API for notebooks and scripts: one call returns arrays or tables. Models run in a separate worker process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import ModelError, OptionError, PromptError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.models import ModelInfo, load_info
from gguf_harness.inputs.options import default_threads
from gguf_harness.inputs.prompts import Prompt, load_prompts
from gguf_harness.inputs.sources import expand_all
from gguf_harness.inputs.words import load_words
from gguf_harness.measure.attention.attention_results import HeadBehaviour
from gguf_harness.measure.attention.tasks import AttentionRequest, observe_attention
from gguf_harness.measure.embeddings.tasks import EmbeddingRequest, measure_words
from gguf_harness.measure.live.model import LiveModel
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import ModelFacts
from gguf_harness.store.frames import StoredRun, open_run
from gguf_harness.store.paths import option_path
from gguf_harness.store.runs import find_run

if TYPE_CHECKING:
    from numpy.typing import NDArray


__all__ = [
    "Attention",
    "HiddenStates",
    "StoredRun",
    "WordEmbeddings",
    "attention",
    "heads",
    "hidden_states",
    "load_run",
    "word_embeddings",
]


_LIMIT_BYTES: Final = 8_000_000_000


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one prompt, as llama.cpp computed it; all float32.

    Attributes:
        tokens: [pos] token ids, including BOS if the vocabulary requires it.
        pieces: [pos] their text; parts of characters are shown as U+FFFD.
        layers: numbers of the layers with attention, the first axis of the following arrays: all layers in most models,
            few in hybrids.
        pattern: [layer, head, pos, key] attention weights: rows sum to one, keys after the position are 0.
        scores: [layer, head, pos, key] q k^T: not masked, and scaled only if the model scales q first.
        q: [layer, pos, head, d_head] queries, after rope.
        k: [layer, pos, kv_head, d_head] keys, after rope.
        v: [layer, pos, kv_head, d_head] values.
    """

    tokens: NDArray[np.int32]
    pieces: tuple[str, ...]
    layers: tuple[int, ...]
    pattern: NDArray[np.float32]
    scores: NDArray[np.float32]
    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The hidden states of one prompt, as llama.cpp computed them; all float32.

    If llama.cpp names only the stream after a block in an architecture, the states inside the block are None. Layers
    whose input is unknown (the first one in models with position embeddings) have NaN for derived states.

    Attributes:
        tokens: [pos] token ids, including BOS if the vocabulary requires it.
        pieces: [pos] their text; parts of characters are shown as U+FFFD.
        embed: [pos, d_model] the input of the first block: token embeddings, scaled if the model does so.
        resid_mid: [layer, pos, d_model] the residual stream between attention and MLP.
        attn_out: [layer, pos, d_model] attention's update of the stream.
        mlp_out: [layer, pos, d_model] the MLP's update of the stream.
        resid_post: [layer, pos, d_model] the stream after each block, before the final norm.
    """

    tokens: NDArray[np.int32]
    pieces: tuple[str, ...]
    embed: NDArray[np.float32]
    resid_mid: NDArray[np.float32] | None
    attn_out: NDArray[np.float32] | None
    mlp_out: NDArray[np.float32] | None
    resid_post: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WordEmbeddings:
    """Token embeddings of words; for words of several tokens, their mean.

    Attributes:
        words: [n] words of the list that the model's vocabulary can represent.
        groups: [n] the group of each; None for words only in analogies.
        vectors: [n, d_model] float32, dequantized.
        missing: the other words of the list.
    """

    words: tuple[str, ...]
    groups: tuple[str | None, ...]
    vectors: NDArray[np.float32]
    missing: tuple[str, ...]


def attention(model: str | Path, prompt: str, *, threads: int | None = None, gpu: int = 0) -> Attention:
    """Decode a prompt, and return the attention of every head of every layer.

        import gguf_harness
        attention = gguf_harness.attention("model-Q4_K_M.gguf", "The cat sat on the mat")
        attention.pattern[2, 7]    # layer 2, head 7: [pos, key]

    Memory for n tokens is 8 n^2 bytes per head, and twice that during the transfer; for longer texts, use
    suites/attention, which sums up the behaviour of heads.

    Args:
        model: a path, an alias (`tiny`) or hf:org/repo:file, as for --models.
        prompt: continued as it is; no chat template.
        threads: CPU threads; the physical cores if not given.
        gpu: NVIDIA GPU, -1 for none; ignored where there is none.

    Raises:
        HarnessError: the model cannot be loaded, lacks a tensor, or cannot take the prompt.
    """
    with LiveModel(_model(model), _settings(threads, gpu), gpu=gpu) as live:
        reading = _read(live, prompt, attention=("pattern", "scores", "q", "k", "v"), states=False, logits=False)
    facts = reading.facts
    if {"pattern", "scores", "q", "k", "v"} - set(facts.attention):
        raise ModelError(f"{facts.name}: its attention cannot be read.", " ".join(facts.missing))
    kinds = {kind: _stacked(facts, kind, getattr(reading, kind)) for kind in ("pattern", "scores", "q", "k", "v")}
    return Attention(tokens=reading.tokens, pieces=reading.texts, layers=facts.attention_layers, **kinds)


def hidden_states(model: str | Path, prompt: str, *, threads: int | None = None, gpu: int = 0) -> HiddenStates:
    """Decode a prompt, and return the residual stream around every block; arguments as for `attention`.

        states = gguf_harness.hidden_states("model-Q4_K_M.gguf", "The cat sat on the mat")
        states.resid_post[2, -1]    # [d_model] after layer 2, of the last token

    Decoded as by `attention`, without flash attention, so patterns and states match. Memory and disk for n
    tokens are 16 n d_model bytes per layer.

    Args:
        model: a path, an alias or hf:org/repo:file.
        prompt: continued as it is; no chat template.
        threads: CPU threads; the physical cores if not given.
        gpu: NVIDIA GPU, -1 for none; ignored where there is none.

    Raises:
        HarnessError: the model cannot be loaded, its residual stream cannot be read, or it cannot take the prompt.
    """
    with LiveModel(_model(model), _settings(threads, gpu), gpu=gpu) as live:
        reading = _read(live, prompt, attention=(), states=True, logits=False)
    if not reading.states:
        raise ModelError(f"{reading.facts.name}: its residual stream cannot be read.", " ".join(reading.facts.missing))
    return HiddenStates(
        tokens=reading.tokens,
        pieces=reading.texts,
        embed=reading.states["embed"],
        resid_mid=reading.states.get("resid_mid"),
        attn_out=reading.states.get("attn_out"),
        mlp_out=reading.states.get("mlp_out"),
        resid_post=reading.states["resid_post"],
    )


def word_embeddings(
    model: str | Path, words: Path | None = None, *, threads: int | None = None, gpu: int = 0
) -> WordEmbeddings:
    """The token embeddings of a word list, as in suites/embeddings; arguments as for `attention`.

    Args:
        model: a path, an alias or hf:org/repo:file.
        words: a TOML file, see `gguf_harness.inputs.words`; the built-in list if not given.
        threads: CPU threads.
        gpu: NVIDIA GPU, -1 for none.

    Raises:
        HarnessError: the model cannot be loaded or has no token embeddings, or the list cannot be read.
    """
    listed = load_words(words)
    info = _model(model)
    request = EmbeddingRequest(info.files, _settings(threads, gpu), listed.words)
    with tempfile.TemporaryDirectory() as folder, Worker(info.name, Path(folder) / "worker.log", gpu=gpu) as worker:
        arrays = worker.call(measure_words, None, request)
    there = arrays["word_tokens"] > 0
    known = tuple(word for word, written in zip(listed.words, there.tolist(), strict=True) if written)
    return WordEmbeddings(
        words=known,
        groups=tuple(listed.group_of.get(word) for word in known),
        vectors=arrays["word_vectors"][there],
        missing=tuple(word for word in listed.words if word not in known),
    )


def heads(model: str | Path, prompts: Path | None = None, *, threads: int | None = None, gpu: int = 0) -> HeadBehaviour:
    """Behaviour of each head of a model on a set of prompts; arguments as for `attention`.

    Args:
        model: a path, an alias or hf:org/repo:file.
        prompts: a TOML file of prompts; the built-in set if not given.
        threads: CPU threads.
        gpu: NVIDIA GPU, -1 for none.
    """
    info = _model(model)
    with tempfile.TemporaryDirectory() as folder:
        request = _request(info, load_prompts(prompts).prompts, Path(folder), threads, gpu)
        text = load_corpus("pydoc", held_out_topics=info.held_out_topics).text
        with Worker(info.name, Path(folder) / "worker.log", gpu=gpu) as worker:
            return HeadBehaviour.of(worker.call(observe_attention, None, replace(request, text=text)))


def load_run(run: str | Path = "last", results: str | Path = "results") -> StoredRun:
    """Read a stored run: its estimates, models, gates and tests as pandas DataFrames.

        run = gguf_harness.load_run("last")
        run.estimates.query("metric == 'kld_mean'")[["model", "value", "se"]]
        run.arrays["model-Q4_K_M", "kld_quantiles"]    # NumPy arrays by name

    Args:
        run: a run.json, a run's folder, its id or the start of it, or `last`; runs of every version so far.
        results: folder of the runs for ids and `last`, as --gguf-results.

    Raises:
        StoreError: no run matches, or several do; it cannot be read, or is not a run; or pandas is not installed.
    """
    return open_run(find_run(os.fspath(run), option_path(results)))


def _model(spec: str | Path) -> ModelInfo:
    sources = expand_all([str(spec)])
    if len(sources) != 1:
        raise OptionError(f"{str(spec)!r} matches {len(sources)} models.", "Give exactly one.")
    return load_info(sources[0])


def _read(live: LiveModel, prompt: str, **parts: Any) -> Reading:
    """Read the single prompt; unlike in a suite, there are no other prompts to fall back on."""
    try:
        return live.read(prompt, **parts)
    except PromptError as error:
        raise PromptError(error.message, "Give a prompt of at least one token that fits into the context.") from None


def _stacked(facts: ModelFacts, kind: str, by_layer: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
    shapes = dict.fromkeys(values.shape for values in by_layer.values())
    if len(shapes) > 1:
        raise ModelError(
            f"{facts.name}: {kind} differs in shape between layers ({', '.join(map(str, shapes))}), so they do not fit"
            " into one array.",
            "Use suites/attention, which measures such models layer by layer.",
        )
    return np.stack(list(by_layer.values()))


def _settings(threads: int | None, gpu: int) -> SessionSettings:
    return SessionSettings(threads=threads or default_threads(), n_gpu_layers=0 if gpu < 0 else -1)


def _request(
    info: ModelInfo, prompts: tuple[Prompt, ...], folder: Path, threads: int | None, gpu: int
) -> AttentionRequest:
    return AttentionRequest(
        model=info.name,
        files=info.files,
        architecture=info.architecture,
        n_layer=info.n_layer or 0,
        settings=_settings(threads, gpu),
        prompts=prompts,
        text=b"",
        folder=folder,
        limit_bytes=_LIMIT_BYTES,
    )
