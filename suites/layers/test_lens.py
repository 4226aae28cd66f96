"""What would the model predict after each layer, and which layers contribute?"""

from __future__ import annotations

import numpy as np
import pytest

from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.layers.calls import Layers
from gguf_harness.measure.layers.tasks import LayersResult
from gguf_harness.metrics.clusters import by_layer, cluster_mean, layers_and_means
from gguf_harness.metrics.stats import as_estimate

_SAME_TOP = 0.9
"""llama.cpp rounds activations to the precision of its weights, which changes some near ties."""
_LENS = ("lens_final_p", "lens_entropy", "lens_kl")


@pytest.mark.metric("lens_decided_layer")
def test_logit_lens(model: Subject, layers_of: Layers, record: Record) -> None:
    """First layer with the final prediction, and distance of each layer's distribution from the last one's."""
    result, layers = layers_of(model), layers_of.selected(model)
    _skip_without_lens(result)
    arrays, starts = result.arrays, result.arrays["starts"]
    agree = (arrays["lens_top"] == arrays["lens_top"][-1]).astype(np.float64)
    record(by_layer("lens_agreement", agree, starts, layers))
    record([by_layer(metric, arrays[metric], starts, layers) for metric in _LENS])
    decided = as_estimate("lens_decided_layer", cluster_mean(arrays["lens_decided"], starts))
    record(decided, detail=f"of {len(agree)} layers, counted from 0")
    # The lens at the last layer uses the file's norm and unembedding: it must agree with llama.cpp's output.
    same = np.mean(arrays["lens_top"][-1] == arrays["output_top"])
    assert same > _SAME_TOP, f"the lens at the last layer agrees with the output on only {same:.0%} of the tokens"


@pytest.mark.metric("direct_mlp")
def test_direct_logit_attribution(model: Subject, layers_of: Layers, record: Record) -> None:
    """Contributions of the embeddings, and of attention and MLP of each layer, to the predicted token's logit."""
    result, layers = layers_of(model), layers_of.selected(model)
    _skip_without_lens(result)
    arrays, starts = result.arrays, result.arrays["starts"]
    if "direct_logit" not in arrays:
        pytest.skip("llama.cpp does not separate attention and MLP in this architecture")
    parts = {name: arrays[name] for name in ("direct_attn", "direct_mlp")}
    record(layers_and_means(parts, starts, layers))
    record(as_estimate("direct_embed", cluster_mean(arrays["direct_embed"], starts)))
    whole = sum(np.nansum(values, axis=0) for values in parts.values()) + arrays["direct_embed"]
    scale = np.abs(arrays["direct_logit"]).max() + 1
    assert np.abs(whole + arrays["direct_constant"] - arrays["direct_logit"]).max() < 1e-3 * scale


def _skip_without_lens(result: LayersResult) -> None:
    if result.facts["lens_problem"]:
        pytest.skip(result.facts["lens_problem"])
