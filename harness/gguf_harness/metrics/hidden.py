"""Properties of hidden states: size, shape, updates of blocks, outliers. Pure NumPy, in float64.

States are [n, d]: n tokens of one text, d dimensions of the residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.cka import linear_cka_without_each
from gguf_harness.metrics.kernels.directions import directions, norms
from gguf_harness.metrics.kernels.standard_errors import jackknife_se

__all__ = [
    "MASSIVE",
    "Dimensions",
    "MassiveActivation",
    "cka_with_error",
    "dimensions",
    "massive_activations",
    "massive_per_token",
    "outlier_kurtosis",
    "relative_errors",
    "token_similarity",
    "update_share",
]

Array = NDArray[np.float64]

MASSIVE: Final = 100.0
"""An activation is massive from this multiple of the median magnitude. Sun et al. ask for 1000, and for more than
100 in absolute terms, which depends on a model's scale; `massive_activations` takes other multiples."""


@dataclass(frozen=True, slots=True)
class MassiveActivation:
    """A very large entry of the hidden states: token and dimension, value, multiple of the median."""

    token: int
    dimension: int
    value: float
    ratio: float


def relative_errors(candidate: ArrayLike, reference: ArrayLike) -> Array:
    """[n] norm of each token's difference divided by the norm of the reference's state.

    Raises:
        NoData: a reference of zero norm, for which a relative error is not defined.
    """
    a, b = _states(candidate), _states(reference)
    size = norms(b)
    if not size.all():
        raise NoData(f"{int((size == 0).sum())} of {len(size)} states of the reference are zero.")
    return np.asarray(norms(a - b) / size)


def update_share(update: ArrayLike, stream: ArrayLike) -> Array:
    """[n] norm of a block's update divided by the norm of the stream that it is added to.

    Raises:
        NoData: a stream of zero norm.
    """
    size = norms(_states(stream))
    if not size.all():
        raise NoData(f"The stream of {int((size == 0).sum())} of {len(size)} tokens is zero.")
    return np.asarray(norms(_states(update)) / size)


