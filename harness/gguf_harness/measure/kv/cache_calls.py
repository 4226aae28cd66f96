"""What types of the KV cache cost in memory, and what they change in it: measured on prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import EngineError, NoData
from gguf_harness.inputs.cache_limits import cache_facts, cache_layout
from gguf_harness.measure.kv.cache_tasks import (
    PATTERN_ROWS,
    CacheRequest,
    compare_caches,
    measure_bytes,
    quantize_layers,
)
from gguf_harness.measure.measurement import ARRAYS, Job, Measurement
from gguf_harness.metrics.cached_attention import head_error_estimates, pattern_estimates, prediction_rank
from gguf_harness.metrics.clusters import by_layer, cluster_mean
from gguf_harness.metrics.pattern_comparison import HeadPlace, PatternComparison
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.stats import as_estimate, mean_with_errors

if TYPE_CHECKING:
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.store.arrays import Arrays

__all__ = ["CacheErrors", "CacheLayers", "KVCache"]

_BYTES: Final = Measurement("kv/bytes", 1, measure_bytes, "contexts", ARRAYS)
_COMPARED: Final = Measurement("kv/compared", 1, compare_caches, "prompts", ARRAYS)
_LAYERS: Final = Measurement("kv/layers", 1, quantize_layers, "prompts", ARRAYS)
_CELLS: Final = 256
_MOST_FLOOR: Final = 0.5
"""Share of a typical layer's KL that rounding alone may cause, so that layers can be put in an order."""


@dataclass(frozen=True, slots=True)
class CacheErrors:
    """How far a cache is from the full one; of the arrays that `compare_caches` returns."""

    _arrays: Arrays

    @property
    def reason(self) -> str | None:
        """Why attention could not be computed; None if it could."""
        reasons = self._arrays["reason"].tolist()
        return str(reasons[0]) if reasons else None

    def vectors(self) -> list[Estimate]:
        """Errors and cosines of keys and of values: over all, by layer and by head."""
        heads = _places(self._arrays["kv_heads"])
        estimates = []
        for name in ("key_error", "key_cosine", "value_error", "value_cosine"):
            values = self._arrays[name].astype(np.float64)
            if not np.isnan(values).all():
                estimates += head_error_estimates(f"kv_{name}", values, heads)
        return estimates

    def patterns(self) -> list[Estimate]:
        """Distance of patterns: over all, of each head, and of the worst."""
        arrays, start, prompts = self._arrays, 0, []
        for index, rows in enumerate(arrays["rows"].tolist()):
            part = slice(start, start + rows)
            measures: dict[str, Any] = {name: arrays[name][:, part] for name in PATTERN_ROWS}
            prompts.append(PatternComparison(cosine=arrays["cosine"][index], **measures))
            start = part.stop
        return pattern_estimates(prompts, _places(arrays["heads"]))

    def predicted(self) -> list[Estimate]:
        """Predicted error of each layer."""
        columns = self._arrays["predicted"].T
        return [
            as_estimate("kv_layer_predicted", mean_with_errors(values[:, None]), Place(layer))
            for layer, values in zip(self._arrays["layers"].tolist(), columns, strict=True)
        ]

    def stream_change(self, layers: CacheLayers) -> list[Estimate]:
        """Predicted change of the residual stream by each layer; none where llama.cpp's graph does not name it."""
        changes = self._on_prompts_of(layers) * layers.shares
        if np.isnan(changes).any():
            return []
        return [
            as_estimate("kv_layer_stream_change", mean_with_errors(values[:, None]), Place(layer))
            for layer, values in zip(layers.arrays["layers"].tolist(), changes.T, strict=True)
        ]

    def _on_prompts_of(self, layers: CacheLayers) -> NDArray[np.float64]:
        """[prompt, layer] predicted errors on the prompts on which layers were patched, and of these layers."""
        rows, columns = (
            [self._arrays[name].tolist().index(each) for each in layers.arrays[name].tolist()]
            for name in ("prompts", "layers")
        )
        return self._arrays["predicted"].astype(np.float64)[np.ix_(rows, columns)]

    def rank(self, layers: CacheLayers) -> Estimate:
        """Rank correlation of the predicted change with the KL that each layer causes.

        Raises:
            NoData: too few layers, or all the same, or what they cause is not above rounding.
        """
        arrays = layers.arrays
        typical, floor = float(np.median(arrays["kld"].mean(axis=1))), float(arrays["floor"].mean())
        if not floor < _MOST_FLOOR * typical:
            raise NoData(
                f"What single layers cause, {typical:.2g} nats, is not above what a millionth in the first layer"
                f" causes, {floor:.2g} nats: this model's rounding carries any change on, and hides an order of layers."
            )
        predicted = self._on_prompts_of(layers)
        if not np.isnan(layers.shares).any():
            predicted *= layers.shares
        caused = dict(zip(arrays["layers"].tolist(), arrays["kld"], strict=True))
        return prediction_rank(predicted, caused, arrays["layers"].tolist(), arrays["starts"])


