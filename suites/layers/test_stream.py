"""What does the residual stream look like, and what do blocks add to it?"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.layers import LayersResult
from gguf_harness.metrics.clusters import by_layer, cluster_mean, cluster_ratio, over_layers
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import as_estimate
from gguf_harness.pytest_plugin.fixture_types import GateCheck, Record
from gguf_harness.runner.layers import Layers

Array = NDArray[np.generic]

_SHAPES = {
    "token_similarity": "similarity",
    "token_similarity_centered": "similarity_centered",
    "effective_rank": "effective_rank",
    "participation_ratio": "participation_ratio",
    "outlier_kurtosis": "kurtosis",
}
_UPDATES = {
    "attn_share": "attn_share",
    "mlp_share": "mlp_share",
    "attn_update_cosine": "attn_cosine",
    "mlp_update_cosine": "mlp_cosine",
}


@pytest.mark.metric("resid_norm")
def test_residual_stream(model: Subject, layers_of: Layers, record: Record, gate: GateCheck) -> None:
    """Its norm, how it grows, and activations that dwarf the others."""
    found, layers = layers_of(model), layers_of.selected(model)
    arrays, starts = found.arrays, found.arrays["starts"]
    before = np.concatenate([arrays["norm_embed"][None], arrays["norm"][:-1]])
    for layer, norm in by_layer("resid_norm", arrays["norm"], starts, layers).items():
        growth = as_estimate("resid_growth", cluster_ratio(arrays["norm"][layer], before[layer], starts))
        record(norm, growth, layer=layer)
    for layer, count in by_layer("massive_activations", arrays["massive"], starts, layers).items():
        record(count, layer=layer, detail=_where(found, layer))
    whole = [over_layers("resid_norm", arrays["norm"], starts, layers)]
    whole += [over_layers("massive_activations", arrays["massive"], starts, layers)]
    overall = [each for each in whole if each is not None]
    record(*overall, detail=f"mean of {len(layers)} layers")
    gate.where_set(*overall)


@pytest.mark.metric("attn_share")
def test_what_blocks_add(model: Subject, layers_of: Layers, record: Record, gate: GateCheck) -> None:
    """Size and direction of what attention and MLP add, beside the stream that they add to."""
    arrays, layers = layers_of(model).arrays, layers_of.selected(model)
    _record_all(arrays["starts"], {name: arrays[key] for name, key in _UPDATES.items()}, layers, record, gate)


@pytest.mark.metric("effective_rank")
def test_shape_of_states(model: Subject, layers_of: Layers, record: Record, gate: GateCheck) -> None:
    """How alike the tokens of a prompt are, how many directions they fill, and whether few dimensions stand out."""
    arrays, layers = layers_of(model).arrays, layers_of.selected(model)
    each_prompt = np.arange(arrays["similarity"].shape[1] + 1)
    try:
        _record_all(each_prompt, {name: arrays[key] for name, key in _SHAPES.items()}, layers, record, gate)
    except NoData as error:
        pytest.skip(f"every prompt is too short: {error.message}")


@pytest.mark.metric("final_norm_gain")
def test_norms(model: Subject, layers_of: Layers, record: Record, gate: GateCheck) -> None:
    """What the final norm does to the stream, and the norms in front of attention and MLP."""
    arrays, layers = layers_of(model).arrays, layers_of.selected(model)
    final = [
        as_estimate(name, cluster_mean(arrays[name], arrays["starts"]))
        for name in ("final_norm_gain", "final_norm_cosine")
    ]
    record(*final)
    gate.where_set(*final)
    gains: dict[str, Array] = {name: arrays[name] for name in ("attn_norm_gain", "mlp_norm_gain") if name in arrays}
    if gains:
        _record_all(arrays["starts"], gains, layers, record, gate)


def _record_all(starts: Array, measured: dict[str, Array], layers: list[int], record: Record, gate: GateCheck) -> None:
    """Rows of each layer, and of their mean; gates decide on the mean."""
    overall: list[Estimate] = []
    for metric, values in measured.items():
        for layer, found in by_layer(metric, values, starts, layers).items():
            record(found, layer=layer)
        whole = over_layers(metric, values, starts, layers)
        if whole is not None:
            overall.append(whole)
    if not overall:
        raise NoData("None of it is known of this model.")
    record(*overall, detail=f"mean of {len(layers)} layers")
    gate.where_set(*overall)


def _where(found: LayersResult, layer: int) -> str | None:
    places = [
        f"dimension {entry['dimension']} at token {entry['position']} of {entry['prompt']!r}: {entry['value']:.4g},"
        f" {entry['ratio']:.0f} times the median"
        for entry in found.facts["massive"][layer][:3]
    ]
    return "; ".join(places) or None
