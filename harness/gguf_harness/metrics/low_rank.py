"""Sizes of a low-rank change of a matrix, from its factors alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import WHOLE, Estimate, Place

__all__ = ["NO_LAYER", "LowRank", "change_estimates", "effective_rank", "measure_low_rank"]

NO_LAYER: Final = -1
"""Layer of a matrix outside of layers."""


class LowRank(NamedTuple):
    """Sizes of B A.

    Attributes:
        norm: Frobenius norm.
        singular: [rank] singular values, the largest first.
    """

    norm: float
    singular: NDArray[np.float64]


def measure_low_rank(a: NDArray[Any], b: NDArray[Any]) -> LowRank:
    """Frobenius norm and singular values of B A, without forming it.

    With QR decompositions A^T = Q_a R_a and B = Q_b R_b, B A = Q_b (R_b R_a^T) Q_a^T: the singular values are those of
    a matrix of rank x rank. Golub and Van Loan (2013), Matrix Computations, sections 2.4 and 5.2.

    Args:
        a: [rank, in].
        b: [out, rank].

    Raises:
        NoData: a weight is not finite.
    """
    first, second = (np.asarray(np.linalg.qr(each.astype(np.float64), mode="r")) for each in (a.T, b))
    core = second @ first.T
    if not np.isfinite(core).all():
        raise NoData("A low-rank change has weights that are not finite.")
    singular = np.linalg.svd(core, compute_uv=False)
    return LowRank(float(np.sqrt((singular * singular).sum())), singular)


def effective_rank(singular: NDArray[np.float64]) -> float:
    """The exponential of the entropy of singular values normalized to sum one: how many directions a change has.

    Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality", definition 1.

    Raises:
        NoData: all of them are zero.
    """
    total = float(singular.sum())
    if total <= 0:
        raise NoData("A change of zero has no rank.")
    shares = singular[singular > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def change_estimates(arrays: Mapping[str, NDArray[Any]]) -> list[Estimate]:
    """Relative size, rank and effective rank of changes: of all matrices, by layer, and by role.

    Several adapters of one matrix are counted as if their changes stood at right angles: squares of norms add up.

    Args:
        arrays: of `measure_changes`.
    """
    every = np.ones(len(arrays["tensor"]), dtype=np.bool_)
    estimates = [
        Estimate("lora_rank", float(arrays["rank"].max()), int(arrays["rank"].size)),
        *_sizes(arrays, every, WHOLE),
    ]
    for layer in sorted(set(arrays["layer"].tolist()) - {NO_LAYER}):
        estimates += _sizes(arrays, arrays["layer"] == layer, Place(layer))
    for role in dict.fromkeys(arrays["role"].tolist()):
        estimates += _sizes(arrays, arrays["role"] == role, Place(part=str(role)))
    return estimates


def _sizes(arrays: Mapping[str, NDArray[Any]], chosen: NDArray[np.bool_], place: Place) -> list[Estimate]:
    matrices = dict(zip(arrays["tensor"][chosen].tolist(), arrays["weights"][chosen].tolist(), strict=True))
    weights = sum(float(norm) ** 2 for norm in matrices.values())
    norm = float(np.sqrt((arrays["norm"][chosen] ** 2).sum() / weights))
    ranks = arrays["effective_rank"][chosen]
    known = ranks[~np.isnan(ranks)]
    estimates = [Estimate("lora_relative_norm", norm, len(matrices), place=place)]
    if known.size:
        estimates.append(Estimate("lora_effective_rank", float(known.mean()), known.size, place=place))
    return estimates
