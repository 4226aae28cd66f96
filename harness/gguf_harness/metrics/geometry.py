"""The shape of one embedding space, and how well another one can be laid over it: anisotropy, Procrustes, CKA.

All take rows in float32 and compute in float64, a block of rows at a time. Memory beside the rows for d dimensions:
8 (3 d^2 + 4 b d) bytes with b = 1024 rows in a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import iid_se, require_samples

__all__ = ["Alignment", "align", "principal_axes", "rank_correlation", "summarize_anisotropy", "variance_share"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_BLOCK: Final = 1024


def summarize_anisotropy(cosines: NDArray[np.floating], metric: str = "embedding_anisotropy") -> Estimate:
    """Mean cosine of random pairs: 0 where directions are uniform, 1 where all rows point the same way.

    Ethayarajh (2019), How Contextual are Contextualized Word Representations?, section 3.4. Pairs that share no row
    are independent samples, so that the standard error is the usual one.

    Args:
        cosines: [pairs].
        metric: name of the estimate.

    Raises:
        NoData: no pairs, or one without a direction.
    """
    samples = require_samples(cosines, metric)
    return Estimate(metric, float(samples.mean()), samples.size, iid_se(samples))


def rank_correlation(
    candidate: NDArray[np.floating], reference: NDArray[np.floating], metric: str = "similarity_rank_correlation"
) -> Estimate:
    """Spearman's correlation of the similarities of the same pairs in two spaces: is what was nearer still nearer?

    Kriegeskorte et al. (2008), Representational similarity analysis, compare spaces so. For pairs that share no row,
    the standard error is Bonett and Wright's (2000, Sample size requirements for estimating Pearson, Kendall and
    Spearman correlations) of Fisher's z, sqrt((1 + rho^2 / 2) / (n - 3)), carried back by the factor 1 - rho^2.

    Args:
        candidate: [pairs] cosines.
        reference: [pairs] cosines of the same pairs.
        metric: name of the estimate.

    Raises:
        NoData: fewer than four pairs, a similarity that is not finite, or similarities that are all the same.
    """
    a, b = require_samples(candidate, metric).ravel(), require_samples(reference, metric).ravel()
    if a.shape != b.shape:
        raise ValueError(f"Similarities of different pairs: {a.shape} and {b.shape}")
    if len(a) < 4:
        raise NoData(f"{metric}: {len(a)} pairs, expected at least 4.")
    from scipy.stats import rankdata

    x, y = (rankdata(values) - (len(a) + 1) / 2 for values in (a, b))
    norm = math.sqrt(float(x @ x) * float(y @ y))
    if norm == 0:
        raise NoData(f"{metric}: the similarities of one side are all the same.")
    value = max(-1.0, min(1.0, float(x @ y) / norm))
    error = (1 - value**2) * math.sqrt((1 + value**2 / 2) / (len(a) - 3))
    return Estimate(metric, value, len(a), error)


def variance_share(rows: Float32, components: int, metric: str) -> Estimate:
    """Share of the variance of rows in their first principal components: near components / d where all are alike.

    Mu and Viswanath (2018), All-but-the-top. The standard error takes rows as a sample and is of first order: the
    influence of a row x on the share s is (|projection|^2 - s |x|^2) / mean |x|^2.

    Args:
        rows: [n, d].
        components: how many.
        metric: name of the estimate.

    Raises:
        NoData: fewer than two rows, numbers that are not finite, or rows that do not vary.
    """
    mean, deviation = _moments(rows, metric)
    from scipy.linalg import eigh

    d = rows.shape[1]
    covariance = np.zeros((d, d))
    for part in _centred(rows, mean):
        covariance += part.T @ part
    _, leading = eigh(covariance, subset_by_index=[d - min(components, d), d - 1])
    squares = np.concatenate([
        np.stack([np.einsum("ij,ij->i", p, p), np.einsum("ij,ij->i", p @ leading, p @ leading)])
        for p in _centred(rows, mean)
    ], axis=1)  # fmt: skip
    share = min(1.0, float(squares[1].sum() / squares[0].sum()))
    influence = (squares[1] - share * squares[0]) / (deviation / len(rows))
    return Estimate(metric, share, len(rows), iid_se(influence[None, :]))


def principal_axes(rows: Float32, count: int) -> tuple[Float64, Float64, Float64]:
    """The first principal components of a few rows: of their Gram matrix, in float64.

    Each axis points to where its largest entry is positive, so that equal rows give equal pictures.

    Args:
        rows: [n, d]; memory is 8 n (n + d) bytes.
        count: how many; axes beyond the rank are zero.

    Returns:
        ([d] mean, [d, count] axes, [count] share of the variance along each, falling).

    Raises:
        NoData: fewer than two rows, numbers that are not finite, or rows that do not vary.
    """
    from scipy.linalg import eigh

    mean, square = _moments(rows, "principal axes")
    centred = rows - mean
    known = min(count, len(rows))
    values, left = eigh(centred @ centred.T, subset_by_index=[len(rows) - known, len(rows) - 1])
    values, left = values[::-1], left[:, ::-1]
    # Squares of singular values: below this they are rounding.
    values, left = values[values > 1e-12 * values[0]], left[:, values > 1e-12 * values[0]]
    axes, shares = np.zeros((rows.shape[1], count)), np.zeros(count)
    axes[:, : len(values)] = centred.T @ left / np.sqrt(values)
    shares[: len(values)] = values / square
    signs = np.where(axes[np.abs(axes).argmax(axis=0), np.arange(count)] < 0, -1.0, 1.0)
    return mean, axes * signs, shares


@dataclass(frozen=True, slots=True)
class Alignment:
    """How one space lies over another: `scale * (candidate - candidate_mean) @ rotation + reference_mean`.

    Attributes:
        rotation: [D, D] orthogonal; D is the larger dimension, and the smaller space has zeros in the others.
        procrustes_error: norm of what rotation and scale leave over, relative to the reference's; in [0, 1].
        cka: linear CKA, in [0, 1].
    """

    rotation: Float64
    scale: float
    candidate_mean: Float64
    reference_mean: Float64
    procrustes_error: Estimate
    cka: Estimate

    def apply(self, rows: Float32) -> Float64:
        """The candidate's rows in the reference's space: [n, D]."""
        return self.scale * (_padded(rows - self.candidate_mean, len(self.rotation)) @ self.rotation) + _padded(
            self.reference_mean[None, :], len(self.rotation)
        )


def align(
    candidate: Float32,
    reference: Float32,
    procrustes: str = "procrustes_error",
    cka: str = "embedding_cka",
) -> Alignment:
    """The rotation and scale that lay one space over another, what they leave over, and linear CKA.

    Procrustes: Schönemann (1966); both sides centred. With singular values s of A'B / (|A| |B|) the error is
    sqrt(1 - (sum s)^2), the square root of scipy.spatial.procrustes' disparity; it is computed from the residual, so
    that equal spaces give 1e-12 rather than the square root of rounding. CKA: Kornblith et al. (2019), |A'B|^2 /
    (|A'A| |B'B|), invariant to rotation and scale as well;
    `gguf_harness.metrics.similarity.linear_cka` is the same number. Both are optimistic where rows are not many more
    than dimensions: compare them at equal n.

    Standard errors take rows as a sample and are of first order. Of the error: of the ratio of squared residuals to
    squared norms, rotation held. Of CKA: a' (A'B) b is the influence of a row on |A'B|^2, likewise the others.

    Args:
        candidate: [n, d1].
        reference: [n, d2], the same rows in another space.
        procrustes: name of the error's estimate.
        cka: name of CKA's estimate.

    Raises:
        NoData: fewer than two rows, numbers that are not finite, or rows that do not vary.
    """
    if len(candidate) != len(reference):
        raise ValueError(f"Spaces with different rows: {candidate.shape} and {reference.shape}")
    d = max(candidate.shape[1], reference.shape[1])
    (mean_a, square_a), (mean_b, square_b) = _moments(candidate, procrustes), _moments(reference, procrustes)
    scales = math.sqrt(square_a), math.sqrt(square_b)

    def pairs() -> Iterator[tuple[Float64, Float64]]:
        for a, b in zip(_centred(candidate, mean_a), _centred(reference, mean_b), strict=True):
            yield _padded(a / scales[0], d), _padded(b / scales[1], d)

    aa, bb, ab = np.zeros((d, d)), np.zeros((d, d)), np.zeros((d, d))
    for a, b in pairs():
        aa += a.T @ a
        bb += b.T @ b
        ab += a.T @ b
    from scipy.linalg import svd

    u, values, vt = svd(ab)
    rotation, nuclear = u @ vt, float(values.sum())
    parts = [_row_parts(a, b, (aa, bb, ab), rotation, nuclear) for a, b in pairs()]
    left, norms, kk, ll, kl = np.concatenate(parts, axis=1)
    return Alignment(
        rotation,
        nuclear * scales[1] / scales[0],
        mean_a,
        mean_b,
        _residual(left, norms, procrustes),
        _cka(kk, ll, kl, cka),
    )


def _row_parts(
    a: Float64, b: Float64, products: tuple[Float64, Float64, Float64], rotation: Float64, nuclear: float
) -> Float64:
    """[5, rows]: squared residual, squared norm, and what each row adds to |A'A|^2, |B'B|^2 and |A'B|^2."""
    aa, bb, ab = products
    rest = nuclear * (a @ rotation) - b
    quadratic = [(a, aa, a), (b, bb, b), (a, ab, b)]
    return np.stack([
        np.einsum("ij,ij->i", rest, rest),
        np.einsum("ij,ij->i", b, b),
        *(np.einsum("ij,ij->i", left @ middle, right) for left, middle, right in quadratic),
    ])  # fmt: skip


