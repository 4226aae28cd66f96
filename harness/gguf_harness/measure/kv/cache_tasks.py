"""What types of the cache change in it, on prompts, and what each layer's part of that causes. Runs in a worker."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.cache_types import through_cache
from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import NoData, NoPrompt, TapNotFound
from gguf_harness.gguf.cache_layout import read_cache_layout
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.cache_limits import Rotation, cache_shape, rotation
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.kv.cache_reading import MOST_TOKENS, CacheReader, LayerReading, round_queries
from gguf_harness.measure.layers.tasks import kld_rows
from gguf_harness.measure.prompt_inputs import prompt_inputs
from gguf_harness.metrics.cached_attention import attention_pattern, cosines, mix_values, relative_errors
from gguf_harness.metrics.pattern_comparison import compare_patterns

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.taps import Patcher
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.gguf.cache_layout import CacheLayout
    from gguf_harness.store.arrays import Arrays

__all__ = ["PATTERN_ROWS", "CacheRequest", "compare_caches", "measure_bytes", "quantize_layers"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

PATTERN_ROWS: Final = ("cosine_rows", "jsd", "total_variation", "entropy_change", "top_changed")
"""Fields of `PatternComparison` with a value per row."""
_CELLS: Final = 256
_PATCHED_PROMPTS: Final = 6
"""Prompts that are decoded once per layer, taken evenly from all."""
_ERRORS: Final = ("key_error", "key_cosine", "value_error", "value_cosine")


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """What to decode.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how it is run, with the types of the cache.
        full: the same with the cache that others are compared with.
        prompts: with distinct ids.
        layers: whose caches are quantized one at a time; None for all.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    full: SessionSettings
    prompts: tuple[Prompt, ...] = ()
    layers: tuple[int, ...] | None = None

    @property
    def layout(self) -> CacheLayout:
        """The cache, from the file's header."""
        return read_cache_layout(read_header(self.files[0]).metadata)


# -- bytes ------------------------------------------------------------------------------------------------------------


def measure_bytes(worker: WorkerContext, request: CacheRequest) -> Arrays:
    """Size of llama.cpp's buffers for keys and values, of one sequence; sliding windows keep the window.

    Returns:
        measured and formula, [2] each: bytes at the settings' context, and with 256 tokens more.
    """
    from gguf_harness.engine.cache_taps import CacheTaps
    from gguf_harness.engine.context import Context

    model, layout = worker.model(request.files, request.settings.n_gpu_layers), request.layout
    measured, formula = [], []
    for n_ctx in (request.settings.n_ctx, request.settings.n_ctx + _CELLS):
        settings = replace(
            request.settings,
            n_ctx=n_ctx,
            n_batch=n_ctx,
            n_ubatch=min(request.settings.n_ubatch, request.settings.n_ctx),
        )
        taps = CacheTaps(layout.architecture, layout.n_layer)
        with Context(model, settings, taps, full_windows=False) as context:
            context.prefill(np.zeros(1, dtype=np.int32))
        measured.append(taps.buffer_bytes)
        formula.append(layout.total_bytes(cache_shape(settings, full_windows=False)))
    return {"measured": np.array(measured), "formula": np.array(formula)}


# -- keys, values and patterns ----------------------------------------------------------------------------------------


def compare_caches(worker: WorkerContext, request: CacheRequest) -> Arrays:
    """Decode every prompt with both caches, and compare keys, values and patterns.

    Returns:
        prompts, [P] ids, and rows, [P] of each pattern; heads, [H, 2], and kv_heads, [K, 2]: layer and head;
        key_error, key_cosine, value_error and value_cosine, [P, K], NaN where there are no values of their own; layers,
        [L]; predicted, [P, L], the relative change of each layer's attention output by its own keys and values alone;
        cosine, [P, H], and `PATTERN_ROWS`, [H, all rows], of patterns; problems, [.] of prompts; reason, [0 or 1] why
        there are no patterns: then predicted, cosine and rows are left out.

    Raises:
        NoPrompt: no prompt has two tokens and can be decoded.
    """
    model, layout = worker.model(request.files, request.settings.n_gpu_layers), request.layout
    inputs, problems = _inputs(model, request)
    comparison = _Comparison(layout, request.settings)
    longest = max(map(len, inputs.values()))
    with contextlib.ExitStack() as stack:
        full, own = (
            stack.enter_context(CacheReader(model, layout, settings, longest))
            for settings in (request.full, request.settings)
        )
        for done, tokens in enumerate(inputs.values()):
            worker.progress(done, len(inputs))
            comparison.add(own.read(tokens), full.read(tokens))
    return comparison.arrays() | {
        "prompts": np.array(list(inputs)),
        "problems": np.array(problems, dtype=np.str_),
    }


