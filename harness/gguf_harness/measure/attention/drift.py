"""Distance of a candidate's attention from the reference's, on the same tokens. Runs in a worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import ModelError, NoData, NoPrompt, VocabularyMismatch
from gguf_harness.measure.attention.activations import ActivationReader
from gguf_harness.measure.attention.tasks import AttentionRequest, observe_attention
from gguf_harness.metrics.kernels.cka import linear_cka
from gguf_harness.metrics.pattern_comparison import compare_patterns

if TYPE_CHECKING:
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["ROW_MEASURES", "compare_attention"]

ROW_MEASURES: Final = ("cosine_rows", "jsd", "total_variation", "entropy_change", "top_changed")
"""Fields of `PatternComparison` with a value per row."""

_LONGER: Final = "Give prompts of two tokens or more that both models' chat templates take."

Vectors = NDArray[np.floating[Any]]


def compare_attention(
    worker: WorkerContext, request: AttentionRequest, reference: Path, base: Arrays
) -> tuple[Arrays, Arrays]:
    """Decode every prompt with a candidate and compare its attention with the reference's, patterns in half precision.

    Prompts of a single token are left out, since it can only attend to itself; so are prompts that one of the models
    cannot take.

    Args:
        worker: that the task runs in.
        request: the candidate; its folder is emptied afterwards.
        reference: folder of the reference's activations.
        base: result of `observe_attention` for the reference.

    Returns:
        The result of `observe_attention` for the candidate; and
        prompts, [P] ids, and rows, [P] how many of each; heads, [H, 2], and kv_heads, [K, 2]: layer and head; cosine,
        [P, H]; `ROW_MEASURES`, [H, all rows] of one prompt after the other; relative errors q_error and scores_error,
        [P, H], k_error and v_error, [P, K]; and over the tokens of all prompts q_cka, [H], k_cka and v_cka, [K], NaN
        where it is not defined.

    Raises:
        ModelError: the candidate has other layers or heads.
        VocabularyMismatch: the candidate tokenizes a prompt differently.
        NoPrompt: no prompt that both can take has two tokens.
    """
    try:
        own = observe_attention(worker, request)
        ours, theirs = ActivationReader(request.folder), ActivationReader(reference)
        if not np.array_equal(own["heads"], base["heads"]):
            raise ModelError(
                "{} has {} attention heads in {} layers, its reference {} in {}: they cannot be compared one by"
                " one.".format(request.model, *_count_heads(own), *_count_heads(base)),
                "Compare models of the same shape; `gguf-harness heads` matches heads of different models.",
            )
        own_tokens, base_tokens = (_tokens_of(each) for each in (own, base))
        both = [prompt for prompt in own_tokens if prompt in base_tokens]
        if not both:
            raise NoPrompt(f"{request.model} and its reference have no prompt that both can take.", _LONGER)
        if any(own_tokens[prompt] != base_tokens[prompt] for prompt in both):
            raise VocabularyMismatch(
                f"{request.model} tokenizes the prompts differently from its reference.",
                "Compare models with the same vocabulary and the same chat template.",
            )
        prompts = [prompt for prompt in both if len(own_tokens[prompt]) > 1]
        if not prompts:
            raise NoPrompt("No prompt has two tokens: there is no attention to compare.", _LONGER)
        layers = list(dict.fromkeys(own["heads"][:, 0].tolist()))
        comparisons = []
        for done, prompt in enumerate(prompts):
            worker.progress(done, len(prompts))
            comparisons.append(_of_prompt(prompt, layers, ours, theirs))
        drift = {
            name: np.stack([each[name] for each in comparisons]) for name in comparisons[0] if name not in ROW_MEASURES
        }
        drift |= {name: np.concatenate([each[name] for each in comparisons], axis=1) for name in ROW_MEASURES}
        drift |= {f"{kind}_cka": _cka(kind, prompts, layers, ours, theirs) for kind in "qkv"}
        rows = np.array([each["jsd"].shape[1] for each in comparisons])
        return own, {
            "prompts": np.array(prompts),
            "rows": rows,
            "heads": own["heads"],
            **_kv_heads(ours, prompts[0], layers),
            **drift,
        }
    finally:
        ActivationReader.discard(request.folder)


def _count_heads(arrays: Arrays) -> tuple[int, int]:
    """(heads, layers with heads)."""
    return len(arrays["heads"]), len(np.unique(arrays["heads"][:, 0]))


def _tokens_of(observed: Arrays) -> dict[str, list[int]]:
    """Tokens of each prompt of a model."""
    ends = np.cumsum(observed["lengths"]).tolist()
    starts = [0, *ends[:-1]]
    tokens = observed["tokens"].tolist()
    parts = zip(observed["prompts"].tolist(), starts, ends, strict=True)
    return {str(prompt): tokens[start:end] for prompt, start, end in parts}


def _of_prompt(prompt: str, layers: list[int], ours: ActivationReader, theirs: ActivationReader) -> Arrays:
    parts: dict[str, list[NDArray[np.generic]]] = {}

    def add(name: str, values: NDArray[np.generic]) -> None:
        parts.setdefault(name, []).append(values)

    for layer in layers:
        a, b = (
            {
                kind: each.array(f"{prompt}/{layer}/{kind}", 1 if kind == "pattern" else 0)
                for kind in (*"qkv", "pattern")
            }
            for each in (ours, theirs)
        )
        compared = compare_patterns(a["pattern"], b["pattern"])
        add("cosine", compared.cosine)
        for name in ROW_MEASURES:
            add(name, getattr(compared, name).astype(np.float32))
        for kind in "qkv":
            add(f"{kind}_error", _errors(_by_head(a[kind]), _by_head(b[kind])))
        add("scores_error", _score_errors(a, b))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _by_head(vectors: Vectors) -> Vectors:
    """[head, values] of [pos, head, d_head], without the first token.

    If the vocabulary starts texts with BOS, it is the same in every text. Otherwise it is a normal word, but it can
    only attend to itself: its row carries no information about a head.
    """
    return vectors[1:].transpose(1, 0, 2).reshape(vectors.shape[1], -1)


def _errors(ours: Vectors, theirs: Vectors) -> NDArray[np.float64]:
    """[head] norm of the difference over the norm of the reference, as `relative_error`; NaN where that is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1))