def _residual(left: Float64, norms: Float64, metric: str) -> Estimate:
    square = min(1.0, float(left.sum() / norms.sum()))
    value = math.sqrt(square)
    error = iid_se(((left - square * norms) / norms.mean())[None, :])
    # Rounding apart, a residual of nothing has no error.
    return Estimate(metric, value, len(left), None if error is None else error / (2 * value) if value > 1e-9 else 0.0)


def _cka(kk: Float64, ll: Float64, kl: Float64, metric: str) -> Estimate:
    value = min(1.0, float(kl.sum() / math.sqrt(kk.sum() * ll.sum())))
    # |A'B|^2 is a sum over pairs of rows: each row counts on both sides, hence the factor 2.
    influence = 2 * value * (kl / kl.mean() - kk / (2 * kk.mean()) - ll / (2 * ll.mean())) if value > 0 else None
    return Estimate(metric, value, len(kk), None if influence is None else iid_se(influence[None, :]))


def _moments(rows: Float32, metric: str) -> tuple[Float64, float]:
    """(mean row, sum of squared deviations from it).

    Raises:
        NoData: fewer than two rows, numbers that are not finite, or rows that do not vary.
    """
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] == 0:
        raise NoData(f"{metric}: rows of shape {rows.shape}, expected at least two of one dimension.")
    mean = rows.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise NoData(f"{metric}: the rows hold numbers that are not finite.")
    # Rows that are all the same leave only the rounding of their mean.
    square = float(sum((part * part).sum() for part in _centred(rows, mean)))
    if square <= 1e-24 * len(rows) * max(float(mean @ mean), np.finfo(np.float64).tiny):
        raise NoData(f"{metric}: the rows do not vary.")
    return mean, square


def _centred(rows: Float32, mean: Float64) -> Iterator[Float64]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK] - mean


def _padded(rows: Float64, d: int) -> Float64:
    return rows if rows.shape[1] == d else np.pad(rows, ((0, 0), (0, d - rows.shape[1])))