def _inputs(model: Model, request: CacheRequest) -> tuple[dict[str, Tokens], list[str]]:
    """First tokens of prompts with two tokens or more; what is wrong with others."""
    inputs, problems = prompt_inputs(model, request.model, request.prompts, 0, request.settings)
    kept = {prompt: tokens[:MOST_TOKENS] for prompt, (tokens, _) in inputs.items() if len(tokens) > 1}
    if not kept:
        first = next(iter(problems.values()), None)
        raise NoPrompt(
            f"{request.model}: no prompt has two tokens and can be decoded.{f' {first.message}' if first else ''}",
            "Give longer prompts with --gguf-prompts.",
        )
    return kept, [error.message for error in problems.values()]


class _Comparison:
    """Collects what is compared, prompt by prompt."""

    def __init__(self, layout: CacheLayout, settings: SessionSettings) -> None:
        self._layout, self._settings = layout, settings
        self._errors: dict[str, list[F64]] = {name: [] for name in _ERRORS}
        self._predicted: list[list[float]] = []
        self._cosine: list[F64] = []
        self._rows: dict[str, list[NDArray[np.generic]]] = {name: [] for name in PATTERN_ROWS}
        self._heads: list[tuple[int, int]] = []
        self._reason: list[str] = []

    def add(self, own: Mapping[int, LayerReading], full: Mapping[int, LayerReading]) -> None:
        """Both readings of a prompt."""
        errors: dict[str, list[F64]] = {name: [] for name in _ERRORS}
        for layer in self._layout.layers:
            a, b = own[layer.layer], full[layer.layer]
            errors["key_error"].append(relative_errors(a.keys, b.keys))
            errors["key_cosine"].append(cosines(a.keys, b.keys))
            unknown = np.full(layer.heads, np.nan)
            errors["value_error"].append(relative_errors(a.values, b.values) if layer.d_value else unknown)
            errors["value_cosine"].append(cosines(a.values, b.values) if layer.d_value else unknown)
        for name, values in errors.items():
            self._errors[name].append(np.concatenate(values))
        try:
            self._add_patterns(own, full)
        except NoData as error:
            self._reason = [error.message]

    def _add_patterns(self, own: Mapping[int, LayerReading], full: Mapping[int, LayerReading]) -> None:
        predicted, cosine, heads = [], [], []
        rows: dict[str, list[NDArray[np.generic]]] = {name: [] for name in PATTERN_ROWS}
        for layer in own:
            base = full[layer].pattern()
            compared = compare_patterns(own[layer].pattern(), base)
            cosine.append(compared.cosine)
            for name in PATTERN_ROWS:
                rows[name].append(getattr(compared, name))
            predicted.append(self._predict(layer, full[layer], base))
            heads += [(layer, head) for head in range(len(base))]
        self._predicted.append(predicted)
        self._cosine.append(np.concatenate(cosine))
        for name, parts in rows.items():
            self._rows[name].append(np.concatenate(parts))
        self._heads = heads

    def _predict(self, number: int, full: LayerReading, pattern: F32) -> float:
        """Relative change of the output with only this layer's keys and values stored in the types."""
        layer = next(each for each in self._layout.layers if each.layer == number)
        turned = rotation(self._layout, self._settings, layer)
        keys, values = full.keys, full.values
        stored = through_cache(self._settings.cache_type_k, keys, turned.k)
        own_values = (
            through_cache(self._settings.cache_type_v, values, turned.v)
            if layer.d_value
            else stored[..., : values.shape[-1]]
        )
        before = mix_values(pattern, values).astype(np.float64)
        q = round_queries(full.unrotated_q, self._settings.cache_type_k, turned.k)
        after = mix_values(attention_pattern(q, stored, full.attention.scale, full.mask), own_values)
        return float(np.linalg.norm(after - before) / np.linalg.norm(before))

    def arrays(self) -> Arrays:
        """All of it; see `compare_caches`."""
        kv_heads = [(layer.layer, head) for layer in self._layout.layers for head in range(layer.heads)]
        arrays: Arrays = {name: np.stack(values) for name, values in self._errors.items()}
        arrays |= {
            "kv_heads": np.array(kv_heads),
            "layers": np.array([layer.layer for layer in self._layout.layers]),
            "reason": np.array(self._reason, dtype=np.str_),
        }
        if self._reason:
            return arrays
        return arrays | {
            "heads": np.array(self._heads),
            "predicted": np.array(self._predicted),
            "cosine": np.stack(self._cosine),
            "rows": np.array([each.shape[1] for each in self._rows["jsd"]]),
            **{name: np.concatenate(parts, axis=1) for name, parts in self._rows.items()},
        }


