"""What is the effect of skipping a layer, and which layers cause a candidate's loss?"""

from __future__ import annotations

import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.layers.calls import Layers
from gguf_harness.metrics.clusters import cluster_mean, cluster_ratio
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.stats import as_estimate


@pytest.mark.metric("layer_importance")
def test_layer_importance(model: Subject, layers_of: Layers, record: Record) -> None:
    """Next-token loss on the prompts without each block, minus the loss with it."""
    arrays = layers_of.importance(model)
    if arrays["nll"].size == 0:
        pytest.skip("every prompt has a single token: there is nothing to predict")
    estimates = [
        as_estimate("layer_importance", cluster_mean(skipped - arrays["nll"], arrays["starts"]), Place(layer))
        for layer, skipped in zip(arrays["layers"].tolist(), arrays["skipped"], strict=True)
    ]
    record(estimates, detail="block skipped")


@pytest.mark.metric("layer_kl_left")
def test_which_layers_cause_the_loss(candidate: Subject, reference: Subject, layers_of: Layers, record: Record) -> None:
    """Share of the candidate's KL that remains with the reference's residual stream after each layer.

    A layer causes the drop from the previous one; layer 0 includes the embeddings' part.
    """
    arrays = layers_of.interchange(candidate, reference)
    shares = []
    for layer, replaced in zip(arrays["layers"].tolist(), arrays["replaced"], strict=True):
        try:
            share = cluster_ratio(replaced, arrays["kld"], arrays["starts"])
        except NoData:
            pytest.skip("the candidate predicts the same as the reference: there is no loss to explain")
        shares.append(as_estimate("layer_kl_left", share, Place(layer)))
    record(as_estimate("embed_kl_left", cluster_ratio(arrays["embed"], arrays["kld"], arrays["starts"])))
    record(shares, detail="after this layer everything is the candidate's")
    # Up to rounding, no divergence is below zero.
    assert all(share.value > -1e-3 for share in shares)
