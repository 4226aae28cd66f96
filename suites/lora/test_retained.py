"""Does an adapter survive the quantization of its base?"""

from __future__ import annotations

import numpy as np
import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import GateCheck, Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.lora.calls import LoraEffects
from gguf_harness.metrics.adapter_effects import effect_correlation, effect_of, effect_slope, loss_share
from gguf_harness.metrics.stats import as_estimate, mean_with_errors
from gguf_harness.suites.lora.test_effect import text_of


@pytest.mark.metric("lora_effect_retained")
def test_adapter_survives_quantization(
    adapted_candidate: Subject, base: Subject, lora: LoraEffects, record: Record, gate: GateCheck
) -> None:
    """The adapter's effect on a quantized base, beside its effect on the reference, token by token."""
    text = text_of(lora, adapted_candidate)
    own, other = lora.effect(adapted_candidate, base, text), lora.on_reference(adapted_candidate, text)
    effect, on_reference = (effect_of(arrays["nll"], arrays["nll_base"]) for arrays in (own, other))
    estimates = [
        effect_slope(effect, on_reference),
        effect_correlation(effect, on_reference),
        as_estimate("lora_effect_kld", mean_with_errors(own["kld_effect"].astype(np.float64))),
    ]
    try:
        estimates.append(loss_share(effect, on_reference))
    except NoData as error:
        record(estimates, detail=error.message)
    else:
        record(estimates, detail=f"on {text.name}")
    gate(estimates)


@pytest.mark.metric("lora_merging_gain")
def test_merging_before_quantizing(
    adapted_candidate: Subject, base: Subject, reference: Subject, lora: LoraEffects, record: Record
) -> None:
    """The adapter merged and then quantized, against the adapter applied to the quantized base, at equal bits."""
    text = text_of(lora, adapted_candidate)
    applied = lora.effect(adapted_candidate, base, text)["kld_reference"].astype(np.float64)
    try:
        merged = lora.merged(adapted_candidate, base, reference, text)["kld_reference"].astype(np.float64)
    except NoData as error:
        pytest.skip(error.message)
    record(
        as_estimate("lora_applied_kld", mean_with_errors(applied)),
        as_estimate("lora_merged_kld", mean_with_errors(merged)),
        as_estimate("lora_merging_gain", mean_with_errors(applied - merged)),
        detail=f"on {text.name}",
    )
    assert merged.min() > -1e-5
