"""Distance of next-token distributions from the reference's: computed in `gguf_harness.metrics.divergence`."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Column, GatedBy, Metric, WindowMean

__all__ = ["METRICS"]

_DISTRIBUTION: Final = GatedBy("quant", "test_distribution_stays_close_to_reference")
_PROBABILITY: Final = GatedBy("quant", "test_probability_of_the_correct_token")
_KULLBACK: Final = "Kullback and Leibler (1951), On Information and Sufficiency; llama-perplexity --kl-divergence."
_TOOL: Final = "llama-perplexity --kl-divergence (tools/perplexity of llama.cpp)."
_QUANTILE: Final = "Quantile by linear interpolation between order statistics, at f (n - 1); "


def _kld(name: str, title: str, meaning: str, definition: str, early: WindowMean | None = None) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit="nats",
        better="lower",
        meaning=meaning,
        definition=definition,
        source=_KULLBACK,
        estimated="corpus",
        values=(0.0, math.inf),
        gate=_DISTRIBUTION,
        early=early,
        compared=False,
    )


def _kld_percentile(name: str, share: str, early: WindowMean, column: Column | None = None) -> Metric:
    return Metric(
        name=name,
        title=f"KL {share}",
        unit="nats",
        better="lower",
        meaning=f"{share} percentile of KL(reference || candidate) over tokens.",
        definition=f"{_QUANTILE}its interval inverts the test of the share of tokens below.",
        source=_TOOL,
        estimated="corpus",
        values=(0.0, math.inf),
        column=column,
        tables=frozenset({"html", "comparison"} if column else ()),
        gate=_DISTRIBUTION,
        early=early,
        compared=False,
    )


def _change(name: str, title: str, meaning: str, definition: str) -> Metric:
    """A place in the distribution of the change of the correct token's probability: neither direction is better."""
    return Metric(
        name=name,
        title=title,
        unit="fraction",
        meaning=meaning,
        definition=definition,
        source=_TOOL,
        estimated="corpus",
        values=(-1.0, 1.0),
        compared=False,
    )


def _change_percentile(name: str, share: str) -> Metric:
    meaning = f"{share} percentile of the change of the correct token's probability."
    return _change(name, f"Δp {share}", meaning, f"{_QUANTILE}of p_candidate(token) - p_reference(token).")


def _floor(name: str, title: str, meaning: str, definition: str, values: tuple[float, float]) -> Metric:
    share = name.endswith("same_top")
    return Metric(
        name=name,
        title=title,
        unit="fraction" if share else "nats",
        better="higher" if share else "lower",
        meaning=meaning,
        definition=definition,
        source="This harness: the effect of rounding alone; smaller differences are meaningless.",
        estimated="floor",
        values=values,
        compared=False,
    )


