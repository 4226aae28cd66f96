"""Step: projections, clusters and neighbours against what is known of the points, on the GPU by cuML."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import is_installed
from gguf_harness.inputs.options import read_options
from gguf_harness.measure.analyses.calls import Analytics
from gguf_harness.measure.core import Core
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.gpu_check.environment import Setup
from tests.gpu_check.verdicts import Outcome

__all__ = ["compare", "made_points", "problems"]

_GROUPS: Final = 4
_TOLERANCE: Final = 1e-3
"""Of shares of the variance: cuML computes in single precision."""

_LEAST_RECALL: Final = 0.99
"""Of neighbours: two that are equally far may change places in single precision."""


def made_points(rows: int = 400, columns: int = 16) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """[rows, columns] points in groups that no method can mistake, and [rows] the group of each."""
    rng = np.random.default_rng(7)
    groups = np.arange(rows) % _GROUPS
    return rng.normal(size=(rows, columns)) + 12 * np.eye(_GROUPS, columns)[groups], groups


def compare(setup: Setup) -> Outcome:
    """Passes where every result is right and, with a GPU, computed there."""
    if setup.gpu and not is_installed("cuml"):
        return Outcome("not run", "cuML is not installed (the extra `gpu` or `gpu-cu13`)", absent=True)
    where = [] if setup.gpu else ["--gguf-analytics-gpu=-1"]
    folder = setup.path / "analyses"
    options = read_options(parse_command_line("--models=tiny", f"--gguf-cache={folder}", "--gguf-threads=2", *where))
    core = Core(options, SilentProgress())
    try:
        with Analytics(core) as analytics:
            wrong, numbers = problems(analytics, *made_points())
            numbers["gpu"] = analytics.gpu
    finally:
        core.close()
    backends = numbers["backends"]
    if setup.gpu:
        wrong += [f"not on the GPU: {backend}" for backend in backends if "cuml.accel" not in backend]
    if wrong:
        return Outcome("fail", "; ".join(wrong), numbers)
    return Outcome("pass", f"PCA, k-means and neighbours are right: {'; '.join(backends)}", numbers)


def problems(
    analytics: Analytics, points: NDArray[np.float64], groups: NDArray[np.intp]
) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with its results, and numbers.

    Args:
        analytics: computes.
        points: [n, d], in groups that are far apart.
        groups: [n], of each.
    """
    projection = analytics.project(points, "pca", dimensions=3)
    clusters = analytics.cluster(points, "kmeans", size=_GROUPS)
    near = analytics.neighbors(points, k=5, metric="euclidean")
    centered = points - points.mean(axis=0)
    variances = np.linalg.svd(centered, compute_uv=False) ** 2
    explained = float(np.abs(np.asarray(projection.explained) - (variances / variances.sum())[:3]).max())
    # Each cluster is one group, and the other way round.
    pairs = len(set(zip(clusters.labels.tolist(), groups.tolist(), strict=True)))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    exact = np.argsort(distances, axis=1)[:, :5]
    recall = float(np.mean([len(set(one) & set(other)) / 5 for one, other in zip(near.indices, exact, strict=True)]))
    numbers: dict[str, Any] = {
        "explained_error": explained,
        "cluster_pairs": pairs,
        "neighbour_recall": recall,
        "backends": list(dict.fromkeys([projection.backend, clusters.backend, near.backend])),
    }
    kept = {
        f"shares of the variance are off by {explained:.2g}": explained <= _TOLERANCE,
        f"{_GROUPS} groups became {pairs} pairs of group and cluster": pairs == _GROUPS,
        f"{recall:.1%} of the nearest neighbours were found": recall >= _LEAST_RECALL,
    }
    return [what for what, holds in kept.items() if not holds], numbers
