"""Attention of prompts, read while llama.cpp decodes them. Runs in a worker.

Behaviour of heads is summed up layer by layer during the decode: a model of any size needs memory for one layer's
pattern. Tensors for comparisons go to disk, those of a candidate only until it has been compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import NoPrompt, PromptError
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.attention.activations import ActivationReader, ActivationWriter
from gguf_harness.measure.attention.behaviour import BehaviourWatch, LayerParts
from gguf_harness.measure.attention.copying import copy_scores
from gguf_harness.measure.attention.steps import attention_facts, step_arrays
from gguf_harness.measure.layers.unembedding import ModelFile
from gguf_harness.measure.prompt_inputs import prompt_inputs
from gguf_harness.metrics.circuits import induction_scores, repeated_tokens
from gguf_harness.metrics.head_behaviour import BEHAVIOURS
from gguf_harness.metrics.taxonomy import redundancy
from gguf_harness.metrics.token_features import TokenFeatures

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.taps import Reader
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = [
    "ATTENTION_KINDS",
    "AttentionRequest",
    "KeptPatterns",
    "attention_layers",
    "observe_attention",
    "tapped",
]

ATTENTION_KINDS: Final = ("q", "k", "v", "pattern")
"""Tensors of each layer that comparisons need, under `prompt/layer/kind`: q, k and v in single, patterns in half
precision.
"""

_COUNTED_BYTES: Final = 1_000_000
_REPEATED: Final = 64
_SEQUENCES: Final = 4
_LOOKED_AT: Final = 8
_COMPARED_TOKENS: Final = 128
_KEPT_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class KeptPatterns:
    """Patterns to keep for charts: number of prompts, and which layers and heads (None for all)."""

    prompts: int = 0
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class AttentionRequest:
    """What to decode.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        architecture: as the file names it.
        n_layer: layers of the model.
        settings: how to run it; flash attention is turned off, the context made as long as the prompts need.
        prompts: with distinct ids.
        text: used to count how rare tokens are.
        folder: where patterns, queries, keys and values are written.
        limit_bytes: most that these may take.
        kept: which complete patterns to return for charts.
    """

    model: str
    files: tuple[Path, ...]
    architecture: str
    n_layer: int
    settings: SessionSettings
    prompts: tuple[Prompt, ...]
    text: bytes
    folder: Path
    limit_bytes: int
    kept: KeptPatterns = KeptPatterns()


def observe_attention(worker: WorkerContext, request: AttentionRequest) -> Arrays:
    """Decode every prompt, sum up the behaviour of each head, and write the tensors for comparisons to the folder.

    Returns:
        prompts, [P] ids of those that the model could take; causal, [1] whether tokens attend to earlier ones only;
        tokens, [all of them], and lengths, [P]; heads, [H, 2]
        layer and head; scores, [S] names as in `BEHAVIOURS`, with sums over rows and counts of rows, [P, S, H];
        induction and duplicate_token, [sequence, H], means over the second half of random tokens that come twice;
        redundancy, [H, H], how alike heads attend; copy_score, [H], NaN where the file has no matrices for it, or
        adapters change them; problems, [.] what was wrong with other prompts; and of the i-th kept prompt pattern_i,
        [K, pos, key] of its first 256 tokens in half precision, with kept, [K, 2] layer and head, and pieces_i, [pos]
        the text of all its tokens as bytes; and of the first of them what `step_arrays` and `attention_facts` return.

    Raises:
        NoPrompt: no prompt can be decoded.
        StoreError: the data takes more than `limit_bytes`, or cannot be written.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    inputs, problems = _inputs(model, request)
    layers = attention_layers(model, request)
    counts = np.bincount(model.tokenize(request.text[:_COUNTED_BYTES]), minlength=model.vocabulary.n_tokens)
    writer = ActivationWriter(request.folder, request.limit_bytes)
    watch = BehaviourWatch(request.settings.threads, writer)
    longest = max(len(tokens) for tokens in inputs.values())
    totals, texts = [], {}
    try:
        readers = dict.fromkeys(ATTENTION_KINDS, watch)
        with tapped(model, request, longest, readers, layers, views=["pattern"]) as context:
            for done, (prompt, tokens) in enumerate(inputs.items()):
                worker.progress(done, len(inputs))
                pieces = [model.detokenize([token], special=True) for token in tokens.tolist()]
                texts[prompt] = np.array(pieces, dtype=np.bytes_)
                watch.begin(prompt, TokenFeatures.of(pieces, tokens, counts))
                context.prefill(tokens)
                totals.append(watch.totals())
        writer.close()
    except BaseException:
        writer.discard()
        raise
    return {
        "prompts": np.array(list(inputs)),
        "tokens": np.concatenate(list(inputs.values())),
        "lengths": np.array([len(tokens) for tokens in inputs.values()]),
        "problems": np.array([error.message for error in problems.values()], dtype=np.str_),
        "heads": watch.heads,
        "causal": np.array([watch.causal]),
        "scores": np.array(BEHAVIOURS),
        "sums": np.stack([sums for sums, _ in totals]),
        "counts": np.stack([counts for _, counts in totals]),
        **_induction(model, request, layers),
        "redundancy": _redundancy(request, layers, [prompt for prompt, tokens in inputs.items() if len(tokens) > 1]),
        "copy_score": _copy_scores(request, watch.heads),
        **_kept(request, watch.heads, texts, causal=watch.causal),
    }


def _copy_scores(request: AttentionRequest, heads: NDArray[np.int64]) -> NDArray[np.float64]:
    """From the file's matrices: not known of a model whose adapters change them as it decodes."""
    if request.settings.adapters:
        return np.full(len(heads), np.nan)
    return copy_scores(request.files, request.n_layer, heads)