METRICS: Final = (
    Metric(
        name="kld_mean",
        title="KL mean",
        unit="nats",
        better="lower",
        meaning="Mean KL(reference || candidate) of next-token distributions.",
        definition="mean over tokens of sum over the vocabulary of p_reference (ln p_reference - ln p_candidate).",
        source=_KULLBACK,
        estimated="corpus",
        values=(0.0, math.inf),
        column=Column("KL mean, nats", rank=0),
        tables=frozenset({"html", "brief", "markdown", "comparison"}),
        gate=_DISTRIBUTION,
        early=WindowMean("kld"),
        # Rounding of the reference's probabilities can make a zero divergence slightly negative.
        window_means=(-1.0, 700.0),
        loss=1,
    ),
    _kld(
        "kld_reverse_mean",
        "reverse KL mean",
        "Mean KL(candidate || reference).",
        "mean over tokens of sum over the vocabulary of p_candidate (ln p_candidate - ln p_reference).",
        WindowMean("kld_reverse"),
    ),
    _kld("kld_max", "KL max", "Largest KL(reference || candidate) of any token.", "Maximum over scored tokens."),
    _kld_percentile("kld_p99_9", "99.9th", WindowMean("kld", "quantile", 0.999)),
    _kld_percentile("kld_p99", "99th", WindowMean("kld", "quantile", 0.99), Column("KL 99 %", rank=7, error=False)),
    _kld_percentile("kld_p95", "95th", WindowMean("kld", "quantile", 0.95)),
    _kld_percentile("kld_p90", "90th", WindowMean("kld", "quantile", 0.90)),
    _kld_percentile("kld_median", "50th", WindowMean("kld", "quantile", 0.50)),
    _kld_percentile("kld_p10", "10th", WindowMean("kld", "quantile", 0.10)),
    _kld_percentile("kld_p5", "5th", WindowMean("kld", "quantile", 0.05)),
    _kld_percentile("kld_p1", "1st", WindowMean("kld", "quantile", 0.01)),
    _kld_percentile("kld_p0_1", "0.1th", WindowMean("kld", "quantile", 0.001)),
    _kld("kld_min", "KL min", "Smallest KL(reference || candidate) of any token.", "Minimum over scored tokens."),
    Metric(
        name="same_top",
        title="same top",
        unit="fraction",
        better="higher",
        meaning="Share of tokens with the reference's most likely token.",
        definition="mean of [argmax p_candidate = argmax p_reference] over tokens; of equal logits the first counts.",
        source=_TOOL,
        estimated="corpus",
        column=Column(rank=3),
        tables=frozenset({"html", "brief", "markdown", "comparison"}),
        gate=GatedBy("quant", "test_most_likely_token_stays_the_same"),
        early=WindowMean("agreement"),
        window_means=(0.0, 1.0),
    ),
    Metric(
        name="top5_agreement",
        title="top-5 agreement",
        unit="fraction",
        better="higher",
        meaning="Share of tokens where the reference's most likely token is among the candidate's five likeliest.",
        definition="mean of [fewer than 5 tokens have p_candidate > p_candidate(argmax p_reference)] over tokens.",
        source="Top-k accuracy: Russakovsky et al. (2015), ImageNet Large Scale Visual Recognition Challenge.",
        estimated="corpus",
        column=Column("top 5", rank=9),
        tables=frozenset({"html", "markdown", "comparison"}),
        gate=GatedBy("quant", "test_most_likely_token_stays_among_the_first"),
        compared=False,
    ),
    Metric(
        name="delta_p_rms",
        title="Δp RMS",
        unit="fraction",
        better="lower",
        meaning="Root mean square change of the correct token's probability.",
        definition="sqrt(mean of (p_candidate(token) - p_reference(token))^2) over tokens.",
        source=_TOOL,
        estimated="corpus",
        gate=_PROBABILITY,
        early=WindowMean("change", "rms"),
        window_means=(0.0, 1.0),
    ),
    Metric(
        name="delta_p_mean",
        title="Δp mean",
        unit="fraction",
        better="higher",
        meaning="Mean change of the correct token's probability.",
        definition="mean of p_candidate(token) - p_reference(token) over tokens.",
        source=_TOOL,
        estimated="corpus",
        values=(-1.0, 1.0),
        gate=_PROBABILITY,
        early=WindowMean("change"),
        compared=False,
    ),
    _change("delta_p_max", "Δp max", "Largest gain of the correct token's probability.", "Maximum over scored tokens."),
    _change_percentile("delta_p_p99_9", "99.9th"),
    _change_percentile("delta_p_p99", "99th"),
    _change_percentile("delta_p_p95", "95th"),
    _change_percentile("delta_p_p90", "90th"),
    _change_percentile("delta_p_p75", "75th"),
    _change_percentile("delta_p_median", "50th"),
    _change_percentile("delta_p_p25", "25th"),
    _change_percentile("delta_p_p10", "10th"),
    _change_percentile("delta_p_p5", "5th"),
    _change_percentile("delta_p_p1", "1st"),
    _change_percentile("delta_p_p0_1", "0.1th"),
    _change("delta_p_min", "Δp min", "Largest loss of the correct token's probability.", "Minimum over scored tokens."),
    # The noise floor: the reference against itself, decoded with another batch layout.
    _floor(
        "floor_kld_mean",
        "floor KL",
        "KL of the reference against itself: only noise.",
        "As kld_mean, with the reference in the candidate's place.",
        (0.0, math.inf),
    ),
    _floor(
        "floor_kld_max",
        "floor KL max",
        "Largest KL of the reference against itself.",
        "As kld_max, with the reference in the candidate's place.",
        (0.0, math.inf),
    ),
    _floor(
        "floor_ln_ppl_ratio",
        "floor ln PPL ratio",
        "ln PPL ratio of it against itself.",
        "As ln_ppl_ratio, with the reference in the candidate's place.",
        (-math.inf, math.inf),
    ),
    _floor(
        "floor_same_top",
        "floor same top",
        "Same-top share of it against itself.",
        "As same_top, with the reference in the candidate's place.",
        (0.0, 1.0),
    ),
)
