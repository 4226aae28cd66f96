"""A prompt read in one decode: tokens, attention, states and logits; and a text continued by a token. Runs in a worker.

Heads are switched off in `attn.z`, their mixed values before the output projection; layers by putting the stream before
a block in place of the one after it. What is read is what the model then computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import NOT_FINITE_HINT, CorpusError, EngineError, PromptError
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.attention.behaviour import LayerParts
from gguf_harness.measure.heads.layout import HeadLayout
from gguf_harness.measure.layers.states import HeldStates, complete_states
from gguf_harness.measure.live.requests import NOTHING_OFF, Ablation, ModelFacts, ReadRequest
from gguf_harness.measure.prompt_inputs import check_room, prompt_inputs

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.taps import Patcher, Reader
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["ablating", "pieces_of", "read_prompt", "tokens_of", "unembed"]

F32 = NDArray[np.float32]

_BY_KEY: Final = frozenset({"pattern", "scores"})
_ROWS: Final = 512
"""Most rows that are unembedded in one decode."""


def tokens_of(worker: WorkerContext, request: ReadRequest) -> tuple[Tokens, list[bytes]]:
    """Tokens of a prompt, and the text of each.

    Raises:
        PromptError: the model cannot take it.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    if isinstance(request.prompt, Prompt):
        inputs, problems = prompt_inputs(model, request.model, (request.prompt,), 0, request.settings)
        for error in problems.values():
            # There is one prompt, and it has no name that a person gave it.
            message = error.message.replace(f", prompt {request.prompt.id!r}", "", 1)
            raise PromptError(message, error.hint)
        ((tokens, _),) = inputs.values()
    else:
        tokens = _checked(model, request)
    tokens = np.asarray(tokens, dtype=np.int32)
    return tokens, [model.detokenize([token], special=True) for token in tokens.tolist()]


def pieces_of(worker: WorkerContext, request: ReadRequest) -> list[bytes]:
    """The text of each of the tokens of a request, whatever they mean together."""
    model = worker.model(request.files, request.settings.n_gpu_layers)
    return [model.detokenize([token], special=True) for token in _known(model, request).tolist()]


def _checked(model: Model, request: ReadRequest) -> Tokens:
    tokens = _known(model, request)
    check_room(model, request.model, len(tokens), request.settings, "prompt")
    return tokens


def _known(model: Model, request: ReadRequest) -> Tokens:
    tokens = request.prompt if isinstance(request.prompt, tuple) else ()
    vocabulary = model.vocabulary.n_tokens
    # In Python, whose integers have no limits.
    if not tokens or min(tokens) < 0 or max(tokens) >= vocabulary:
        raise PromptError(
            f"{request.model} cannot read {len(tokens)} tokens"
            + (f" from {min(tokens)} to {max(tokens)}." if tokens else "."),
            f"Give at least one token, each from 0 to {vocabulary - 1}.",
        )
    return np.array(tokens, dtype=np.int32)


def read_prompt(worker: WorkerContext, request: ReadRequest, facts: ModelFacts) -> Arrays:
    """Decode a prompt once, and read all that was asked for.

    Args:
        worker: that the task runs in.
        request: what to read.
        facts: of the model, which say what can be read.

    Returns:
        tokens, [pos]; pieces, [pos] their text as bytes; of each layer with attention `pattern_3` and `scores_3`,
        [head, pos, key], `q_3`, [pos, head, d_head], `k_3` and `v_3`, [pos, kv_head, d_head]; embed and final, [pos,
        d_model], and of each kind of states, and of those that follow from them, [layer, pos, d_model]; logits, [pos,
        vocabulary]. All float32, and only what was asked for.

    Raises:
        PromptError: the model cannot take the prompt.
        OptionError: what is to be switched off is not there.
        CorpusError: it would take more than the limit.
    """
    tokens, pieces = tokens_of(worker, request)
    # As objects: an array of bytes would lose the zero at the end of a piece.
    arrays: Arrays = {"tokens": tokens, "pieces": np.array(pieces, dtype=np.object_)}
    if facts.attention or facts.predicts:
        _check_size(request, facts, len(tokens))
        arrays |= _decoded(worker, request, facts, tokens)
    return arrays


