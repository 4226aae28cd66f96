"""What a KV cache costs by depth: computed in `gguf_harness.metrics.by_position` and the modules beside it."""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Better, GatedBy, Metric

__all__ = ["METRICS"]

_LOSS: Final = GatedBy("kv", "test_loss_does_not_grow_with_depth", of="cached")
_OCTAVES: Final = "over the positions of an octave (64-127) of all windows, against the same file with its plain cache"
_TOOL: Final = "llama-perplexity --kl-divergence, by position: this harness."
_SLOPES: Final = (
    "Matthews et al. (1990), Analysis of serial measurements in medical research: a slope for each window, then their"
    " mean."
)


def _by_position(
    name: str, title: str, unit: str, better: Better, meaning: str, definition: str, values: tuple[float, float]
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better=better,
        meaning=meaning,
        definition=definition,
        source=_TOOL,
        estimated="positions",
        values=values,
        parts=("position",),
        compared=False,
    )


METRICS: Final = (
    _by_position(
        "kld_by_position",
        "KL by position",
        "nats",
        "lower",
        "KL divergence of tokens at some depth of the window.",
        f"Mean KL(reference || candidate) {_OCTAVES}.",
        (0.0, math.inf),
    ),
    _by_position(
        "same_top_by_position",
        "same top by position",
        "fraction",
        "higher",
        "Share of tokens at some depth where both find the same token likeliest.",
        f"Share of equal most likely tokens {_OCTAVES}.",
        (0.0, 1.0),
    ),
    _by_position(
        "ppl_ratio_by_position",
        "PPL ratio by position",
        "",
        "lower",
        "Perplexity of tokens at some depth, over the reference's.",
        f"exp(mean of nll - nll of the reference) {_OCTAVES}.",
        (0.0, math.inf),
    ),
    _by_position(
        "delta_p_rms_by_position",
        "RMS Δp by position",
        "fraction",
        "lower",
        "Change of the correct token's probability at some depth, root mean square.",
        f"Root mean square of p_candidate(token) - p_reference(token) {_OCTAVES}.",
        (0.0, 1.0),
    ),
    Metric(
        name="nll_slope",
        title="loss by depth",
        unit="nats",
        better="lower",
        meaning="How much the loss against the reference's rises with each doubling of the context.",
        definition="Mean over windows of the least-squares slope of nll - nll of the reference against log2(position),"
        " from position 16 on.",
        source=_SLOPES,
        estimated="positions",
        gate=_LOSS,
        compared=False,
    ),
    Metric(
        name="kld_slope",
        title="KL by depth",
        unit="nats",
        meaning="How much KL rises with each doubling of the context.",
        definition="Mean over windows of the least-squares slope of KL(reference || candidate) against log2(position),"
        " from position 16 on.",
        source=_SLOPES,
        estimated="positions",
        compared=False,
    ),
    Metric(
        name="kld_relative_slope",
        title="KL by depth, relative",
        better="lower",
        meaning="How much KL rises with each doubling of the context, as a share of its mean.",
        definition="kld_slope / mean KL of the same tokens, a ratio of means over windows.",
        source=f"{_SLOPES[:-1]}; its error by the delta method.",
        estimated="positions",
        gate=_LOSS,
        compared=False,
    ),
)
