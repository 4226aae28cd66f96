"""What can be read of a model: found by decoding one token with each kind of tap. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import HarnessError, ModelError, NoLanguageHead, OptionError, TapNotFound
from gguf_harness.measure.attention.steps import attention_facts
from gguf_harness.measure.layers.states import NOT_ALONE, readable_kinds, short_settings
from gguf_harness.measure.layers.unembedding import ModelFile
from gguf_harness.measure.live.requests import ModelFacts

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["describe_model"]

_KINDS: Final = ("pattern", "scores", "q", "k", "v")


def describe_model(worker: WorkerContext, name: str, files: Sequence[Path], settings: SessionSettings) -> ModelFacts:
    """Load a model and find out what can be read of it.

    Raises:
        HarnessError: the model cannot be loaded.
    """
    from gguf_harness.engine.chat import chat_template

    model = worker.model(files, settings.n_gpu_layers)
    weights = ModelFile(files)
    n_layer = int(weights.number("block_count") or 0)
    missing: list[str] = []
    predicts = _predicts(model, name, missing)
    decodes = model.has_decoder and not model.has_encoder
    patterns = _patterns(model, weights, settings, n_layer, missing) if decodes else {}
    heads = tuple(len(patterns[layer]) if layer in patterns else 0 for layer in range(n_layer))
    attention = _kinds(model, weights, settings, patterns, missing) if patterns else ()
    states = _states(model, weights, settings, n_layer, missing) if predicts else ()
    kv_heads = weights.metadata.by_layer(f"{weights.architecture}.attention.head_count_kv", n_layer) or heads
    told = attention_facts(weights, settings)
    return ModelFacts(
        name=name,
        architecture=weights.architecture,
        n_layer=n_layer,
        d_model=int(weights.number("embedding_length") or 0),
        n_ctx_train=model.n_ctx_train,
        n_vocab=model.vocabulary.n_tokens,
        heads=heads,
        kv_heads=tuple(kv if count else 0 for kv, count in zip(kv_heads, heads, strict=True)),
        causal=not any((pattern[:, 0, 1] > 0).any() for pattern in patterns.values()),
        window=int(told["step_window"].item()),
        scale=float(told["step_scale"].item()),
        softcap=float(told["step_softcap"].item()),
        attention=attention,
        states=states,
        first_layer_alone=all(tensor not in weights for tensor in NOT_ALONE),
        predicts=predicts,
        chats=chat_template(model) is not None,
        facts=(*_groups(heads, kv_heads), *map(str, told["step_facts"].tolist())),
        missing=tuple(missing),
    )


def _predicts(model: Model, name: str, missing: list[str]) -> bool:
    if model.has_encoder:
        kind = "an encoder and a decoder" if model.has_decoder else "an encoder alone"
        missing.append(
            f"{name} is {kind}: it reads a whole input before it writes, and has no next token after a prompt. Tokens"
            " and the structure of the file are shown; attention, states and predictions are not."
        )
        return False
    try:
        model.require_language_head()
    except NoLanguageHead as error:
        missing.append(f"{error.message} Next tokens, the logit lens and the stream are not shown.")
        return False
    return True


def _patterns(
    model: Model, weights: ModelFile, settings: SessionSettings, n_layer: int, missing: list[str]
) -> dict[int, NDArray[np.float32]]:
    """By layer that has one: the attention pattern of two tokens."""
    try:
        return _read(model, settings.with_pattern(), weights.architecture, n_layer, "pattern")
    except (OptionError, TapNotFound, ModelError) as error:
        missing.append(f"Attention is not shown: {error.message}")
        return {}


def _kinds(
    model: Model,
    weights: ModelFile,
    settings: SessionSettings,
    patterns: Mapping[int, NDArray[np.float32]],
    missing: list[str],
) -> tuple[str, ...]:
    """Kinds of attention tensors that can be read in every layer with a pattern."""
    kinds = ["pattern"]
    for kind in _KINDS[1:]:
        try:
            n_layer = max(patterns) + 1
            if _read(model, settings.with_pattern(), weights.architecture, n_layer, kind).keys() >= patterns.keys():
                kinds.append(kind)
        except TapNotFound:
            continue
    if not {"q", "k", "v"} <= set(kinds):
        missing.append(
            "The steps of attention are not shown: llama.cpp does not name queries, keys and values in models of the"
            f" architecture {weights.architecture}."
        )
    return tuple(kinds)


def _read(
    model: Model, settings: SessionSettings, architecture: str, n_layer: int, kind: str
) -> dict[int, NDArray[np.float32]]:
    """By layer that has it: an attention tensor of two tokens."""
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    values_of: dict[int, NDArray[np.float32]] = {}

    def keep(tap: str, values: NDArray[np.float32]) -> None:
        values_of[int(tap.split(".")[1])] = values

    taps = Taps(
        architecture, n_layer, read={f"blocks.{layer}.attn.{kind}": keep for layer in range(n_layer)}, some=True
    )
    with Context(model, short_settings(settings, 2, 1), taps) as context:
        context.prefill(np.array([max(model.vocabulary.bos, 0)] * 2, dtype=np.int32))
    return values_of


def _states(
    model: Model, weights: ModelFile, settings: SessionSettings, n_layer: int, missing: list[str]
) -> tuple[str, ...]:
    try:
        # As states are read: in the decode that reads attention.
        settings = replace(settings, flash_attention="auto" if settings.has_quantized_v else "off")
        kinds = readable_kinds(
            model, short_settings(settings, 1, 1), weights.architecture, n_layer, weights.architecture
        )
    except HarnessError as error:
        missing.append(f"The residual stream, the logit lens and the effect of layers are not shown: {error.message}")
        return ()
    return tuple(kinds)


def _groups(heads: Sequence[int], kv_heads: Sequence[Any]) -> list[str]:
    """Grouped-query attention, in words."""
    pairs = {(count, kv) for count, kv in zip(heads, kv_heads, strict=True) if count and kv and kv < count}
    if len(pairs) > 1:
        return ["Grouped-query attention: in most layers several query heads share one head of keys and values."]
    return [
        f"Grouped-query attention: {count} query heads share {kv} head{'s' if kv > 1 else ''} of keys and values"
        + (f": one for every {count // kv}." if kv > 1 else ".")
        for count, kv in pairs
    ]
