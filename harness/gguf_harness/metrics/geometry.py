"""The shape of an embedding space, and its similarity to another one.

Of one: anisotropy, intrinsic dimension, variance in the first components. Of two: which neighbours and similarities are
kept, and how well they can be aligned (Procrustes, CKA). Functions take rows in float32 and compute in float64, a block
at a time. Memory besides the rows for d dimensions: 8 (3 d^2 + 4 b d) bytes with b = 1024 rows in a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.cka import linear_cka_from_rows, row_products
from gguf_harness.metrics.kernels.moments import centred_blocks, moments
from gguf_harness.metrics.kernels.pca import principal_subspace
from gguf_harness.metrics.kernels.ranks import spearman
from gguf_harness.metrics.kernels.ratios import ratio_of_means
from gguf_harness.metrics.kernels.standard_errors import iid_se
from gguf_harness.metrics.records import Estimate
from gguf_harness.metrics.stats import require_samples

__all__ = [
    "Alignment",
    "align",
    "estimate_intrinsic_dimension",
    "neighbour_recall",
    "rank_correlation",
    "summarize_anisotropy",
    "variance_share",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]

_SAME_ROW: Final = 1e-3
"""Chords below this are rounding errors: cosines in float32 differ from 1 by at least 1e-7."""


def summarize_anisotropy(cosines: NDArray[np.floating], metric: str = "embedding_anisotropy") -> Estimate:
    """Mean cosine of random pairs: 0 for uniform directions, 1 if all rows point the same way.

    Ethayarajh (2019), How Contextual are Contextualized Word Representations?, section 3.4. Pairs that share no row are
    independent samples, so the standard error is the usual one.

    Args:
        cosines: [pairs].
        metric: name of the estimate.

    Raises:
        NoData: no pairs, or one with a zero vector.
    """
    samples = require_samples(cosines, metric)
    return Estimate(metric, float(samples.mean()), samples.size, iid_se(samples))


def estimate_intrinsic_dimension(cosines: Float32, metric: str = "embedding_intrinsic_dimension") -> Estimate:
    """Intrinsic dimension by TwoNN, of directions: rows scaled to unit length.

    Facco et al. (2017), Estimating the intrinsic dimension of datasets by a minimal neighborhood information: where
    density is constant out to the second neighbour, the ratio mu of the distances to the second and first neighbour
    has the density d mu^-(d+1), whatever the density is. We take the unbiased form of its maximum likelihood,
    d = (n - 1) / sum(ln mu), whose standard error is d / sqrt(n - 2): ln mu is exponential and their sum is a Gamma
    variable (Denti et al., 2022, The generalized ratios intrinsic dimension estimator). Facco et al. fit a line to the
    same distribution instead. Distances are chords, sqrt(2 - 2 cos). Queries whose nearest neighbour is an identical
    row are left out. In many dimensions it is biased downwards if there are few rows.

    Args:
        cosines: [queries, at least 2] of each query's nearest rows, nearest first.
        metric: name of the estimate.

    Raises:
        NoData: fewer than three queries with neighbours of their own.
    """
    chords = np.sqrt(np.maximum(0, 2 - 2 * cosines[:, :2].astype(np.float64)))
    chords = chords[chords[:, 0] > _SAME_ROW]
    total = float(np.log(chords[:, 1] / chords[:, 0]).sum())
    if len(chords) < 3 or not total > 0:
        raise NoData(f"{metric}: {len(chords)} rows have two neighbours of their own, expected at least 3.")
    value = (len(chords) - 1) / total
    return Estimate(metric, value, len(chords), value / math.sqrt(len(chords) - 2))


def neighbour_recall(candidate: Ints, reference: Ints, metric: str = "neighbour_recall") -> Estimate:
    """Recall@k: the share of a query's k nearest rows in the reference that are among its k nearest in the candidate.

    Averaged over queries, which are a random sample of all; the standard error is that of the sample. It is
    symmetric, since both sides have k; Jégou et al. (2011), Product Quantization for Nearest Neighbor Search, measure
    quantized vectors by a recall like this one.

    Args:
        candidate: [queries, k] rows.
        reference: [queries, k] rows, for the same queries.
        metric: name of the estimate.

    Raises:
        NoData: no queries or no neighbours.
    """
    if candidate.shape != reference.shape:
        raise ValueError(f"Neighbours of different shape: {candidate.shape} and {reference.shape}")
    if candidate.size == 0:
        raise NoData(f"{metric}: there are no neighbours to compare.")
    shared = (candidate[:, :, None] == reference[:, None, :]).any(axis=2).mean(axis=1)
    return Estimate(metric, float(shared.mean()), len(shared), iid_se(shared))


def rank_correlation(
    candidate: NDArray[np.floating], reference: NDArray[np.floating], metric: str = "similarity_rank_correlation"
) -> Estimate:
    """Spearman's correlation of the similarities of the same pairs in two spaces: is their order kept?

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
    value = spearman(a, b, metric)
    error = (1 - value**2) * math.sqrt((1 + value**2 / 2) / (len(a) - 3))
    return Estimate(metric, value, len(a), error)


