"""Does a model find a fact in a long text? Log-probability, rank and lift of its answer by depth.

Arrays are [needles, haystacks, 1 + depths], with the text without the fact first. No two facts share a text, so facts
are independent, and errors are clustered by them.

The lift is ln p(answer | text with the fact) - ln p(answer | the same text without it): what the model has from reading
the fact, however probable the answer is anyway. Above zero it retrieves; by probabilities, models show it that would
never write the answer.

Sources: Kamradt (2023), Needle in a haystack: pressure testing LLMs, for the test; the lift is the pointwise mutual
information of fact and answer under the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import WHOLE, Estimate, Place
from gguf_harness.metrics.registry import possible_values
from gguf_harness.metrics.stats import as_estimate, mean_with_errors, require_samples

__all__ = ["compare_needles", "depth_name", "summarize_needles"]

Read: TypeAlias = Mapping[str, NDArray[Any]]
Values = NDArray[np.float64]


def depth_name(depth: float) -> str:
    """`25 %`: the part that is the place of an estimate; the share of the text before the fact."""
    return f"{100 * depth:.0f} %"


def summarize_needles(read: Read, depths: Sequence[float]) -> list[Estimate]:
    """Log-probability, lift and rank of the answers at each depth, and over all of them.

    Args:
        read: logprob in nats and rank from 1, each [needles, haystacks, 1 + depths].
        depths: shares of the text before the fact.
    """
    logprob = _samples(read["logprob"], depths, "log-probabilities of answers")
    rank = _samples(read["rank"], depths, "ranks of answers")
    lift = logprob[..., 1:] - logprob[..., :1]
    estimates = []
    for place, columns in _places(depths):
        estimates += [
            _mean("needle_logprob", logprob[..., 1:][..., columns], place),
            _mean("needle_lift", lift[..., columns], place),
            _geometric_mean("needle_rank", rank[..., 1:][..., columns], place),
        ]
    return estimates


def compare_needles(read: Read, base: Read, depths: Sequence[float]) -> list[Estimate]:
    """Change of the answers' log-probability from another run on the same texts, at each depth and over all of them.

    Args:
        read: of the subject, as for `summarize_needles`.
        base: of what it is compared with.
        depths: shares of the text before the fact.
    """
    ours, theirs = (_samples(each["logprob"], depths, "log-probabilities of answers") for each in (read, base))
    if ours.shape != theirs.shape:
        raise NoData(f"Answers in different texts: {ours.shape} against {theirs.shape}.")
    change = (ours - theirs)[..., 1:]
    return [_mean("needle_change", change[..., columns], place) for place, columns in _places(depths)]


def _samples(values: NDArray[Any], depths: Sequence[float], what: str) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or array.shape[2] != 1 + len(depths):
        raise NoData(f"{what} have the shape {array.shape}, expected [needles, haystacks, {1 + len(depths)}].")
    require_samples(array.ravel(), what)
    return array


def _places(depths: Sequence[float]) -> list[tuple[Place, slice]]:
    """Over all depths, then each of them: its place, and its columns."""
    each = [(Place(part=depth_name(depth)), slice(at, at + 1)) for at, depth in enumerate(depths)]
    return [(WHOLE, slice(None)), *each]


def _mean(metric: str, values: Values, place: Place) -> Estimate:
    return _possible(as_estimate(metric, mean_with_errors(values.reshape(len(values), -1)), place))


def _possible(estimate: Estimate) -> Estimate:
    """With its interval cut to values that the metric can have: of few facts it reaches far."""
    least, most = possible_values(estimate.metric)
    low, high = (None if end is None else min(max(end, least), most) for end in (estimate.low, estimate.high))
    return replace(estimate, low=low, high=high)


def _geometric_mean(metric: str, values: Values, place: Place) -> Estimate:
    """The exp of the mean logarithm: ranks of vocabularies spread over orders of magnitude."""
    logs = np.log(values.reshape(len(values), -1))
    value = math.exp(logs.mean())
    mean = mean_with_errors(logs, influence=value * logs, value=value, link=math.exp)
    return _possible(as_estimate(metric, mean, place))