def _score_errors(ours: dict[str, Vectors], theirs: dict[str, Vectors]) -> NDArray[np.float64]:
    """[head] relative error of q k^T over the pairs of positions that a causal model sees."""
    n = len(ours["q"])
    seen = np.tri(n, dtype=np.bool_)[1:]
    errors = []
    for head in range(ours["q"].shape[1]):
        a, b = (_scores(each, head)[1:][seen] for each in (ours, theirs))
        errors.append(_errors(a[None], b[None])[0])
    return np.array(errors)


def _scores(vectors: dict[str, Vectors], head: int) -> Vectors:
    """[pos, key] of a head; several query heads share a key head, one group after the other."""
    group = vectors["q"].shape[1] // vectors["k"].shape[1]
    return np.asarray(vectors["q"][:, head] @ vectors["k"][:, head // group].T)


def _cka(
    kind: str, prompts: list[str], layers: list[int], ours: ActivationReader, theirs: ActivationReader
) -> NDArray[np.float64]:
    values = []
    for layer in layers:
        a, b = (
            np.concatenate([each.array(f"{prompt}/{layer}/{kind}")[1:] for prompt in prompts])
            for each in (ours, theirs)
        )
        for head in range(a.shape[1]):
            try:
                values.append(linear_cka(a[:, head], b[:, head]))
            except NoData:
                values.append(float("nan"))
    return np.array(values)


def _kv_heads(reader: ActivationReader, prompt: str, layers: list[int]) -> Arrays:
    counts = {layer: reader.array(f"{prompt}/{layer}/k").shape[1] for layer in layers}
    return {"kv_heads": np.array([(layer, head) for layer, count in counts.items() for head in range(count)])}
