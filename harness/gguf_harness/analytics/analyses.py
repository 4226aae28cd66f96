"""Worker tasks: each takes points and returns (facts as JSON types, arrays). Nothing of llama.cpp is loaded here.

The same points and the same seed give the same result: bit-exact on the CPU, on a GPU as far as cuML respects seeds.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.analytics.backend import use_backend
from gguf_harness.analytics.clustering import CLUSTERERS, sampled_silhouette
from gguf_harness.analytics.neighbors import find_neighbors, plan_blocks
from gguf_harness.analytics.points import Metric, Points, count_distinct, load_points, open_points, read_rows
from gguf_harness.analytics.projection import PROJECTORS
from gguf_harness.errors import AnalyticsError, EngineError, NoData
from gguf_harness.metrics.kernels.cka import linear_cka

if TYPE_CHECKING:
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = [
    "Found",
    "Setup",
    "cka_task",
    "cluster_task",
    "neighbors_task",
    "project_task",
    "run_task",
    "silhouette_task",
]

Found = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""(backend, settings, warnings and numbers; arrays)."""

_TELL_EVERY_S: Final = 1.0
_ABOUT_CODE: Final = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning)


@dataclass(frozen=True, slots=True)
class Setup:
    """How to compute.

    Attributes:
        accelerated: whether cuML replaces scikit-learn.
        threads: most threads.
    """

    accelerated: bool
    threads: int


def run_task(
    context: WorkerContext,
    task: Callable[..., Found],
    setup: Setup,
    inputs: dict[str, Points | None],
    parameters: dict[str, Any],
) -> Found:
    """Run one of the tasks below, with its inputs and parameters by name."""
    return task(context, setup, **inputs, **parameters)


def project_task(
    context: WorkerContext,
    setup: Setup,
    points: Points,
    method: str,
    dimensions: int,
    metric: Metric,
    size: float | None,
    seed: int,
) -> Found:
    """Project points [n, d]; see `PROJECTORS`.

    Returns:
        Arrays `coordinates` [n, dimensions], and for PCA `explained` [dimensions].

    Raises:
        AnalyticsError: a neighborhood size that does not fit the points.
        NoData: too few points, or all the same; see `load_points`.
    """
    projector = PROJECTORS[method]
    with _computing(setup, projector.package, parallel=False) as facts:
        context.progress(0, 1)
        values = load_points(points, metric)
        if len(values) < projector.least:
            raise NoData(f"{method} of {len(values)} points is not defined: it needs {projector.least}.")
        if count_distinct(values, 2) < 2:
            raise NoData(f"{method}: all {len(values)} points are the same.", "There is nothing to project.")
        with _alive(context):
            projection = projector.project(values, dimensions, seed, size)
        if not np.isfinite(projection.coordinates).all():
            raise AnalyticsError(
                f"{method} lost these {len(values)} points: its coordinates are not finite.", "Scale them."
            )
        context.progress(1, 1)
        facts["settings"] = projection.settings
    return facts, {"coordinates": projection.coordinates, **projection.arrays}


def cluster_task(
    context: WorkerContext,
    setup: Setup,
    points: Points,
    method: str,
    size: int | None,
    metric: Metric,
    limit: int,
    seed: int,
) -> Found:
    """Find clusters of points [n, d]; see `CLUSTERERS`.

    Returns:
        Array `labels` [n]; fact `scores`, by number of clusters.

    Raises:
        AnalyticsError: a size that does not fit the points.
        NoData: too few points, or all the same; see `load_points`.
    """
    with _computing(setup, parallel=False) as facts:
        context.progress(0, 1)
        clustering = CLUSTERERS[method].cluster(load_points(points, metric), size, seed, limit, context.progress)
        facts |= {"settings": clustering.settings, "scores": {str(k): score for k, score in clustering.scores.items()}}
    return facts, {"labels": clustering.labels}