def variance_share(rows: Float32, components: int, metric: str) -> Estimate:
    """Share of the variance of rows in their first principal components: near components / d if all are alike.

    Mu and Viswanath (2018), All-but-the-top. The standard error takes rows as a sample and is of first order: the
    influence of a row x on the share s is (|projection|^2 - s |x|^2) / mean |x|^2.

    Args:
        rows: [n, d].
        components: how many.
        metric: name of the estimate.

    Raises:
        NoData: fewer than two rows, numbers that are not finite, or rows that do not vary.
    """
    mean, _ = moments(rows, metric)
    leading = principal_subspace(rows, mean, components)
    squares = np.concatenate([
        np.stack([np.einsum("ij,ij->i", p, p), np.einsum("ij,ij->i", p @ leading, p @ leading)])
        for p in centred_blocks(rows, mean)
    ], axis=1)  # fmt: skip
    share, influence = ratio_of_means(squares[1], squares[0])
    return Estimate(metric, min(1.0, share), len(rows), iid_se(influence))


@dataclass(frozen=True, slots=True)
class Alignment:
    """Alignment of one space with another: `scale * (candidate - candidate_mean) @ rotation + reference_mean`.

    Attributes:
        rotation: [D, D] orthogonal; D is the larger dimension, and the smaller space has zeros in the others.
        procrustes_error: norm of the residual after rotation and scale, relative to the reference's; in [0, 1].
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
    """The rotation and scale that align one space with another, the residual, and linear CKA.

    Procrustes: Schönemann (1966); both sides centred. With singular values s of A'B / (|A| |B|) the error is
    sqrt(1 - (sum s)^2), the square root of scipy.spatial.procrustes' disparity; it is computed from the residual, so
    that equal spaces give 1e-12 rather than the square root of rounding. CKA is that of `kernels.cka`. Both are
    optimistic unless there are many more rows than dimensions: compare them at equal n.

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
    (mean_a, square_a), (mean_b, square_b) = moments(candidate, procrustes), moments(reference, procrustes)
    scales = math.sqrt(square_a), math.sqrt(square_b)

    def pairs() -> Iterator[tuple[Float64, Float64]]:
        for a, b in zip(centred_blocks(candidate, mean_a), centred_blocks(reference, mean_b), strict=True):
            yield _padded(a / scales[0], d), _padded(b / scales[1], d)

    aa, bb, ab = np.zeros((d, d)), np.zeros((d, d)), np.zeros((d, d))
    for a, b in pairs():
        aa += a.T @ a
        bb += b.T @ b
        ab += a.T @ b
    from scipy.linalg import svd

    u, values, vt = svd(ab)
    rotation, nuclear = u @ vt, float(values.sum())
    parts = [
        np.concatenate([_residuals(nuclear * (a @ rotation), b), row_products(a, b, aa, bb, ab)]) for a, b in pairs()
    ]
    left, norms, *products = np.concatenate(parts, axis=1)
    alike, influence = linear_cka_from_rows(*products)
    return Alignment(
        rotation,
        nuclear * scales[1] / scales[0],
        mean_a,
        mean_b,
        _procrustes_error(left, norms, procrustes),
        Estimate(cka, alike, len(candidate), None if influence is None else iid_se(influence)),
    )


def _residuals(laid: Float64, target: Float64) -> Float64:
    """[2, rows]: squared norm of the residual between two spaces, and of the target's rows."""
    rest = laid - target
    return np.stack([np.einsum("ij,ij->i", rest, rest), np.einsum("ij,ij->i", target, target)])


def _procrustes_error(left: Float64, norms: Float64, metric: str) -> Estimate:
    square, influence = ratio_of_means(left, norms)
    value = math.sqrt(min(1.0, square))
    error = iid_se(influence)
    # A residual that is zero up to rounding has no error.
    return Estimate(metric, value, len(left), None if error is None else error / (2 * value) if value > 1e-9 else 0.0)


def _padded(rows: Float64, d: int) -> Float64:
    return rows if rows.shape[1] == d else np.pad(rows, ((0, 0), (0, d - rows.shape[1])))
