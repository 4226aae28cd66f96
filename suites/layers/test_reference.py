"""How far are a candidate's hidden states from the reference's, token by token?"""

from __future__ import annotations

import numpy as np
import pytest

from gguf_harness.errors import NoData
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.inputs.subjects import Subject
from gguf_harness.metrics.clusters import by_layer, cluster_mean, cluster_ratio, over_layers
from gguf_harness.metrics.records import Estimate, PlacedEstimate
from gguf_harness.metrics.stats import as_estimate
from gguf_harness.pytest_plugin.fixture_types import GateCheck, Record
from gguf_harness.runner.layers import Layers

_KINDS = {"resid": "resid_post", "resid_mid": "resid_mid", "attn_out": "attn_out", "mlp_out": "mlp_out"}
_ENDS = ("embed", "final")


@pytest.mark.metric("resid_relative_error")
def test_states_stay_close_to_reference(
    candidate: Subject, reference: Subject, layers_of: Layers, record: Record, gate: GateCheck
) -> None:
    """Relative error and cosine of the residual stream and of what attention and MLP add, by layer."""
    arrays, layers = layers_of.compare(candidate, reference).arrays, layers_of.selected(candidate)
    starts = arrays["starts"]
    overall: list[Estimate] = []
    for name, kind in _KINDS.items():
        if f"error_{kind}" not in arrays:
            continue
        for metric, values in (
            (f"{name}_relative_error", arrays[f"error_{kind}"]),
            (f"{name}_cosine", arrays[f"cosine_{kind}"]),
        ):
            for layer, each in by_layer(metric, values, starts, layers).items():
                record(each, layer=layer)
            whole = over_layers(metric, values, starts, layers)
            overall += [whole] if whole is not None else []
    record(*overall, detail=f"mean of {len(layers)} layers")
    ends = [
        as_estimate(f"{end}_{metric}", cluster_mean(arrays[f"{what}_{end}"], starts))
        for end in _ENDS
        for metric, what in (("relative_error", "error"), ("cosine", "cosine"))
    ]
    record(*ends)
    gate.where_set(*(PlacedEstimate(each, detail=f"mean of {len(layers)} layers") for each in overall), *ends)


@pytest.mark.metric("resid_cka")
def test_representations_stay_alike(
    candidate: Subject, reference: Subject, layers_of: Layers, record: Record, gate: GateCheck
) -> None:
    """Linear CKA of the residual streams over the tokens of all prompts."""
    arrays, layers = layers_of.compare(candidate, reference).arrays, layers_of.selected(candidate)
    n, clusters = len(arrays["tokens"]), len(arrays["starts"]) - 1
    found: dict[int, Estimate] = {}
    for layer in layers:
        se = float(arrays["cka_se"][layer])
        value = float(arrays["cka"][layer])
        found[layer] = Estimate("resid_cka", value, n, None if np.isnan(se) else se, clusters=clusters)
        record(found[layer], layer=layer, detail="error by jackknife over prompts")
    gate.where_set(*(PlacedEstimate(each, layer) for layer, each in found.items()))


@pytest.mark.metric("error_amplification")
def test_which_layers_amplify_errors(
    candidate: Subject, reference: Subject, layers_of: Layers, record: Record, gate: GateCheck
) -> None:
    """The relative error behind a block over the one in front of it: above 1 the block adds more than it forgives."""
    arrays, layers = layers_of.compare(candidate, reference).arrays, layers_of.selected(candidate)
    before = np.concatenate([arrays["error_embed"][None], arrays["error_resid_post"][:-1]])
    found: dict[int, Estimate] = {}
    for layer in layers:
        try:
            ratio = cluster_ratio(arrays["error_resid_post"][layer], before[layer], arrays["starts"])
        except NoData:
            continue  # no error comes in
        found[layer] = as_estimate("error_amplification", ratio)
        record(found[layer], layer=layer)
    if not found:
        pytest.skip("no error comes into any of these layers: there is nothing to amplify")
    gate.where_set(*(PlacedEstimate(each, layer) for layer, each in found.items()))


@pytest.mark.metric("final_relative_error")
def test_states_of_a_prompt(
    candidate: Subject, reference: Subject, prompt: Prompt, layers_of: Layers, record: Record
) -> None:
    """One prompt's states beside the reference's: the stream, on average over layers, and after the final norm."""
    found, layers = layers_of.compare(candidate, reference), layers_of.selected(candidate)
    if prompt.id in found.facts["problems"]:
        pytest.skip(found.facts["problems"][prompt.id])
    index = found.facts["prompts"].index(prompt.id)
    part = slice(*(int(place) for place in found.arrays["starts"][index : index + 2]))
    whole = [0, part.stop - part.start]
    stream = over_layers("resid_relative_error", found.arrays["error_resid_post"][:, part], whole, layers)
    final = [
        as_estimate(f"final_{metric}", cluster_mean(found.arrays[f"{what}_final"][part], whole))
        for metric, what in (("relative_error", "error"), ("cosine", "cosine"))
    ]
    assert stream is not None
    record(stream, *final)
