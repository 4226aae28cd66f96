"""Errors of quantized weights. Pure NumPy: mergeable sums over blocks of rows, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import WHOLE, Estimate, Place

__all__ = ["OUTLIER_SIGMAS", "TensorError", "compare_blocks", "merge_errors", "spread", "summarize_error"]

OUTLIER_SIGMAS: Final = 6.0
"""A weight farther from the mean of its tensor than so many standard deviations is an outlier. Dettmers et al. (2022),
LLM.int8(), use this for features of magnitude 6; here the scale is that of the tensor."""


@dataclass(frozen=True, slots=True)
class TensorError:
    """Errors of a tensor, or of several together, against the original.

    Attributes:
        name: of the tensor, or of the group.
        type: as the candidate stores it.
        reference_type: as the reference stores it.
        weights: how many.
        bytes: of the candidate's data.
        reference_bytes: of the reference's data.
        squared_error: sum of (candidate - reference)^2.
        squared_reference: sum of reference^2.
        squared_candidate: sum of candidate^2.
        product: sum of candidate * reference.
        max_error: largest |candidate - reference|.
        outliers: weights of the reference beyond `OUTLIER_SIGMAS`.
        largest_sigmas: the reference's farthest weight, in standard deviations of its tensor.
    """

    name: str
    type: str
    reference_type: str
    weights: int
    bytes: int
    reference_bytes: int
    squared_error: float
    squared_reference: float
    squared_candidate: float
    product: float
    max_error: float
    outliers: int
    largest_sigmas: float

    @property
    def relative_rmse(self) -> float | None:
        """Norm of the difference divided by the norm of the reference (Frobenius); None if only the latter is zero."""
        if self.squared_error == 0:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_reference) if self.squared_reference else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between both as vectors; None if one is zero."""
        norms = math.sqrt(self.squared_candidate) * math.sqrt(self.squared_reference)
        if norms == 0:
            return None
        return 1.0 if self.squared_error == 0 else max(-1.0, min(1.0, self.product / norms))

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio, 10 log10(reference^2 / error^2); None if noise or signal is zero."""
        if self.squared_error == 0 or self.squared_reference == 0:
            return None
        return 10 * (math.log10(self.squared_reference) - math.log10(self.squared_error))

    @property
    def bits(self) -> float:
        """Bits per weight that the candidate spends."""
        return 8 * self.bytes / self.weights

    @property
    def outlier_share(self) -> float:
        """Share of the weights that are outliers in the reference."""
        return self.outliers / self.weights

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)


def spread(blocks: Iterable[ArrayLike]) -> tuple[float, float]:
    """Mean and population standard deviation of weights given in blocks.

    Raises:
        NoData: no weights.
    """
    count, total, squares = 0, 0.0, 0.0
    for block in blocks:
        values = _flat(block)
        count += values.size
        total += float(values.sum())
        squares += _dot(values, values)
    if count == 0:
        raise NoData("There are no weights.")
    mean = total / count
    return mean, math.sqrt(max(0.0, squares / count - mean * mean))


def compare_blocks(
    blocks: Iterable[tuple[ArrayLike, ArrayLike]], mean: float, sigma: float, name: str = ""
) -> TensorError:
    """Compare a tensor with its original, block by block; the caller adds the storage types.

    Args:
        blocks: (candidate, reference) of the same shape.
        mean: of the reference; see `spread`.
        sigma: its standard deviation.
        name: of the tensor.

    Raises:
        NoData: there are no weights, or some are not finite.
    """
    count, outliers = 0, 0
    error = own = other = product = largest = farthest = 0.0
    for candidate, reference in blocks:
        a, b = _flat(candidate), _flat(reference)
        if a.size != b.size:
            raise ValueError(f"Blocks of different size: {a.size} and {b.size}")
        difference = a - b
        count += a.size
        error += _dot(difference, difference)
        own += _dot(a, a)
        other += _dot(b, b)
        product += _dot(a, b)
        # NumPy's maximum keeps NaN, unlike Python's: it is detected below.
        largest = float(np.maximum(largest, np.abs(difference).max(initial=0)))
        distance = np.abs(b - mean)
        farthest = float(np.maximum(farthest, distance.max(initial=0)))
        outliers += int(np.count_nonzero(distance > OUTLIER_SIGMAS * sigma)) if sigma > 0 else 0
    if count == 0:
        raise NoData(f"Tensor {name!r} has no weights.")
    if not math.isfinite(error + own + other):
        raise NoData(f"Tensor {name!r} has weights that are not finite.", "The file is damaged; create it again.")
    return TensorError(
        name=name,
        type="",
        reference_type="",
        bytes=0,
        reference_bytes=0,
        weights=count,
        squared_error=error,
        squared_reference=other,
        squared_candidate=own,
        product=product,
        max_error=largest,
        outliers=outliers,
        largest_sigmas=farthest / sigma if sigma > 0 else 0.0,
    )


def merge_errors(errors: Sequence[TensorError], name: str) -> TensorError:
    """Merge several tensors into one: sums are added, so large tensors and large errors have more weight.

    Raises:
        NoData: no weights.
    """
    if not errors:
        raise NoData(f"There are no tensors in {name!r}.")

    def types(attribute: str) -> str:
        return ", ".join(dict.fromkeys(getattr(error, attribute) for error in errors))

    return TensorError(
        name=name,
        type=types("type"),
        reference_type=types("reference_type"),
        weights=sum(error.weights for error in errors),
        bytes=sum(error.bytes for error in errors),
        reference_bytes=sum(error.reference_bytes for error in errors),
        squared_error=math.fsum(error.squared_error for error in errors),
        squared_reference=math.fsum(error.squared_reference for error in errors),
        squared_candidate=math.fsum(error.squared_candidate for error in errors),
        product=math.fsum(error.product for error in errors),
        max_error=max(error.max_error for error in errors),
        outliers=sum(error.outliers for error in errors),
        largest_sigmas=max(error.largest_sigmas for error in errors),
    )


def summarize_error(error: TensorError, place: Place = WHOLE) -> list[Estimate]:
    """Estimates for a tensor or a group, at its place.

    They are facts of two files: n is the number of weights, without errors.

    An exact copy has no signal-to-noise ratio, and zeros have no direction: these are left out.
    """
    values = {
        "weight_relative_rmse": error.relative_rmse,
        "weight_max_error": error.max_error,
        "weight_cosine": error.cosine,
        "weight_snr_db": error.snr_db,
        "weight_bits": error.bits,
        "weight_outlier_share": error.outlier_share,
        "weight_outlier_sigmas": error.largest_sigmas,
    }
    return [
        Estimate(metric, value, error.weights, place=place) for metric, value in values.items() if value is not None
    ]


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # Not BLAS: its threads cost more than they save here, in particular on a busy machine.
    return float(np.einsum("i,i->", a, b))


def _flat(block: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(block, dtype=np.float64).reshape(-1)
