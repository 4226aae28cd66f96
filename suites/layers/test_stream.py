"""What does the residual stream look like, and how do blocks update it?"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.layers.calls import Layers
from gguf_harness.measure.layers.tasks import LayersResult
from gguf_harness.metrics.clusters import by_layer, cluster_mean, cluster_ratio, layers_and_means, over_layers
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.stats import as_estimate

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
_GAINS = ("attn_norm_gain", "mlp_norm_gain")


@pytest.mark.metric("resid_norm")
def test_residual_stream(model: Subject, layers_of: Layers, record: Record) -> None:
    """Its norm, its growth, and massive activations."""
    result, layers = layers_of(model), layers_of.selected(model)
    arrays, starts = result.arrays, result.arrays["starts"]
    before = np.concatenate([arrays["norm_embed"][None], arrays["norm"][:-1]])
    for layer, norm in by_layer("resid_norm", arrays["norm"], starts, layers).items():
        growth = cluster_ratio(arrays["norm"][layer], before[layer], starts)
        record(norm, as_estimate("resid_growth", growth, Place(layer)))
    for layer, count in by_layer("massive_activations", arrays["massive"], starts, layers).items():
        record(count, detail=_where(result, layer))
    for metric, name in (("resid_norm", "norm"), ("massive_activations", "massive")):
        mean = over_layers(metric, arrays[name], starts, layers)
        record([] if mean is None else mean)


@pytest.mark.metric("attn_share")
def test_what_blocks_add(model: Subject, layers_of: Layers, record: Record) -> None:
    """Size and direction of the updates by attention and MLP, relative to the stream."""
    arrays, layers = layers_of(model).arrays, layers_of.selected(model)
    record(layers_and_means({name: arrays[key] for name, key in _UPDATES.items()}, arrays["starts"], layers))


@pytest.mark.metric("effective_rank")
def test_shape_of_states(model: Subject, layers_of: Layers, record: Record) -> None:
    """Similarity of the tokens of a prompt, the number of directions they fill, and outlier dimensions."""
    arrays, layers = layers_of(model).arrays, layers_of.selected(model)
    each_prompt = np.arange(arrays["similarity"].shape[1] + 1)
    try:
        record(layers_and_means({name: arrays[key] for name, key in _SHAPES.items()}, each_prompt, layers))
    except NoData as error:
        pytest.skip(f"every prompt is too short: {error.message}")


@pytest.mark.metric("final_norm_gain")
def test_norms(model: Subject, layers_of: Layers, record: Record) -> None:
    """Effect of the final norm, and of the norms before attention and MLP."""
    arrays, layers = layers_of(model).arrays, layers_of.selected(model)
    final = [
        as_estimate(name, cluster_mean(arrays[name], arrays["starts"]))
        for name in ("final_norm_gain", "final_norm_cosine")
    ]
    record(final)
    gains: dict[str, NDArray[np.generic]] = {name: arrays[name] for name in _GAINS if name in arrays}
    if gains:
        record(layers_and_means(gains, arrays["starts"], layers))


def _where(result: LayersResult, layer: int) -> str | None:
    places = [
        f"dimension {entry['dimension']} at token {entry['position']} of {entry['prompt']!r}: {entry['value']:.4g},"
        f" {entry['ratio']:.0f} times the median"
        for entry in result.facts["massive"][layer][:3]
    ]
    return "; ".join(places) or None