def _decoded(worker: WorkerContext, request: ReadRequest, facts: ModelFacts, tokens: Tokens) -> Arrays:
    """What `read_prompt` returns besides tokens and their text."""
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    model = worker.model(request.files, request.settings.n_gpu_layers)
    parts = {kind: LayerParts(len(tokens), by_key=kind in _BY_KEY) for kind in request.attention}
    states: dict[str, list[F32]] = {}
    read: dict[str, Reader] = {
        f"blocks.{layer}.attn.{kind}": parts[kind] for kind in parts for layer in facts.attention_layers
    }
    read |= dict.fromkeys(_state_taps(request, facts), lambda tap, values: states.setdefault(tap, []).append(values))
    stream, patch = ablating(request.ablation, facts)
    taps = Taps(facts.architecture, facts.n_layer, read=_both(read, stream), patch=patch)
    arrays: Arrays = {}
    with Context(model, _settings(request, facts, len(tokens)), taps) as context:
        if facts.predicts:
            logits = context.logits(tokens)
            _check_finite(request, logits)
            arrays |= {"logits": logits} if request.logits else {}
        else:
            context.prefill(tokens)
    for kind, part in parts.items():
        arrays |= {f"{kind}_{layer}": values for layer, values in zip(facts.attention_layers, part.take(), strict=True)}
    if request.states:
        arrays |= _completed({tap: np.concatenate(values) for tap, values in states.items()}, request, facts)
    return arrays


