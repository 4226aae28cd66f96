"""For notebooks and scripts: one call, arrays out. Everything runs in a worker process of its own."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.corpora import load_corpus
from harness.engine.settings import SessionSettings
from harness.engine.worker import Worker
from harness.errors import OptionError
from harness.measure.attention import AttentionRequest, observe_attention, read_attention
from harness.measure.attention_results import HeadBehaviour
from harness.models import ModelInfo, load_info
from harness.options import default_threads
from harness.prompts import Prompt, load_prompts
from harness.sources import expand_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Attention", "attention", "heads"]


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one prompt, as llama.cpp computed it; all float32.

    Attributes:
        tokens: [pos] token ids, BOS included where the vocabulary asks for it.
        pieces: [pos] their text; parts of characters are shown as U+FFFD.
        pattern: [layer, head, pos, key] attention weights: rows sum to one, keys after the position are 0.
        scores: [layer, head, pos, key] q k^T: not masked, and not scaled unless the model scales q before.
        q: [layer, pos, head, d_head] queries, after rope.
        k: [layer, pos, kv_head, d_head] keys, after rope.
        v: [layer, pos, kv_head, d_head] values.
    """

    tokens: NDArray[np.int32]
    pieces: tuple[str, ...]
    pattern: NDArray[np.float32]
    scores: NDArray[np.float32]
    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]


def attention(model: str | Path, prompt: str, *, threads: int | None = None, gpu: int = 0) -> Attention:
    """Decode a prompt, and return the attention of every head of every layer.

        import harness
        found = harness.attention("model-Q4_K_M.gguf", "The cat sat on the mat")
        found.pattern[2, 7]    # layer 2, head 7: [pos, key]

    Memory for n tokens is 8 n^2 bytes per head, and as much again while they travel; for more, let suites/attention
    sum up what heads do.

    Args:
        model: a path, an alias (`tiny`) or hf:org/repo:file, as for --models.
        prompt: continued as it is; no chat template.
        threads: CPU threads; the physical cores if not given.
        gpu: NVIDIA GPU, -1 for none; ignored where there is none.

    Raises:
        HarnessError: the model cannot be loaded, does not offer a tensor, or cannot have the prompt.
    """
    info = _model(model)
    with tempfile.TemporaryDirectory() as folder:
        request = _request(info, (Prompt("prompt", prompt),), Path(folder), threads, gpu)
        with Worker(info.name, Path(folder) / "worker.log", gpu=gpu) as worker:
            found = worker.call(read_attention, None, request)
    pattern, scores, q, k, v = (found[name].astype(np.float32, copy=False) for name in ("pattern", "scores", *"qkv"))
    pieces = tuple(piece.decode("utf-8", "replace") for piece in found["pieces"].tolist())
    return Attention(found["tokens"].astype(np.int32), pieces, pattern, scores, q, k, v)


def heads(model: str | Path, prompts: Path | None = None, *, threads: int | None = None, gpu: int = 0) -> HeadBehaviour:
    """What each head of a model does with a set of prompts; arguments as for `attention`.

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


def _model(spec: str | Path) -> ModelInfo:
    sources = expand_all([str(spec)])
    if len(sources) != 1:
        raise OptionError(f"{str(spec)!r} names {len(sources)} models.", "Give exactly one.")
    return load_info(sources[0])


def _request(
    info: ModelInfo, prompts: tuple[Prompt, ...], folder: Path, threads: int | None, gpu: int
) -> AttentionRequest:
    settings = SessionSettings(threads=threads or default_threads(), n_gpu_layers=0 if gpu < 0 else -1)
    return AttentionRequest(
        model=info.name,
        files=info.files,
        architecture=info.architecture,
        n_layer=info.n_layer or 0,
        settings=settings,
        prompts=prompts,
        text=b"",
        folder=folder,
        limit_bytes=8_000_000_000,
    )
