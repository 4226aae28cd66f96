"""What is lost without a layer, and which layers cause a candidate's loss?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.inputs.subjects import Subject
from gguf_harness.metrics.clusters import cluster_mean, cluster_ratio
from gguf_harness.metrics.stats import as_estimate
from gguf_harness.pytest_plugin.fixture_types import GateCheck, Record
from gguf_harness.runner.layers import Layers


@pytest.mark.metric("layer_importance")
def test_layer_importance(model: Subject, layers_of: Layers, record: Record, gate: GateCheck) -> None:
    """Next-token loss on the prompts without each block, less the loss with it."""
    arrays = layers_of.importance(model)
    if arrays["nll"].size == 0:
        pytest.skip("every prompt has a single token: there is nothing to predict")
    found = {
        int(layer): as_estimate("layer_importance", cluster_mean(skipped - arrays["nll"], arrays["starts"]))
        for layer, skipped in zip(arrays["layers"], arrays["skipped"], strict=True)
    }
    for layer, each in found.items():
        record(each, layer=layer, detail="block skipped")
    gate.where_set(*found.values())


@pytest.mark.metric("layer_kl_left")
def test_which_layers_cause_the_loss(
    candidate: Subject, reference: Subject, layers_of: Layers, record: Record, gate: GateCheck
) -> None:
    """Share of the candidate's KL that is left with the reference's residual stream put in after each layer.

    What it falls by from one layer to the next is that layer's doing; layer 0 has the embeddings' part as well.
    """
    arrays = layers_of.interchange(candidate, reference)
    found = {}
    for layer, replaced in zip(arrays["layers"], arrays["replaced"], strict=True):
        try:
            share = cluster_ratio(replaced, arrays["kld"], arrays["starts"])
        except NoData:
            pytest.skip("the candidate predicts what the reference does: there is no loss to explain")
        found[int(layer)] = as_estimate("layer_kl_left", share)
    record(as_estimate("embed_kl_left", cluster_ratio(arrays["embed"], arrays["kld"], arrays["starts"])))
    for layer, each in found.items():
        record(each, layer=layer, detail="behind this layer everything is the candidate's")
    # Rounding aside, no divergence is below zero.
    assert all(each.value > -1e-3 for each in found.values())
    gate.where_set(*found.values())
