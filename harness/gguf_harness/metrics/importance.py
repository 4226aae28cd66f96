"""Importance of heads: by ablation, by interchange, by removal, agreement of two models, and a screen.

Per-token values come as [..., windows, scored tokens]; a window is a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.bootstrap import bootstrap_se
from gguf_harness.metrics.kernels.ranks import spearman
from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.records import WHOLE, Estimate, Place
from gguf_harness.metrics.stats import as_estimate, mean_with_errors, require_samples

__all__ = [
    "NEGLIGIBLE_RISE",
    "Head",
    "greedy_removal",
    "importance",
    "importance_of_heads",
    "interchange_share",
    "interchange_shares",
    "rank_correlation",
    "removable",
    "screened_importance",
    "top_overlap",
    "window_rises",
]

Head = tuple[int, int]
"""(layer, head)"""

NEGLIGIBLE_RISE: Final = 0.05
"""Nats per token: perplexity grows by 5 %."""


def importance(metric: str, values: ArrayLike, base: ArrayLike | None = None, place: Place = WHOLE) -> Estimate:
    """Mean over tokens of the effect of changing heads, paired with the unchanged model if a base is given.

    Ablation of heads: Michel, Levy and Neubig (2019), Are Sixteen Heads Really Better than One?, arXiv:1905.10650. For
    replacement by the mean instead of zero: Wang et al. (2022), Interpretability in the Wild, arXiv:2211.00593.

    Args:
        metric: its name.
        values: [windows, scored tokens] of the changed model.
        base: the same for the unchanged model; nothing is subtracted if not given.
        place: the head.
    """
    samples = require_samples(values, metric)
    if base is not None:
        samples = samples - require_samples(base, metric)
    return as_estimate(metric, mean_with_errors(samples), place)


def importance_of_heads(sweep: Mapping[str, NDArray[Any]]) -> list[Estimate]:
    """Importance of each head.

    Rise of the loss, and KL from the unchanged model, with its output set to zero or to its mean.

    Args:
        sweep: heads, [n, 2] layers and heads; nll, [windows, scored tokens] of the whole model; nll_zero, kld_zero,
            nll_mean and kld_mean, [n, windows, scored tokens] without each of them.
    """
    estimates = []
    for index, head in enumerate(sweep["heads"].tolist()):
        place = Place(*head)
        estimates += [
            importance("head_importance", sweep["nll_zero"][index], sweep["nll"], place),
            importance("head_importance_kl", sweep["kld_zero"][index], place=place),
            importance("head_importance_mean", sweep["nll_mean"][index], sweep["nll"], place),
            importance("head_importance_mean_kl", sweep["kld_mean"][index], place=place),
        ]
    return estimates


def window_rises(values: ArrayLike, base: ArrayLike) -> NDArray[np.float64]:
    """[heads, windows] mean rise over a base: of [heads, windows, scored] over [windows, scored]."""
    rises: NDArray[np.float64] = np.asarray(values, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    means: NDArray[np.float64] = rises.mean(axis=2)
    return means


def interchange_share(metric: str, before: ArrayLike, after: ArrayLike, place: Place = WHOLE) -> Estimate:
    """The share of a divergence that is removed when a part of the model is replaced by the reference's.

    It is (B - A) / B of the means.

    An interchange intervention (Geiger et al. 2021, Causal Abstractions of Neural Networks, arXiv:2106.02997), from the
    reference into the candidate. Negative if it makes things worse, such as when errors of two parts had cancelled; the
    shares of all heads need not sum to one. Error of the ratio by the delta method, with the influence of each token
    (-(a - R b) / B for R = A / B), clustered by window.

    Args:
        metric: its name.
        before: [windows, scored tokens] KL(reference || candidate).
        after: the same with the part from the reference.
        place: the part.

    Raises:
        NoData: the candidate does not differ from the reference.
    """
    b, a = require_samples(before, "KL"), require_samples(after, "KL after the interchange")
    if a.shape != b.shape:
        raise NoData(f"KL of different tokens: {a.shape} against {b.shape}.")
    mean = float(b.mean())
    if not mean > 0:
        raise NoData(
            f"A share of a mean KL of {mean:.3g} nats is meaningless: the candidate behaves like its reference."
        )
    left, influence = ratio_of_means(a, b)
    return as_estimate(metric, mean_with_errors(b, influence=-influence, value=1 - left), place)


def interchange_shares(arrays: Mapping[str, NDArray[Any]]) -> list[Estimate]:
    """`interchange_share` of each layer, all of its heads together, followed by that of each head.

    Args:
        arrays: kld, [windows, scored tokens] of the candidate; layers, [n], and kld_layers, [n, windows, scored
            tokens];
            heads, [m, 2] layers and heads, and kld_heads, [m, windows, scored tokens].

    Raises:
        NoData: the candidate does not differ from the reference.
    """
    layers = zip(arrays["layers"].tolist(), arrays["kld_layers"], strict=True)
    heads = zip(arrays["heads"].tolist(), arrays["kld_heads"], strict=True)
    return [
        *(interchange_share("layer_interchange_share", arrays["kld"], after, Place(layer)) for layer, after in layers),
        *(interchange_share("head_interchange_share", arrays["kld"], after, Place(*head)) for head, after in heads),
    ]


def rank_correlation(metric: str, first: ArrayLike, second: ArrayLike) -> Estimate:
    """Spearman correlation over heads of the means over windows; error by bootstrap over windows, drawn for both.

    Noise on either side lowers it: with few windows, two models that agree do not reach 1.

    Args:
        metric: its name.
        first: [heads, windows] means of windows.
        second: the same heads and windows of another model, or [heads] of an estimate that has no windows.
    """
    a, b = require_samples(first, metric), np.asarray(second, dtype=np.float64)
    b = np.repeat(b[:, None], a.shape[1], axis=1) if b.ndim == 1 else b
    if a.shape != b.shape:
        raise NoData(f"Importance of different heads or windows: {a.shape} against {b.shape}.")

    def of(windows: NDArray[np.int64]) -> float:
        return spearman(a[:, windows].mean(axis=1), b[:, windows].mean(axis=1))

    count = a.shape[1]
    return Estimate(metric, of(np.arange(count)), len(a), bootstrap_se(of, count), None, count)


def top_overlap(first: ArrayLike, second: ArrayLike, top: int) -> Estimate:
    """Share of the `top` most important heads of one model that are among those of another; arguments as above."""
    a, b = (require_samples(side, "importance") for side in (first, second))
    if a.shape != b.shape or not 1 <= top <= len(a):
        raise NoData(f"The top {top} heads of {a.shape} against {b.shape} cannot be compared.")

    def of(windows: NDArray[np.int64]) -> float:
        best = (set(np.argsort(-side[:, windows].mean(axis=1), kind="stable")[:top].tolist()) for side in (a, b))
        return len(set.intersection(*best)) / top

    count = a.shape[1]
    return Estimate("head_top_overlap", of(np.arange(count)), top, bootstrap_se(of, count), None, count)


def greedy_removal(
    costs: Mapping[Head, float], change: Callable[[tuple[Head, ...]], float], *, tries: int
) -> Iterator[Head]:
    """Heads to remove one by one, always the one whose removal changes predictions least.

    Costs change slowly. The remaining heads are measured again in the order of their last known costs, `tries` at most
    at each step, and no more once one costs no more than the next is known to: Minoux (1978), Accelerated greedy
    algorithms. That finds the cheapest of all if costs never fall as heads are removed; they may, so this is a path on
    which little is lost, and not always the best one.

    Args:
        costs: what removing each head alone changes: a mean KL divergence from the whole model, in nats. A rise of the
            loss would do for many tokens; of few, it says more about these than about the head.
        change: the same of a set of heads.
        tries: how many heads are measured again at each step.

    Yields:
        The next head, until none is left.
    """
    known = dict(costs)
    removed: list[Head] = []
    now = 0.0
    while known:
        tried: dict[Head, float] = {}
        for head in sorted(known, key=lambda head: (known[head], head))[:tries]:
            if tried and min(known[other] for other in tried) <= known[head]:
                break
            tried[head] = change((*removed, head))
            known[head] = tried[head] - now
        best = min(tried, key=lambda head: (known[head], head))
        now = tried[best]
        removed.append(best)
        del known[best]
        yield best


def removable(curve: ArrayLike, rise: float = NEGLIGIBLE_RISE) -> Estimate:
    """Number of heads that can be removed before the mean loss first rises by more than `rise`.

    Error by bootstrap over windows, along the same path.

    Args:
        curve: [removed, windows, scored tokens] negative log-likelihood, from none removed on, of other tokens than
            those on which the path was chosen. On its own tokens a path looks far better than it is: of the 270 heads
            of SmolLM2-135M, 135 could go by the loss of the 158 tokens that chose them, and 1 by that of others.
        rise: in nats.
    """
    losses = np.asarray(curve, dtype=np.float64)
    require_samples(losses.reshape(len(losses), -1), "removal curve")
    means = losses.mean(axis=2)

    def of(windows: NDArray[np.int64]) -> float:
        path = means[:, windows].mean(axis=1)
        over = np.flatnonzero(path - path[0] > rise)
        return float(over[0] - 1 if over.size else len(path) - 1)

    count = means.shape[1]
    return Estimate("heads_removable", of(np.arange(count)), losses[0].size, bootstrap_se(of, count), None, count)


def screened_importance(screen: Mapping[str, NDArray[Any]]) -> list[Estimate]:
    """`importance` of each head on some of the windows, of which it is an estimate.

    Heads that are ablated together, in random subsets of which a regression would find what each costs (Hotelling 1944,
    Some Improvements in Weighing), tell less at the same number of decodes: what differs between measurements is not
    noise, of which more weighings in groups would be rid, but what heads do in each window, which the groups add up.

    Args:
        screen: heads, [n, 2] layers and heads; nll, [windows, scored tokens] of the whole model, and nll_zero,
            [n, windows, scored tokens] without each of them.
    """
    return [
        importance("head_importance_screen", values, screen["nll"], Place(*head))
        for head, values in zip(screen["heads"].tolist(), screen["nll_zero"], strict=True)
    ]
