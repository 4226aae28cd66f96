"""Perplexity, and its comparison with a reference's on the same tokens.

Definitions are llama-perplexity's (llama.cpp, tools/perplexity), so the values and the iid errors agree with its
output. The clustered errors are ours, by the delta method.

All functions take negative log-likelihoods in nats as [windows, scored tokens].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import Samples, as_estimate, mean_with_errors, require_samples

__all__ = ["compare_perplexity", "perplexity"]


def perplexity(nll: ArrayLike) -> Estimate:
    """exp(mean nll), with error exp(mean nll) * se(mean nll); the interval is exp of the mean nll's.

    Jelinek, Mercer, Bahl and Baker (1977), Perplexity: a measure of the difficulty of speech recognition tasks.
    """
    samples = require_samples(nll, "perplexity")
    value = math.exp(samples.mean())
    return as_estimate("ppl", mean_with_errors(samples, influence=value * samples, value=value, link=math.exp))


def compare_perplexity(nll: ArrayLike, nll_reference: ArrayLike) -> list[Estimate]:
    """Ln ratio, ratio, difference and correlation with the reference's, all paired by token.

    With m, m_b the means: ln ratio m - m_b; ratio exp(m - m_b); difference exp(m) - exp(m_b). Their iid errors equal
    llama-perplexity's, which writes them with the covariance: for example u_ln^2 = u^2 + u_b^2 - 2 cov.
    """
    samples = require_samples(nll, "perplexity")
    base = require_samples(nll_reference, "perplexity of the reference")
    if samples.shape != base.shape:
        raise NoData(f"Perplexities of different tokens: {samples.shape} against the reference's {base.shape}.")
    difference = samples - base
    ln_ratio = float(difference.mean())
    ratio = math.exp(ln_ratio)
    ppl, ppl_base = math.exp(samples.mean()), math.exp(base.mean())
    estimates = [
        as_estimate("ln_ppl_ratio", mean_with_errors(difference)),
        as_estimate(
            "ppl_ratio", mean_with_errors(difference, influence=ratio * difference, value=ratio, link=math.exp)
        ),
        as_estimate(
            "ppl_difference",
            mean_with_errors(difference, influence=ppl * samples - ppl_base * base, value=ppl - ppl_base),
        ),
    ]
    correlation = _correlation(samples, base)
    return estimates if correlation is None else [*estimates, correlation]


def _correlation(samples: Samples, base: Samples) -> Estimate | None:
    """Pearson correlation of the log-likelihoods; None where one of them is constant.

    Influence function of a correlation r of standardized x, y: x y - r (x^2 + y^2) / 2 (Devlin, Gnanadesikan and
    Kettenring, 1975).
    """
    spread, spread_base = float(np.std(samples)), float(np.std(base))
    if spread == 0 or spread_base == 0:
        return None
    x, y = (samples - samples.mean()) / spread, (base - base.mean()) / spread_base
    value = min(1.0, float((x * y).mean()))
    influence = x * y - value * (x * x + y * y) / 2
    return as_estimate("ln_ppl_correlation", mean_with_errors(x, influence=influence, value=value))