def _redundancy(request: AttentionRequest, layers: Sequence[int], prompts: list[str]) -> NDArray[np.float64]:
    """How alike heads attend, over the first tokens of the prompts; NaN without a prompt of two tokens."""
    reader = ActivationReader(request.folder)
    part = slice(0, _COMPARED_TOKENS)
    patterns = (
        np.concatenate([reader.array(f"{prompt}/{layer}/pattern", 1)[:, part, part] for layer in layers])
        for prompt in prompts
    )
    total, count = np.zeros(()), 0
    for pattern in patterns:
        total, count = total + redundancy([pattern]), count + 1
    return np.asarray(total / count if count else np.full((1, 1), np.nan))


def _kept(
    request: AttentionRequest, heads: NDArray[np.int64], texts: Mapping[str, NDArray[np.bytes_]], *, causal: bool
) -> Arrays:
    """The patterns to keep: of the first prompts of the set with enough tokens."""
    chosen = [prompt for prompt, pieces in texts.items() if len(pieces) >= _LOOKED_AT][: request.kept.prompts]
    if not chosen:
        return {}
    layers, numbers = request.kept.layers, request.kept.heads
    wanted = np.array(
        [(layers is None or layer in layers) and (numbers is None or head in numbers) for layer, head in heads.tolist()]
    )
    arrays: Arrays = {"kept": heads[wanted], "kept_prompts": np.array(chosen)}
    reader = ActivationReader(request.folder)
    part = slice(0, _KEPT_TOKENS)
    for index, prompt in enumerate(chosen):
        patterns = [
            reader.array(f"{prompt}/{layer}/pattern", 1)[heads[wanted & (heads[:, 0] == layer), 1], part, part]
            for layer in dict.fromkeys(heads[:, 0].tolist())
        ]
        arrays |= {f"pattern_{index}": np.concatenate(patterns), f"pieces_{index}": texts[prompt]}
    arrays |= step_arrays(reader, chosen[0], heads[wanted], heads, causal=causal)
    return arrays | attention_facts(ModelFile(request.files), request.settings)


# -- decoding ---------------------------------------------------------------------------------------------------------


def attention_layers(model: Model, request: AttentionRequest) -> tuple[int, ...]:
    """The layers with an attention pattern: all layers in most models, few in hybrids with state-space layers.

    This is read from llama.cpp's graph of one token, since metadata has many forms for it.

    Raises:
        TapNotFound: no layer has one.
    """
    seen: set[int] = set()

    def notice(tap: str, _: NDArray[np.float32]) -> None:
        seen.add(int(tap.split(".")[1]))

    with tapped(model, request, 1, {"pattern": notice}, range(request.n_layer), some=True) as context:
        context.prefill(np.array([max(model.vocabulary.bos, 0)], dtype=np.int32))
    return tuple(sorted(seen))


@contextmanager
def tapped(
    model: Model,
    request: AttentionRequest,
    longest: int,
    readers: Mapping[str, Reader],
    layers: Iterable[int],
    *,
    views: Collection[str] = (),
    some: bool = False,
) -> Iterator[Context]:
    """A context of a loaded model, without flash attention, layers whose attention is read.

    Args:
        model: the loaded model.
        request: the model and its settings.
        longest: tokens of the longest text to decode.
        readers: by kind ("pattern", "q"): called with the taps of these layers.
        layers: layers whose attention is read.
        views: kinds whose readers copy whatever they keep.
        some: whether one of the taps is enough.

    Raises:
        OptionError: the settings ask for a quantized V cache.
    """
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    n_batch = min(longest, request.settings.n_batch)
    n_ctx = -(-longest // n_batch) * n_batch
    settings = replace(request.settings.with_pattern(), n_ctx=n_ctx, n_batch=n_batch)
    read = {f"blocks.{layer}.attn.{kind}": each for layer in layers for kind, each in readers.items()}
    viewed = [tap for tap in read if tap.rpartition(".")[2] in views]
    taps = Taps(request.architecture, request.n_layer, read=read, views=viewed, some=some)
    with Context(model, settings, taps) as context:
        yield context


def _inputs(model: Model, request: AttentionRequest) -> tuple[dict[str, Tokens], dict[str, PromptError]]:
    inputs, problems = prompt_inputs(model, request.model, request.prompts, 0, request.settings)
    if not inputs:
        first = next(iter(problems.values()))
        raise NoPrompt(f"No prompt can be decoded. {first.message}", first.hint)
    return {prompt: tokens for prompt, (tokens, _) in inputs.items()}, problems


def _induction(model: Model, request: AttentionRequest, layers: Sequence[int]) -> Arrays:
    """Induction and duplicate_token of each head: [sequence, H], means over the repeated tokens."""
    from gguf_harness.engine.vocabulary import ordinary_tokens

    candidates = ordinary_tokens(model.vocabulary_pointer)
    offset = int(model.vocabulary.add_bos)
    length = min(_REPEATED, len(candidates), (model.n_ctx_train - offset) // 2)
    bos = np.full(offset, model.vocabulary.bos, dtype=np.int32)
    patterns = LayerParts(offset + 2 * length, by_key=True)
    scores_by_name: dict[str, list[NDArray[np.float64]]] = {}
    with tapped(model, request, offset + 2 * length, {"pattern": patterns}, layers) as context:
        for seed in range(_SEQUENCES):
            context.prefill(np.concatenate([bos, repeated_tokens(candidates, length, seed)]))
            scores = [induction_scores(layer, length, offset) for layer in patterns.take()]
            for name in scores[0]:
                scores_by_name.setdefault(name, []).append(
                    np.concatenate([score[name].mean(axis=1) for score in scores])
                )
    return {name: np.stack(rows) for name, rows in scores_by_name.items()}