# -- single layers ----------------------------------------------------------------------------------------------------

_NO_LAYER, _ALL_LAYERS, _NUDGED = -1, -2, -3
_NUDGE: Final = 1 + 2**-20
"""Less than any type of the cache changes: what follows is what the rest of the model makes of a last digit. Files with
quantized weights round activations, too, and carry it on to where it is as large as what is measured."""


def quantize_layers(worker: WorkerContext, request: CacheRequest) -> Arrays:
    """KL divergence with one layer's keys and values stored in the types, by patching them in a cache in f32.

    Queries are rounded as llama.cpp's CPU backend multiplies them with such keys: with all layers patched, nothing
    remains of the difference from a real run with these types.

    Returns:
        layers, [L]; prompts, [P] ids of some; starts, [P + 1] of their tokens; share, [P, L] norm of attention's update
        of the residual stream over that of the stream after it, NaN where the graph does not name them; kld, [L, n]
        with one layer patched;
        all, [n] with all of them; floor, [n] with the first layer's changed by a millionth; run, [n] of the real run
        with these types; gap, [n] of the patched run from the real one. KL(p || q) in nats, p being what stands first.

    Raises:
        NoPrompt: no prompt has two tokens and can be decoded.
        NoData: keys or values have no names in llama.cpp's graph of this architecture, or only latents are cached.
    """
    model, layout = worker.model(request.files, request.settings.n_gpu_layers), request.layout
    if layout.mla:
        raise NoData("Only latents are cached (MLA): llama.cpp's graph has no keys and values to patch.")
    every, _ = _inputs(model, request)
    inputs = {prompt: every[prompt] for prompt in list(every)[:: -(-len(every) // _PATCHED_PROMPTS)]}
    longest = max(map(len, inputs.values()))
    layers = [layer.layer for layer in layout.layers if request.layers is None or layer.layer in request.layers]
    if not layers:
        raise NoData("None of the layers of --gguf-layers has keys and values of its own.")
    exact = replace(request.settings, cache_type_k="f32", cache_type_v="f32", flash_attention="off")
    count = count_lanes(request.settings)
    parts: dict[int, list[F64]] = {layer: [] for layer in (*layers, _NUDGED, _ALL_LAYERS)}
    run, gap = [], []
    patched = _patched_settings(exact, longest, count)
    try:
        with (
            Lanes(count, lambda: _Lane(model, layout, request.settings, patched)) as lanes,
            CacheReader(model, layout, request.settings, longest) as real,
        ):
            for done, tokens in enumerate(inputs.values()):
                worker.progress(done, len(inputs))
                base, *after = lanes.map(functools.partial(_Lane.logits, tokens=tokens), (_NO_LAYER, *parts))
                for layer, logits in zip(parts, after, strict=True):
                    parts[layer].append(kld_rows(base, logits))
                own = real.logits(tokens)
                run.append(kld_rows(base, own))
                gap.append(kld_rows(own, after[-1]))
    except TapNotFound as error:
        raise NoData(f"Keys and values of single layers cannot be replaced: {error.message}") from None
    return {
        "layers": np.array(layers),
        "prompts": np.array(list(inputs)),
        "share": _update_shares(model, layout, layers, patched, inputs.values()),
        "starts": np.concatenate([[0], np.cumsum([len(each) for each in run])]),
        "kld": np.stack([np.concatenate(parts[layer]) for layer in layers]),
        "all": np.concatenate(parts[_ALL_LAYERS]),
        "floor": np.concatenate(parts[_NUDGED]),
        "run": np.concatenate(run),
        "gap": np.concatenate(gap),
    }


def _update_shares(
    model: Model, layout: CacheLayout, layers: Sequence[int], settings: SessionSettings, prompts: Collection[Tokens]
) -> F64:
    """[prompt, layer] how much of the residual stream after attention is its update; NaN if that has no name."""
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    streams: dict[str, F32] = {}

    def keep(tap: str, values: F32) -> None:
        streams[tap] = values

    places = {
        layer: (f"blocks.{layer - 1}.resid_post" if layer else "embed", f"blocks.{layer}.resid_mid") for layer in layers
    }
    shares = np.full((len(prompts), len(places)), np.nan)
    with contextlib.suppress(TapNotFound):
        taps = Taps(layout.architecture, layout.n_layer, read={tap: keep for pair in places.values() for tap in pair})
        with Context(model, settings, taps) as context:
            for row, tokens in enumerate(prompts):
                context.logits(tokens)
                for column, (before, after) in enumerate(places.values()):
                    update = np.linalg.norm(streams[after] - streams[before])
                    shares[row, column] = update / np.linalg.norm(streams[after])
    return shares


def _patched_settings(settings: SessionSettings, longest: int, lanes: int) -> SessionSettings:
    return replace(
        settings, n_ctx=longest, n_batch=longest, n_ubatch=longest, threads=max(1, settings.threads // lanes)
    )


class _Lane(contextlib.AbstractContextManager["_Lane"]):
    """A context in which some layers' keys and values are what types of the cache leave of them, and queries too."""

    def __init__(self, model: Model, layout: CacheLayout, types: SessionSettings, settings: SessionSettings) -> None:
        from gguf_harness.engine.context import Context
        from gguf_harness.engine.taps import Taps

        self._patches = {
            layer.layer: _patches(layer.layer, types, rotation(layout, types, layer)) for layer in layout.layers
        }
        self._taps = Taps(layout.architecture, layout.n_layer, changing=True)
        self._context = Context(model, settings, self._taps)

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def logits(self, layer: int, *, tokens: Tokens) -> F32:
        """Logits of a prompt with a layer patched, none, all, or the first one nudged."""
        chosen: Sequence[int] = {_NO_LAYER: (), _ALL_LAYERS: tuple(self._patches)}.get(layer, (layer,))
        if layer == _NUDGED:
            patch: dict[str, Patcher] = dict.fromkeys(next(iter(self._patches.values())), _nudge)
        else:
            patch = {tap: each for number in chosen for tap, each in self._patches[number].items()}
        self._taps.watch(patch=patch)
        return self._context.logits(tokens)


def _nudge(_: str, values: F32) -> F32:
    return values * np.float32(_NUDGE)


def _patches(layer: int, types: SessionSettings, turned: Rotation) -> dict[str, Patcher]:
    def queries(_: str, values: F32) -> F32:
        return round_queries(values, types.cache_type_k, turned.k)

    def keys(_: str, values: F32) -> F32:
        return through_cache(types.cache_type_k, values, turned.k)

    def values_of(_: str, values: F32) -> F32:
        return through_cache(types.cache_type_v, values, turned.v)

    patches = {"q": queries, "k": keys, "v": values_of}
    return {f"blocks.{layer}.attn.{part}": patch for part, patch in patches.items()}