def unembed(
    worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, facts: ModelFacts, stream: F32
) -> F32:
    """[rows, vocabulary] logits of residual streams, as if each were the one after the last block: the logit lens.

    llama.cpp's own final norm and unembedding compute them, in a decode of as many tokens whose last stream is
    replaced. So it works in every architecture that names that stream, and rounds as the model does.

    Args:
        worker: that the task runs in.
        files: the GGUF file or its splits.
        settings: how to run it.
        facts: of the model.
        stream: [rows, d_model].

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    model = worker.model(files, settings.n_gpu_layers)
    # Models with a table of positions have no more of them.
    most = min(_ROWS, facts.n_ctx_train or _ROWS)
    left = [np.ascontiguousarray(stream[at : at + most], dtype=np.float32) for at in range(0, len(stream), most)]
    rows = len(left[0])
    last = f"blocks.{facts.n_layer - 1}.resid_post"
    place = [0]
    taps = Taps(facts.architecture, facts.n_layer, patch={last: lambda *_: left[place[0]]})
    settings = replace(settings, n_ctx=rows, n_batch=rows, n_ubatch=rows)
    token = np.array([max(model.vocabulary.bos, 0)], dtype=np.int32)
    logits = []
    with Context(model, settings, taps) as context:
        for at, part in enumerate(left):
            place[0] = at
            logits.append(context.logits(np.repeat(token, len(part))))
    return np.concatenate(logits)


def ablating(ablation: Ablation, facts: ModelFacts) -> tuple[dict[str, Reader], dict[str, Patcher]]:
    """(taps to read, taps to patch) that switch off heads and layers."""
    read: dict[str, Reader] = {}
    patch: dict[str, Patcher] = {}
    layout = HeadLayout(facts.architecture, facts.heads)
    by_layer: dict[int, list[int]] = {}
    for layer, head in ablation.heads:
        by_layer.setdefault(layer, []).append(head)
    for layer, heads in by_layer.items():

        def zero(_: str, values: F32, layer: int = layer, heads: Sequence[int] = heads) -> F32:
            for head in heads:
                values[:, layout.columns(layer, head, values.shape[1])] = 0
            return values

        patch[f"blocks.{layer}.attn.z"] = zero
    held: dict[int, F32] = {}
    for layer in ablation.layers:

        def keep(_: str, values: F32, layer: int = layer) -> None:
            held[layer] = values.copy()

        def skip(_: str, values: F32, layer: int = layer) -> F32:
            # Of the last block only rows with logits are left: here all of them, or the last of the batch.
            return held[layer][-len(values) :]

        read["embed" if layer == 0 else f"blocks.{layer - 1}.resid_post"] = keep
        patch[f"blocks.{layer}.resid_post"] = skip
    return read, patch


def _both(first: Mapping[str, Reader], second: Mapping[str, Reader]) -> dict[str, Reader]:
    """Readers of both; a tap that both read is handed to one after the other."""

    def one_after_the_other(tap: str, values: F32) -> None:
        first[tap](tap, values)
        second[tap](tap, values)

    return {**first, **second, **dict.fromkeys(first.keys() & second.keys(), one_after_the_other)}


def _state_taps(request: ReadRequest, facts: ModelFacts) -> list[str]:
    if not request.states:
        return []
    layered = [f"blocks.{layer}.{kind}" for kind in request.states for layer in range(facts.n_layer)]
    return ["embed", *layered, "ln_final.normalized"]


def _completed(seen: Mapping[str, F32], request: ReadRequest, facts: ModelFacts) -> dict[str, F32]:
    """States by name, with those that llama.cpp did not name; blocks that are off add nothing."""
    layers = range(facts.n_layer)
    held = HeldStates({"embed": seen["embed"], "final": seen["ln_final.normalized"]})
    held.arrays |= {kind: np.stack([seen[f"blocks.{layer}.{kind}"] for layer in layers]) for kind in request.states}
    complete_states(held, facts.first_layer_alone)
    for layer in request.ablation.layers:
        for kind, values in (("attn_out", 0), ("mlp_out", 0), ("resid_mid", held.inputs(layer))):
            if kind in held:
                held.arrays[kind][layer] = values
    return held.arrays


def _settings(request: ReadRequest, facts: ModelFacts, n: int) -> SessionSettings:
    """A context as long as the text, in one batch; without flash attention where the settings allow it.

    Everything is read from the same kind of decode, so that the states are those that the patterns led to.
    """
    settings = request.settings
    if request.attention:
        settings = settings.with_pattern()
    elif not settings.has_quantized_v:
        settings = replace(settings, flash_attention="off")
    # Where tokens attend to later ones, llama.cpp wants all of them at once, and aborts otherwise.
    return replace(settings, n_ctx=n, n_batch=n, n_ubatch=min(settings.n_ubatch, n) if facts.causal else n)


def _check_size(request: ReadRequest, facts: ModelFacts, n: int) -> None:
    heads = sum(facts.heads)
    size = 4 * n * n * heads * len(_BY_KEY & set(request.attention))
    size += 4 * n * facts.d_model * (4 * facts.n_layer + 2) * bool(request.states)
    # Heads of all layers together are about as wide as the stream.
    size += 4 * n * facts.d_model * facts.n_layer * len({"q", "k", "v"} & set(request.attention))
    size += 4 * n * facts.n_vocab * request.logits
    if size > request.limit_bytes:
        raise CorpusError(
            f"{request.model}: what is read of {n} tokens would take {size / 1e9:.1f} GB, the limit is"
            f" {request.limit_bytes / 1e9:.1f} GB.",
            "Use a shorter prompt.",
        )


def _check_finite(request: ReadRequest, logits: NDArray[Any]) -> None:
    if not np.isfinite(logits).all():
        off = f" with {request.ablation}" if request.ablation is not NOTHING_OFF and request.ablation else ""
        raise EngineError(
            f"{request.model} computes NaN or infinity{off}.",
            NOT_FINITE_HINT,
        )