@dataclass(frozen=True, slots=True)
class CacheLayers:
    """KL divergence with single layers' caches quantized; `arrays` as `quantize_layers` returns them."""

    arrays: Arrays

    @property
    def shares(self) -> NDArray[np.float64]:
        """[prompt, layer] norm of attention's update over that of the stream after it; NaN where that is not known."""
        return self.arrays["share"].astype(np.float64)

    def caused(self) -> list[Estimate]:
        """KL of each layer, of all together, of the real run, between these two, and of rounding alone."""
        arrays, starts = self.arrays, self.arrays["starts"]
        rows = dict(enumerate(arrays["layers"].tolist()))
        layers = by_layer("kv_layer_kld", arrays["kld"], starts, rows)
        whole = {"kv_layer_kld": "all", "kv_run_kld": "run", "kv_patched_gap": "gap", "kv_layer_floor": "floor"}
        return [
            *(as_estimate(metric, cluster_mean(arrays[name], starts)) for metric, name in whole.items()),
            *(_at(estimate, rows[row]) for row, estimate in layers.items()),
        ]


def _at(estimate: Estimate, layer: int) -> Estimate:
    return replace(estimate, place=Place(layer))


class KVCache:
    """The cache of a subject against the same file's full one.

    Args:
        core: runs measurements.
        prompts: prompts to read.
    """

    def __init__(self, core: Core, prompts: PromptSet) -> None:
        self._core = core
        self._prompts = prompts

    def bytes(self, model: Subject) -> list[Estimate]:
        """Bytes of the cache, as llama.cpp allocates it.

        Raises:
            EngineError: llama.cpp's buffers are not those of the formula.
            NoData: the model has no such cache.
        """
        cache_layout(model.info)
        key = self._core.key(model)
        arrays = self._core.measure(
            Job(_BYTES, f"cache of {model.name}", key, lambda _: (self._request(model, model),), subjects=(model,))
        )
        one, more = arrays["measured"].tolist()
        if [one, more] != arrays["formula"].tolist():
            raise EngineError(
                f"llama.cpp's cache of {model.name} takes {one:,} bytes, and {more:,} with {_CELLS} tokens more; the"
                f" file's header gives {', '.join(f'{value:,}' for value in arrays['formula'].tolist())}.",
                "Report it with the file's architecture: the formula of its cache is wrong.",
            )
        for fact in cache_facts(model.info, model.settings):
            # Once for a file, whatever types it is run with.
            self._core.notes.warn(f"{model.model.name}: {fact}")
        detail = f"{model.settings.kv}, one sequence of {model.settings.n_ctx} tokens: {one:,} bytes"
        return [
            Estimate("kv_bytes_per_token", (more - one) / _CELLS, 1, detail=detail),
            Estimate("kv_sequence_bytes", one, 1),
        ]

    def compare(self, model: Subject, full: Subject) -> CacheErrors:
        """Keys, values and patterns with a subject's cache, against the full one; see `compare_caches`."""
        job = Job(
            _COMPARED,
            f"cache of {model.name}",
            self._key(model, full),
            lambda _: (self._request(model, full),),
            subjects=(model,),
        )
        arrays = self._core.measure(job)
        self._core.note_prompts(self._prompts)
        problems = [str(problem) for problem in arrays["problems"]]
        self._core.notes.warn_of_prompts(model.name, problems, len(self._prompts.prompts))
        return CacheErrors(arrays)

    def layers(self, model: Subject) -> CacheLayers:
        """What keys and values of each layer of --gguf-layers cause; see `quantize_layers`."""
        chosen = self._core.options.layers
        key = self._core.key(model) | {"prompts": self._prompts.sha256, "layers": chosen}
        job = Job(
            _LAYERS,
            f"cache of {model.name} by layer",
            key,
            lambda _: (replace(self._request(model, model), layers=chosen),),
            subjects=(model,),
        )
        return CacheLayers(self._core.measure(job))

    def predicted(self, model: Subject, compared: CacheErrors) -> list[Estimate]:
        """Predicted changes by layer, and whether they put layers in the order of what they cause, if that has one.

        Raises:
            NoData: what single layers cause cannot be measured.
        """
        layers = self.layers(model)
        estimates = [*compared.predicted(), *compared.stream_change(layers)]
        try:
            return [*estimates, compared.rank(layers)]
        except NoData as error:
            self._core.notes.warn(f"{model.name}: {error.message}")
            return estimates

    def _key(self, model: Subject, full: Subject) -> dict[str, Any]:
        return self._core.key(model) | {"full": full.settings.to_json(), "prompts": self._prompts.sha256}

    def _request(self, model: Subject, full: Subject) -> CacheRequest:
        return CacheRequest(model.name, model.files, model.settings, full.settings, self._prompts.prompts)


def _places(values: Any) -> list[HeadPlace]:
    return [(int(layer), int(head)) for layer, head in values]