def token_similarity(states: ArrayLike, *, centered: bool) -> float:
    """Mean cosine of all pairs of different tokens, between -1 / (n - 1) and 1.

    Ethayarajh (2019), "How Contextual are Contextualized Word Representations?", section 3.3 (anisotropy): near 1 if
    all states point the same way. In closed form: (|sum of unit vectors|^2 - n) / (n (n - 1)).

    Args:
        states: [n, d].
        centered: subtract the mean state first, which causes most of the similarity in many models.

    Raises:
        NoData: fewer than two tokens, or a zero state.
    """
    x = _states(states)
    if len(x) < 2:
        raise NoData(f"{len(x)} tokens make no pair.", "Give at least two.")
    if centered:
        x = x - x.mean(axis=0)
    units, valid = directions(x)
    if not valid.all():
        raise NoData("A state is zero: it has no direction.")
    total = units.sum(axis=0)
    n = len(x)
    return float((total @ total - n) / (n * (n - 1)))


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Effective number of directions of states, between 1 and min(n - 1, d). Compare only at equal n.

    Attributes:
        effective_rank: exp of the entropy of the singular values of the centered states, normalized to sum one. Roy and
            Vetterli (2007), "The effective rank: a measure of effective dimensionality", definition 1.
        participation_ratio: (sum l)^2 / sum l^2 of the eigenvalues l of their covariance. Gao et al. (2017), "A theory
            of multineuronal dimensionality, dynamics and measurement". Smaller: large directions count for more.
    """

    effective_rank: float
    participation_ratio: float


def dimensions(states: ArrayLike) -> Dimensions:
    """Effective rank and participation ratio of states [n, d].

    Raises:
        NoData: fewer than two tokens, or states that are all the same.
    """
    x = _states(states)
    if len(x) < 2:
        raise NoData(f"{len(x)} tokens span nothing once centered.", "Give at least two.")
    x = x - x.mean(axis=0)
    largest = float(np.abs(x).max())
    if largest == 0:
        raise NoData("States that are all the same span nothing.")
    x = x / largest
    # Eigenvalues of the smaller product: rounding of 1e-16 there is 1e-8 in a singular value, which is negligible in
    # the entropy.
    variance = np.linalg.eigvalsh(x @ x.T if len(x) <= x.shape[1] else x.T @ x)
    variance = variance[variance > 0]
    share = np.sqrt(variance) / np.sqrt(variance).sum()
    entropy = -float(np.sum(share * np.log(share)))
    return Dimensions(float(np.exp(entropy)), float(variance.sum() ** 2 / np.square(variance).sum()))


def outlier_kurtosis(states: ArrayLike) -> float:
    """Kurtosis of the dimensions' root mean squares s, mean(s^4) / mean(s^2)^2: 1 to d, 1 if all are alike.

    He et al. (2024), "Understanding and Minimising Outlier Features", equation 1.

    Raises:
        NoData: states that are all zero.
    """
    x = _states(states)
    largest = float(np.abs(x).max())
    if largest == 0:
        raise NoData("States that are all zero have no outliers.")
    power = np.square(x / largest).mean(axis=0)
    return float(np.square(power).mean() / power.mean() ** 2)


def massive_per_token(states: ArrayLike, factor: float = MASSIVE) -> NDArray[np.int64]:
    """[n] number of massive dimensions of each token; see `massive_activations`."""
    size, median = _magnitudes(states)
    return np.asarray((size > factor * median).sum(axis=1), dtype=np.int64)


def massive_activations(states: ArrayLike, factor: float = MASSIVE, limit: int = 8) -> list[MassiveActivation]:
    """The largest entries beyond `factor` times the median magnitude of all entries, the largest first.

    Sun et al. (2024), "Massive Activations in Large Language Models", section 2.

    Args:
        states: [n, d].
        factor: see `MASSIVE`.
        limit: most entries to return.

    Raises:
        NoData: the median magnitude is zero.
    """
    x = _states(states)
    size, median = _magnitudes(x)
    beyond = np.flatnonzero(size > factor * median)
    order = beyond[np.argsort(-size.ravel()[beyond], kind="stable")[:limit]]
    places = zip(*np.unravel_index(order, x.shape), strict=True)
    return [
        MassiveActivation(int(token), int(dim), float(x[token, dim]), float(size[token, dim] / median))
        for token, dim in places
    ]


def cka_with_error(candidate: ArrayLike, reference: ArrayLike, starts: ArrayLike) -> tuple[float, float | None]:
    """Linear CKA of two representations, with its jackknife error over clusters of examples.

    Args:
        candidate: [n, d1].
        reference: [n, d2].
        starts: [clusters + 1] where each cluster begins.

    Returns:
        (CKA of all, standard error; None with fewer than two clusters, or if leaving one out leaves nothing).

    Raises:
        NoData: features that do not vary.
    """
    places = np.unique(np.asarray(starts, dtype=np.int64))
    value, without = linear_cka_without_each(_states(candidate), _states(reference), places)
    return value, jackknife_se(without) if np.isfinite(without).all() else None


def _magnitudes(states: ArrayLike) -> tuple[Array, float]:
    size = np.abs(_states(states))
    median = float(np.median(size))
    if median == 0:
        raise NoData("Half of the activations are zero: their median gives no scale.")
    return size, median


def _states(states: ArrayLike) -> Array:
    x = np.asarray(states, dtype=np.float64)
    if x.ndim != 2 or x.size == 0:
        raise NoData(f"Hidden states of shape {x.shape}, expected [tokens, dimensions].")
    if not np.isfinite(x).all():
        raise NoData(f"{int(np.count_nonzero(~np.isfinite(x)))} of {x.size} activations are not finite.")
    return x