def neighbors_task(
    context: WorkerContext,
    setup: Setup,
    points: Points,
    rows: NDArray[np.integer] | None,
    k: int,
    metric: Metric,
    memory: int,
) -> Found:
    """Find the nearest other points of points [n, d], or of those in some rows; see `find_neighbors`.

    Returns:
        Arrays `rows` [m], `indices` [m, k] and `distances` [m, k]; settings have `bytes`, the bound on memory.
    """
    with _computing(setup, parallel=True) as facts:
        n, d = open_points(points).shape
        seeking = np.arange(n) if rows is None else np.asarray(rows, dtype=np.int64)
        itemsize = read_rows(points, 0, 1, "euclidean").itemsize
        plan = plan_blocks(len(seeking), d, k, itemsize, setup.threads, memory)
        facts["settings"] = {"k": k, "block_rows": plan.rows, "bytes": plan.bytes}
        indices, distances = find_neighbors(points, seeking, k, metric, plan, context.progress)
    return facts, {"rows": seeking, "indices": indices, "distances": distances}


def silhouette_task(
    context: WorkerContext,
    setup: Setup,
    points: Points,
    labels: NDArray[np.integer],
    metric: Metric,
    limit: int,
    seed: int,
) -> Found:
    """Silhouettes of points [n, d] with labels [n]; see `sampled_silhouette`.

    Returns:
        Arrays `rows` [m] and `values` [m].
    """
    with _computing(setup, parallel=True) as facts:
        context.progress(0, 1)
        values = load_points(points, metric)
        if labels.shape != (len(values),):
            raise AnalyticsError(f"{len(values)} points have labels of shape {labels.shape}.", "Give one per point.")
        rows, silhouettes = sampled_silhouette(values, labels, seed, limit)
    return facts, {"rows": rows, "values": silhouettes}


def cka_task(context: WorkerContext, setup: Setup, points: Points, others: Points) -> Found:
    """Linear CKA of two representations [n, d1] and [n, d2] of the same examples; see `linear_cka`.

    Returns:
        Fact `cka`.
    """
    with _computing(setup, "numpy", parallel=True) as facts:
        context.progress(0, 1)
        both = load_points(points, "euclidean"), load_points(others, "euclidean")
        if len(both[0]) != len(both[1]):
            raise AnalyticsError(f"CKA of {len(both[0])} and {len(both[1])} points.", "Give both the same examples.")
        facts["cka"] = linear_cka(*both)
    return facts, {}


@contextlib.contextmanager
def _alive(context: WorkerContext) -> Iterator[None]:
    """Report activity once a second while a library computes without progress reports.

    Nothing else in this process sends messages meanwhile.
    """
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_TELL_EVERY_S):
            context.progress(0, 0)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


@contextlib.contextmanager
def _computing(setup: Setup, package: str = "scikit-learn", *, parallel: bool) -> Iterator[dict[str, Any]]:
    """Prepare libraries, limit their threads, collect their warnings, and yield the common facts of results.

    Args:
        setup: how to compute.
        package: the package that computes.
        parallel: let OpenMP use all threads. Sums over threads have no fixed order, so k-means and t-SNE would differ
            between runs.
    """
    facts: dict[str, Any] = {"settings": {}}
    with (
        warnings.catch_warnings(record=True, action="always") as caught,
        use_backend(package, accelerated=setup.accelerated) as backend,
    ):
        # Libraries must be loaded before their threads can be limited.
        import sklearn.cluster
        import sklearn.manifold
        import sklearn.neighbors  # noqa: F401
        from threadpoolctl import threadpool_limits

        try:
            with threadpool_limits({"blas": setup.threads, "openmp": setup.threads if parallel else 1}):
                yield facts
        except MemoryError as error:
            raise EngineError("There is not enough memory to analyze these points.", "Give fewer of them.") from error
    for warning in caught:
        print(
            warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno), file=sys.stderr
        )
    told = (str(warning.message) for warning in caught if not issubclass(warning.category, _ABOUT_CODE))
    facts["backend"] = backend.name
    facts["warnings"] = list(dict.fromkeys([*told, *backend.warnings]))
