"""How far are a candidate's hidden states from the reference's?"""

from __future__ import annotations

import numpy as np
import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.layers.calls import Layers
from gguf_harness.metrics.clusters import cluster_mean, cluster_ratio, layers_and_means, over_layers
from gguf_harness.metrics.records import Estimate, Place, whole
from gguf_harness.metrics.stats import as_estimate

_KINDS = {"resid": "resid_post", "resid_mid": "resid_mid", "attn_out": "attn_out", "mlp_out": "mlp_out"}
_ENDS = ("embed", "final")
_DISTANCES = {"relative_error": "error", "cosine": "cosine"}


@pytest.mark.metric("resid_relative_error")
def test_states_stay_close_to_reference(
    candidate: Subject, reference: Subject, layers_of: Layers, record: Record, gate: GateCheck
) -> None:
    """Relative error and cosine of the residual stream and of the updates by attention and MLP, by layer."""
    arrays, layers = layers_of.compare(candidate, reference).arrays, layers_of.selected(candidate)
    measured = {
        f"{name}_{metric}": arrays[f"{what}_{kind}"]
        for name, kind in _KINDS.items()
        if f"error_{kind}" in arrays
        for metric, what in _DISTANCES.items()
    }
    estimates = layers_and_means(measured, arrays["starts"], layers)
    estimates += [
        as_estimate(f"{end}_{metric}", cluster_mean(arrays[f"{what}_{end}"], arrays["starts"]))
        for end in _ENDS
        for metric, what in _DISTANCES.items()
    ]
    record(estimates)
    gate(whole(estimates))


@pytest.mark.metric("resid_cka")
def test_representations_stay_alike(
    candidate: Subject, reference: Subject, layers_of: Layers, record: Record, gate: GateCheck
) -> None:
    """Linear CKA of the residual streams over the tokens of all prompts."""
    arrays, layers = layers_of.compare(candidate, reference).arrays, layers_of.selected(candidate)
    n, clusters = len(arrays["tokens"]), len(arrays["starts"]) - 1
    errors = [None if np.isnan(se) else se for se in arrays["cka_se"].tolist()]
    estimates = [
        Estimate("resid_cka", arrays["cka"][layer], n, errors[layer], clusters=clusters, place=Place(layer))
        for layer in layers
    ]
    record(estimates, detail="error by jackknife over prompts")
    gate(estimates)


@pytest.mark.metric("error_amplification")
def test_which_layers_amplify_errors(
    candidate: Subject, reference: Subject, layers_of: Layers, record: Record, gate: GateCheck
) -> None:
    """The relative error after a block divided by that before it: above 1 the block increases the error."""
    arrays, layers = layers_of.compare(candidate, reference).arrays, layers_of.selected(candidate)
    before = np.concatenate([arrays["error_embed"][None], arrays["error_resid_post"][:-1]])
    estimates = []
    for layer in layers:
        try:
            ratio = cluster_ratio(arrays["error_resid_post"][layer], before[layer], arrays["starts"])
        except NoData:
            continue  # no error comes in
        estimates.append(as_estimate("error_amplification", ratio, Place(layer)))
    if not estimates:
        pytest.skip("the input of these layers has no error: there is nothing to amplify")
    record(estimates)
    gate(estimates)


@pytest.mark.metric("final_relative_error")
def test_states_of_a_prompt(
    candidate: Subject, reference: Subject, prompt: Prompt, layers_of: Layers, record: Record
) -> None:
    """One prompt's states compared with the reference's: the stream, averaged over layers, and after the final norm."""
    result, layers = layers_of.compare(candidate, reference), layers_of.selected(candidate)
    if prompt.id in result.facts["problems"]:
        pytest.skip(result.facts["problems"][prompt.id])
    index = result.facts["prompts"].index(prompt.id)
    part = slice(*(int(place) for place in result.arrays["starts"][index : index + 2]))
    together = [0, part.stop - part.start]
    stream = over_layers("resid_relative_error", result.arrays["error_resid_post"][:, part], together, layers)
    final = [
        as_estimate(f"final_{metric}", cluster_mean(result.arrays[f"{what}_final"][part], together))
        for metric, what in _DISTANCES.items()
    ]
    assert stream is not None
    record(stream, final)
