"""Layouts of nodes: trees, and springs. Deterministic: the same graph is always drawn the same way."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.kernels.pca import axis_signs

__all__ = ["principal_plane", "spring_layout"]

_ITERATIONS: Final = 150
_GOLDEN_ANGLE: Final = np.pi * (3 - np.sqrt(5))


def principal_plane(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points along their first two principal axes, signs by `axis_signs`.

    Args:
        points: [n, d].

    Returns:
        [n, 2]; zero beyond their rank.
    """
    centered = points - points.mean(axis=0)
    _, values, axes = np.linalg.svd(centered, full_matrices=False)
    plane, signs = np.zeros((len(points), 2)), axis_signs(axes)
    for axis in range(min(2, len(values))):
        if values[axis] > 1e-12 * max(values[0], 1e-300):
            plane[:, axis] = centered @ axes[axis] * signs[axis]
    return plane


def spring_layout(
    start: NDArray[np.float64], source: NDArray[np.int64], target: NDArray[np.int64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Force-directed placement: all nodes repel each other, edges pull.

    Fruchterman and Reingold (1991), "Graph Drawing by Force-directed Placement", without a frame: repulsion k^2 / d,
    attraction w d^2 / k, k = 1 / sqrt(n), steps limited by a temperature that falls linearly. Memory: a few times n^2
    numbers.

    Args:
        start: [n, 2], initial positions.
        source: [m], numbers of nodes.
        target: [m].
        weight: [m], pull of each edge relative to the others; not negative.

    Returns:
        [n, 2], centered, within the square from -1 to 1.
    """
    n = len(start)
    position = _fitted(start)
    # Nodes in the same place would have no direction to separate.
    angle = _GOLDEN_ANGLE * np.arange(n)
    position = position + 1e-3 * np.stack([np.cos(angle), np.sin(angle)], axis=1) * ((np.arange(n) + 1) / n)[:, None]
    k = 1 / np.sqrt(n)
    for iteration in range(_ITERATIONS):
        apart = position[:, None, :] - position[None, :, :]
        squared = np.maximum(np.einsum("ijk,ijk->ij", apart, apart), 1e-12)
        force = np.einsum("ijk,ij->ik", apart, k * k / squared)
        pull = position[target] - position[source]
        pull *= (weight * np.sqrt(np.einsum("ij,ij->i", pull, pull)) / k)[:, None]
        np.add.at(force, source, pull)
        np.add.at(force, target, -pull)
        length = np.maximum(np.sqrt(np.einsum("ij,ij->i", force, force)), 1e-12)
        temperature = 0.1 * (1 - iteration / _ITERATIONS)
        position = position + force * (np.minimum(length, temperature) / length)[:, None]
    return _fitted(position)


def _fitted(position: NDArray[np.float64]) -> NDArray[np.float64]:
    centered = position - position.mean(axis=0)
    largest = float(np.abs(centered).max())
    return np.asarray(centered / largest) if largest > 0 else centered
