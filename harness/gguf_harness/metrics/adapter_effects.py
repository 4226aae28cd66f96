"""What an adapter changes, token by token, and how much of that change another base keeps.

The effect of an adapter on a token is e = ln p_adapted(token) - ln p_base(token): how much likelier it makes the text.
"Base" is the same file without the adapter, whether it is the reference or a quantized one. Errors are clustered by
window; values of the two bases are paired, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.kernels.standard_errors import jackknife_se
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import (
    MeanEstimate,
    as_estimate,
    confidence_bound,
    mean_with_errors,
    require_samples,
)

__all__ = [
    "effect_correlation",
    "effect_of",
    "effect_slope",
    "interference",
    "loss_share",
    "mean_effect",
    "transferred",
]

Floats = NDArray[np.float64]

_CLEAR: Final = 0.975


def mean_effect(metric: str, nll: ArrayLike, nll_base: ArrayLike) -> Estimate:
    """Change of the loss by an adapter: mean of nll_adapted - nll_base, in nats per token.

    Args:
        metric: its name.
        nll: [windows, tokens] with the adapter.
        nll_base: the same without.
    """
    own, base = _pair(nll, nll_base, metric)
    return as_estimate(metric, mean_with_errors(own - base))


def effect_of(nll: ArrayLike, nll_base: ArrayLike) -> Floats:
    """[windows, tokens] effect of an adapter on each token, nll_base - nll: above 0 where it makes it likelier."""
    own, base = _pair(nll, nll_base, "losses with an adapter")
    return base - own


def effect_correlation(effect: ArrayLike, reference: ArrayLike) -> Estimate:
    """Pearson's correlation of an adapter's effects on two bases, over tokens; its error by jackknife over windows.

    Args:
        effect: [windows, tokens] on a base.
        reference: the same on the reference.

    Raises:
        NoData: the adapter changes nothing on one of them.
    """
    own, other = _pair(effect, reference, "effects of an adapter")

    def correlation(x: Floats, y: Floats) -> float:
        x, y = x - x.mean(), y - y.mean()
        scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
        if scale == 0:
            raise NoData("The adapter changes nothing: its effects have no correlation.")
        return float((x * y).sum()) / scale

    value = correlation(own, other)
    windows = np.arange(len(own))
    error = None
    if len(own) > 2:
        error = jackknife_se([correlation(own[windows != left], other[windows != left]) for left in windows])
    return Estimate("lora_effect_correlation", min(max(value, -1.0), 1.0), own.size, error, clusters=len(own))


def effect_slope(effect: ArrayLike, reference: ArrayLike) -> Estimate:
    """How strong an adapter's effect on a base is beside that on the reference: b of least squares, e = b e_reference.

    b = sum e e_reference / sum e_reference^2, through zero, since no effect is to stay none. 1: as strong; 0: none of
    it. A ratio of two means of the same tokens, with its error by the delta method.

    Raises:
        NoData: the adapter changes nothing on the reference.
    """
    own, other = _pair(effect, reference, "effects of an adapter")
    squares = other * other
    if not squares.any():
        raise NoData("The adapter changes nothing on the reference: nothing of it can be kept.")
    value, influence = ratio_of_means(own * other, squares)
    return as_estimate("lora_effect_retained", mean_with_errors(influence, value=value))


def loss_share(effect: ArrayLike, reference: ArrayLike) -> Estimate:
    """Share of the adapter's gain that a base keeps: mean e / mean e_reference, what loss it saves beside there.

    Raises:
        NoData: on the reference, the adapter does not make the text likelier by more than the error of that.
    """
    own, other = _pair(effect, reference, "effects of an adapter")
    gain = mean_with_errors(other)
    if gain.se is None or confidence_bound(gain.value, gain.se, gain.clusters, _CLEAR, upper=False) <= 0:
        raise NoData(
            f"The adapter does not clearly make this text likelier on the reference ({gain.value:+.3g} nats per token):"
            " there is no gain to keep.",
            "Give a text that it was made for with --gguf-lora-corpus.",
        )
    value, influence = ratio_of_means(own, other)
    return as_estimate("lora_loss_retained", mean_with_errors(influence, value=value))


def interference(together: ArrayLike, alone: Sequence[ArrayLike], base: ArrayLike) -> MeanEstimate:
    """Change of the loss by adapters together, less the sum of what each changes alone; 0 where they do not interfere.

    (L_together - L_base) - sum_i (L_i - L_base), token by token, so that errors are paired. Above 0, they get in each
    other's way.

    Args:
        together: [windows, tokens] loss with all adapters.
        alone: the same with each of them.
        base: the same without any.
    """
    own, plain = _pair(together, base, "losses with adapters")
    each = [_pair(one, base, "losses with an adapter")[0] - plain for one in alone]
    return mean_with_errors(own - plain - np.sum(each, axis=0))


def transferred(base: Floats, reference: Floats, reference_adapted: Floats) -> Floats:
    """What a base would predict if an adapter changed it exactly as it changes the reference.

    p(x) in proportion to p_base(x) p_reference_adapted(x) / p_reference(x): every log-probability is changed by what
    the adapter changes that of the reference by, and the whole is normalized again. This combination of three models is
    that of proxy tuning (Liu et al. 2024, "Tuning Language Models by Proxy", arXiv:2401.08565, equation 1). The KL
    divergence from it to what the base with the adapter does predict, 0 where both effects are the same, is ours.

    Args:
        base: [..., vocabulary] log-probabilities.
        reference: the same of the reference.
        reference_adapted: the same of the reference with the adapter.

    Returns:
        [..., vocabulary] log-probabilities.
    """
    return log_softmax(base + reference_adapted - reference)


def _pair(one: ArrayLike, other: ArrayLike, what: str) -> tuple[Floats, Floats]:
    first, second = require_samples(one, what), require_samples(other, what)
    if first.shape != second.shape:
        raise NoData(f"{what}: of different tokens, {first.shape} and {second.shape}.")
    return first, second
