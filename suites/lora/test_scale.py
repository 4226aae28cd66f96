"""How strongly should an adapter be applied, and do adapters get along with each other?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.lora.calls import LoraEffects
from gguf_harness.metrics.adapter_effects import interference, mean_effect
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.stats import as_estimate, mean_with_errors
from gguf_harness.suites.lora.test_effect import text_of


@pytest.mark.metric("lora_scale_loss_change")
def test_scale_sweep(adapted_reference: Subject, base: Subject, lora: LoraEffects, record: Record) -> None:
    """Loss on the adapter's text and KL on the corpus at several scales; at 0 it is the base itself."""
    for scale, arrays in lora.sweep(adapted_reference, base, text_of(lora, adapted_reference)).items():
        change = mean_effect("lora_scale_loss_change", arrays["nll"], arrays["nll_base"])
        record(replace(change, place=Place(part=f"scale {scale:g}")))
        assert scale != 0 or not (arrays["nll"] != arrays["nll_base"]).any(), "the adapter at scale 0 is not the base"
    for scale, arrays in lora.sweep(adapted_reference, base, lora.corpus).items():
        kld = mean_with_errors(arrays["kld"].astype(np.float64))
        record(as_estimate("lora_scale_corpus_kld", kld, Place(part=f"scale {scale:g}")))


@pytest.mark.metric("lora_interference")
def test_adapters_together(adapted_reference: Subject, base: Subject, lora: LoraEffects, record: Record) -> None:
    """Change of the loss by several adapters together, less the sum of what each of them changes alone."""
    if len(adapted_reference.adapters) < 2:
        pytest.skip("one adapter alone: join several with a plus, --gguf-lora=A.gguf+B.gguf")
    texts = {"lora_interference": text_of(lora, adapted_reference), "lora_corpus_interference": lora.corpus}
    for metric, text in texts.items():
        together = lora.effect(adapted_reference, base, text)
        alone = [arrays["nll"] for arrays in lora.alone(adapted_reference, base, text)]
        record(
            as_estimate(metric, interference(together["nll"], alone, together["nll_base"])), detail=f"on {text.name}"
        )
