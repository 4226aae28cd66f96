"""What does an adapter change?"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from gguf_harness.errors import NoData
from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.corpora import Corpus
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.attention.calls import Attention
from gguf_harness.measure.attention.pattern_results import AttentionDrift
from gguf_harness.measure.layers.calls import Layers
from gguf_harness.measure.lora.calls import MOVED_PROMPTS, LoraEffects
from gguf_harness.metrics.adapter_effects import mean_effect
from gguf_harness.metrics.clusters import layers_and_means
from gguf_harness.metrics.pattern_comparison import moved_heads
from gguf_harness.metrics.stats import as_estimate, mean_with_errors


@pytest.mark.metric("lora_loss_change")
def test_effect_on_its_own_text(adapted: Subject, base: Subject, lora: LoraEffects, record: Record) -> None:
    """Loss, KL and likeliest tokens on a text that the adapter is for."""
    text = text_of(lora, adapted)
    arrays = lora.effect(adapted, base, text)
    record(
        mean_effect("lora_loss_change", arrays["nll"], arrays["nll_base"]),
        as_estimate("lora_kld", mean_with_errors(arrays["kld"].astype(np.float64))),
        as_estimate("lora_top_changed", mean_with_errors((arrays["top"] != arrays["top_base"]).astype(np.float64))),
        detail=f"on {text.name}",
    )
    # Up to rounding, no divergence is below zero.
    assert arrays["kld"].min() > -1e-6


@pytest.mark.metric("lora_corpus_kld")
def test_effect_elsewhere(adapted: Subject, base: Subject, lora: LoraEffects, record: Record) -> None:
    """Loss and KL on the corpus, for which the adapter was not made."""
    arrays = lora.effect(adapted, base, lora.corpus)
    record(
        as_estimate("lora_corpus_kld", mean_with_errors(arrays["kld"].astype(np.float64))),
        mean_effect("lora_corpus_loss_change", arrays["nll"], arrays["nll_base"]),
    )
    assert arrays["kld"].min() > -1e-6


@pytest.mark.metric("lora_top_changed")
def test_tokens_that_changed_most(adapted_reference: Subject, base: Subject, lora: LoraEffects) -> None:
    """The tokens with the largest KL, on the adapter's text and on the corpus, for the report."""
    texts = {"corpus": lora.corpus}
    with contextlib.suppress(NoData):  # the test of the effect on it says so
        texts["own"] = lora.own_text(adapted_reference)
    for name, text in texts.items():
        tokens = lora.tokens(adapted_reference, base, text)
        assert (np.diff(tokens["kld"]) <= 0).all()
        said = f"The tokens of {text.name} whose predictions the adapter changed most."
        lora.note(adapted_reference, f"lora_tokens_{name}", said, tokens)


@pytest.mark.metric("lora_states_moved")
def test_layers_that_moved(adapted_reference: Subject, base: Subject, layers_of: Layers, record: Record) -> None:
    """Residual stream by layer with and without the adapter, and the likeliest token of the logit lens."""
    compared, layers = layers_of.compared(adapted_reference, base), layers_of.selected(base)
    arrays, starts = compared.arrays, compared.arrays["starts"]
    measured = {"lora_states_moved": arrays["error_resid_post"]}
    before = layers_of.alone(base, keep=True)
    if compared.facts["lens_problem"] is None and before.facts["lens_problem"] is None:
        measured["lora_lens_changed"] = (arrays["lens_top"] != before.arrays["lens_top"]).astype(np.float64)
    record(layers_and_means(measured, starts, layers))


@pytest.mark.metric("lora_attention_moved")
def test_heads_that_moved(adapted_reference: Subject, base: Subject, attention: Attention, record: Record) -> None:
    """Patterns of each head with and without the adapter."""
    drift = AttentionDrift.of(attention.on_first(MOVED_PROMPTS).compare(adapted_reference, base)[1])
    record(moved_heads("lora_attention_moved", list(drift.patterns.values()), drift.heads))


def text_of(lora: LoraEffects, adapted: Subject) -> Corpus:
    """The text that the adapters are for; skips the test where it is not known."""
    try:
        return lora.own_text(adapted)
    except NoData as error:
        pytest.skip(f"{error.message} {error.hint}")
