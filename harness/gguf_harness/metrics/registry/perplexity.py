"""Perplexity, alone and compared with the reference's: computed in `gguf_harness.metrics.perplexity`."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Column, GatedBy, Metric, WindowMean

__all__ = ["METRICS"]

_BESIDE: Final = GatedBy("quant", "test_perplexity_stays_close_to_reference")
_TOOL: Final = "llama-perplexity (tools/perplexity of llama.cpp), with --kl-divergence if there is a reference."

METRICS: Final = (
    Metric(
        name="ppl",
        title="PPL",
        better="lower",
        meaning="Perplexity: exp of the mean negative log-likelihood per scored token.",
        definition="exp(mean of -ln p(token)); in each window of n_ctx tokens the second half is scored.",
        source="Jelinek et al. (1977), Perplexity; windows as in llama-perplexity (tools/perplexity of llama.cpp).",
        estimated="corpus",
        values=(1.0, math.inf),
        column=Column(rank=2),
        tables=frozenset({"html", "markdown", "comparison"}),
        gate=GatedBy("quant", "test_perplexity", any_model=True, relative=True),
        ratio="ppl_ratio",
        early=WindowMean("nll", "exp"),
        # The logarithm of a float64 ends at 709.
        window_means=(0.0, 700.0),
        loss=3,
    ),
    Metric(
        name="ln_ppl_ratio",
        title="ln PPL ratio",
        unit="nats",
        better="lower",
        meaning="Mean difference of the log-likelihoods, paired.",
        definition="mean of (-ln p_candidate(token) + ln p_reference(token)).",
        source=_TOOL,
        estimated="corpus",
        gate=_BESIDE,
        early=WindowMean("nll_difference"),
        compared=False,
        loss=2,
    ),
    Metric(
        name="ppl_ratio",
        title="PPL ratio",
        better="lower",
        meaning="Perplexity over the reference's, with the paired error.",
        definition="exp(ln PPL ratio).",
        source=_TOOL,
        estimated="corpus",
        values=(0.0, math.inf),
        tables=frozenset({"html", "brief", "markdown", "comparison"}),
        gate=_BESIDE,
        early=WindowMean("nll_difference", "exp"),
        compared=False,
    ),
    Metric(
        name="ppl_difference",
        title="PPL difference",
        better="lower",
        meaning="Perplexity minus the reference's, paired error.",
        definition="PPL of the candidate - PPL of the reference.",
        source=_TOOL,
        estimated="corpus",
        gate=_BESIDE,
        compared=False,
    ),
    Metric(
        name="ln_ppl_correlation",
        title="ln PPL corr.",
        better="higher",
        meaning="Correlation with the reference's log-likelihoods.",
        definition="Pearson's correlation of ln p_candidate(token) with ln p_reference(token) over tokens.",
        source=_TOOL,
        estimated="corpus",
        values=(-1.0, 1.0),
        gate=_BESIDE,
        compared=False,
    ),
)
