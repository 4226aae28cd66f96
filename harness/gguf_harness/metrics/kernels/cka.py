"""Linear centered kernel alignment (CKA): similarity of two representations of the same examples, from 0 to 1.

Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited", equation 4 with features centered:
|Y'X|^2 / (|X'X| |Y'Y|). Invariant to rotation and isotropic scaling of either side. Biased upwards if there are few
examples per feature: compare it only at equal n.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData

__all__ = ["linear_cka", "linear_cka_from_rows", "linear_cka_without_each", "row_products"]

Floats = NDArray[np.float64]

_ROUNDING: Final = 1e-12


def linear_cka(candidate: ArrayLike, reference: ArrayLike) -> float:
    """CKA of two matrices.

    Args:
        candidate: [n, d1].
        reference: [n, d2].

    Raises:
        NoData: fewer than two examples, or features that do not vary.
    """
    a, b = _prepared(candidate, reference)
    # Both forms are the same number; the smaller matrices are those of the shorter side.
    if len(a) <= min(a.shape[1], b.shape[1]):
        k, m = a @ a.T, b @ b.T
        cross, norms = float(np.sum(k * m)), np.linalg.norm(k) * np.linalg.norm(m)
    else:
        cross, norms = float(np.linalg.norm(b.T @ a) ** 2), np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return min(1.0, float(cross / norms))


def linear_cka_without_each(
    candidate: ArrayLike, reference: ArrayLike, starts: NDArray[np.integer[Any]]
) -> tuple[float, Floats]:
    """CKA of all examples, and without each cluster, for a jackknife.

    CKA without a cluster needs no new products: with Gram matrices K and M, the centered product is
    sum K M - 2/n sum_i k_i m_i + (sum K)(sum M) / n^2 of row sums k, m, and each of these loses its cluster's part.

    Args:
        candidate: [n, d1].
        reference: [n, d2].
        starts: [clusters + 1] where each cluster begins and the last one ends, strictly rising from 0 to n.

    Returns:
        (CKA of all, [clusters] CKA without each; NaN if the rest does not vary).

    Raises:
        NoData: fewer than two examples, or features that do not vary.
    """
    k, m = (side @ side.T for side in _prepared(candidate, reference))
    groups = [slice(int(a), int(b)) for a, b in itertools.pairwise(starts)]
    cross, own, other = (_centred_products(*pair, groups) for pair in ((k, m), (k, k), (m, m)))
    # A remainder of rounding errors does not vary either.
    varies = (own[1:] > _ROUNDING * own[0]) & (other[1:] > _ROUNDING * other[0])
    without = np.full(len(groups), np.nan)
    without[varies] = (cross[1:] / np.sqrt(np.where(varies, own[1:] * other[1:], 1)))[varies]
    return min(1.0, float(cross[0] / np.sqrt(own[0] * other[0]))), without


def row_products(a: Floats, b: Floats, aa: Floats, bb: Floats, ab: Floats) -> Floats:
    """[3, rows]: what each row adds to |A'A|^2, |B'B|^2 and |A'B|^2.

    Args:
        a: [rows, d] some rows of A, centred.
        b: [rows, d] the same rows of B.
        aa: [d, d] A'A of all rows.
        bb: [d, d] B'B.
        ab: [d, d] A'B.
    """
    quadratic = [(a, aa, a), (b, bb, b), (a, ab, b)]
    return np.stack([np.einsum("ij,ij->i", left @ middle, right) for left, middle, right in quadratic])


def linear_cka_from_rows(own: Floats, other: Floats, cross: Floats) -> tuple[float, Floats | None]:
    """CKA from the `row_products` of all rows, with the influence of each row; None if the CKA is 0.

    |A'B|^2 is a sum over pairs of rows: each row counts on both sides, hence the factor 2 of the influence.

    Args:
        own: [n] parts of |A'A|^2.
        other: [n] parts of |B'B|^2.
        cross: [n] parts of |A'B|^2.
    """
    value = min(1.0, float(cross.sum() / math.sqrt(own.sum() * other.sum())))
    if value <= 0:
        return value, None
    return value, 2 * value * (cross / cross.mean() - own / (2 * own.mean()) - other / (2 * other.mean()))


def _prepared(candidate: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
    """Both sides centred, with 1 as the largest entry."""
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(f"CKA needs two matrices with the same number of rows, not {a.shape} and {b.shape}")
    if len(a) < 2:
        raise NoData(f"CKA of {len(a)} examples is not defined.", "Give at least two.")
    a, b = a - a.mean(0), b - b.mean(0)
    scales = np.abs(a).max(), np.abs(b).max()
    if 0 in scales:
        raise NoData("CKA of features that do not vary is not defined.")
    return a / scales[0], b / scales[1]


def _centred_products(k: Floats, m: Floats, groups: list[slice]) -> Floats:
    """[1 + clusters] sum of the product of both centered matrices: of all, and without each cluster."""
    n, rows_k, rows_m = len(k), k.sum(axis=1), m.sum(axis=1)
    product = float(np.einsum("ij,ij->", k, m))
    sums = [product - 2 / n * float(rows_k @ rows_m) + float(rows_k.sum()) * float(rows_m.sum()) / n**2]
    for group in groups:
        strip_k, strip_m = k[:, group], m[:, group]
        strip = float(np.einsum("ij,ij->", strip_k, strip_m))
        corner = float(np.einsum("ij,ij->", strip_k[group], strip_m[group]))
        left = n - strip_k.shape[1]
        if left == 0:
            sums.append(0.0)
            continue
        # Row sums without the cluster's columns, of the rows that stay.
        a, b = np.delete(rows_k - strip_k.sum(axis=1), group), np.delete(rows_m - strip_m.sum(axis=1), group)
        sums.append(product - 2 * strip + corner - 2 / left * float(a @ b) + float(a.sum() * b.sum()) / left**2)
    return np.array(sums)
