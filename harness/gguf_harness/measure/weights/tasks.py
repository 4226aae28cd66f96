"""Errors of quantized weights, tensor by tensor. Runs in a worker: gigabytes of NumPy work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import ModelError
from gguf_harness.gguf.weights import Weights
from gguf_harness.metrics.weight_errors import TensorError, compare_blocks, spread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["compare_weights", "measure_weight_errors"]

_BLOCK: Final = 1 << 17
"""Weights compared at a time: their float64 copies stay in the processor's cache."""


def measure_weight_errors(
    worker: WorkerContext, files: Sequence[Path], reference_files: Sequence[Path]
) -> list[TensorError]:
    """Compare every tensor that both models have; see `compare_weights`.

    Raises:
        ModelError: they share no tensor, one has other shapes, or a type cannot be dequantized.
        NoData: weights that are not finite.
    """
    candidate, reference = Weights(files), Weights(reference_files)
    shared = [name for name in reference.names if name in candidate]
    if not shared:
        raise ModelError(
            f"{files[0].name} and {reference_files[0].name} have no tensor in common.",
            "Compare a model with one that it was quantized from; choose it with --reference.",
        )
    total = sum(reference.info(name).parameters for name in shared)
    done, errors = 0, []
    for name in shared:
        errors.append(compare_weights(candidate, reference, name))
        done += errors[-1].weights
        worker.progress(done // 10**6, total // 10**6)
    return errors


def compare_weights(candidate: Weights, reference: Weights, name: str, block: int = _BLOCK) -> TensorError:
    """Compare one tensor, in blocks of so many weights (but whole rows).

    Raises:
        ModelError: its shapes differ, or a type cannot be dequantized.
        NoData: weights that are not finite.
    """
    if candidate.shape(name) != reference.shape(name):
        raise ModelError(
            f"Tensor {name!r} has shape {list(candidate.shape(name))}, in the reference {list(reference.shape(name))}.",
            "Compare a model with one that it was quantized from; choose it with --reference.",
        )

    def pairs() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        return zip(candidate.blocks(name, block), reference.blocks(name, block), strict=True)

    mean, sigma = spread(reference.blocks(name, block))
    own, other = candidate.info(name), reference.info(name)
    return replace(
        compare_blocks(pairs(), mean, sigma, name),
        type=own.type,
        reference_type=other.type,
        bytes=own.bytes,
        reference_bytes=other.bytes,
    )
