"""Analyses of sets of points, in a separate child process, on the GPU that llama.cpp does not use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from gguf_harness.analytics.backend import can_accelerate, choose_gpu, count_visible, versions
from gguf_harness.engine.gpu import list_gpus
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import AnalyticsError, require_extra
from gguf_harness.measure.measurement import Format, Job, Measurement
from gguf_harness.store.file_hashes import hash_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_harness.analytics.analyses import Found
    from gguf_harness.analytics.points import Metric, Points
    from gguf_harness.analytics.results import Clustering, Neighbors, Projection, Silhouette
    from gguf_harness.measure.core import Core

__all__ = ["Analytics"]

_FOUND: Final[Format[Found]] = Format(lambda found: found, lambda facts, arrays: (facts, arrays))
_BY_FILE_FROM: Final = 1 << 20
_POINTS: Final = ("points", "others")
_SENT: Final = ".sent-"
_NEIGHBORS_MEMORY: Final = 1 << 30
_SILHOUETTE_LIMIT: Final = 5000


class Analytics:
    """Projections, clusters, neighbors and similarity of points: each computed once, from the cache if possible.

    Points are an array [n, d] of numbers, or the path of a .npy file that holds one. The same points and seed give the
    same result. With cosine, points are scaled to length one before Euclidean distances are taken. Results have
    `backend`, what computed them; `settings`, the method's settings for the points; and `warnings` of its library. All
    but `neighbors` hold the points twice, as float64.

    Raises:
        NoData: from every method: too few points, all the same, not finite; with cosine, points that are zero.
        AnalyticsError: from every method: a setting that does not fit the points.
        EngineCrashed: from every method: the child died; the next call starts another.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._worker: Worker | None = None
        self._gpu: int | None = None
        core.at_close(self.close)
        self.backends: list[str] = []
        """Backends that computed results of this session."""

    @property
    def gpu(self) -> int:
        """Index of the GPU for analyses among those that are visible; -1 for none.

        Raises:
            MissingExtra: a GPU was asked for by its index, and there is no cuML to use it.
        """
        if self._gpu is None:
            visible = count_visible(len(list_gpus()), os.environ.get("CUDA_VISIBLE_DEVICES"))
            wanted = self._core.options.analytics_gpu
            gpu = choose_gpu(wanted, visible)
            if wanted is not None and gpu >= 0:
                require_extra("gpu", f"--gguf-analytics-gpu={wanted}")
            self._gpu = gpu
        return self._gpu

    def project(
        self,
        points: Points,
        method: str = "pca",
        *,
        dimensions: int = 2,
        metric: Metric = "euclidean",
        size: float | None = None,
        seed: int = 0,
    ) -> Projection:
        """Points in two or three dimensions.

        Args:
            points: [n, d].
            method: "pca"; "umap" or "tsne", in which only neighborhoods are meaningful.
            dimensions: 2 or 3.
            metric: "euclidean" or "cosine".
            size: of a neighborhood: UMAP's n_neighbors (15, or all others), t-SNE's perplexity (30, or a third).
            seed: of whatever is random.
        """
        from gguf_harness.analytics.analyses import project_task
        from gguf_harness.analytics.projection import PROJECTORS
        from gguf_harness.analytics.results import Projection

        _check("method", method, PROJECTORS)
        _check("number of dimensions", dimensions, (2, 3))
        facts, arrays = self._run(
            project_task, {"points": points},
            {"method": method, "dimensions": dimensions, "metric": metric, "size": size, "seed": seed},
            f"{method} of {{}} points",
            PROJECTORS[method].package,
        )  # fmt: skip
        return Projection(**_common(facts), coordinates=arrays["coordinates"], explained=arrays.get("explained"))

    def cluster(
        self,
        points: Points,
        method: str = "kmeans",
        *,
        size: int | None = None,
        metric: Metric = "euclidean",
        seed: int = 0,
    ) -> Clustering:
        """Clusters of points.

        Args:
            points: [n, d].
            method: "kmeans" or "hdbscan".
            size: k-means: number of clusters (that of 2 to 10 with the largest silhouette); HDBSCAN: points of the
                smallest (5).
            metric: "euclidean" or "cosine".
            seed: of whatever is random.
        """
        from gguf_harness.analytics.analyses import cluster_task
        from gguf_harness.analytics.clustering import CLUSTERERS
        from gguf_harness.analytics.results import Clustering

        _check("method", method, CLUSTERERS)
        facts, arrays = self._run(
            cluster_task, {"points": points},
            {"method": method, "size": size, "metric": metric, "limit": _SILHOUETTE_LIMIT, "seed": seed},
            f"{method} clusters of {{}} points",
        )  # fmt: skip
        scores = {int(k): score for k, score in facts["scores"].items()}
        return Clustering(**_common(facts), labels=arrays["labels"], scores=scores)

    def neighbors(
        self,
        points: Points,
        k: int = 10,
        *,
        metric: Metric = "cosine",
        rows: NDArray[np.integer] | None = None,
        memory: int = _NEIGHBORS_MEMORY,
    ) -> Neighbors:
        """The nearest other points, by brute force in blocks.

        Args:
            points: [n, d]; of a file, only blocks are in memory.
            k: neighbors of each.
            metric: "euclidean" or "cosine", whose distances are 1 - cos.
            rows: [m], whose neighbors; all if not given.
            memory: bytes that the search may take; `gguf_harness.analytics.neighbors.plan_blocks` has the formula.
        """
        from gguf_harness.analytics.analyses import neighbors_task
        from gguf_harness.analytics.results import Neighbors

        facts, arrays = self._run(
            neighbors_task, {"points": points, "rows": rows},
            {"k": k, "metric": metric, "memory": memory},
            "neighbors of {} points",
        )  # fmt: skip
        return Neighbors(
            **_common(facts), rows=arrays["rows"], indices=arrays["indices"], distances=arrays["distances"]
        )

    def silhouette(
        self,
        points: Points,
        labels: NDArray[np.integer],
        *,
        metric: Metric = "euclidean",
        limit: int = _SILHOUETTE_LIMIT,
        seed: int = 0,
    ) -> Silhouette:
        """How well each point fits its cluster (Rousseeuw, 1987).

        Args:
            points: [n, d].
            labels: [n]; points with -1 are left out.
            metric: "euclidean" or "cosine".
            limit: of more points, a random sample of this size is taken.
            seed: of the sample.
        """
        from gguf_harness.analytics.analyses import silhouette_task
        from gguf_harness.analytics.results import Silhouette

        facts, arrays = self._run(
            silhouette_task, {"points": points, "labels": labels},
            {"metric": metric, "limit": limit, "seed": seed},
            "silhouettes of {} points",
        )  # fmt: skip
        return Silhouette(**_common(facts), rows=arrays["rows"], values=arrays["values"])

    def cka(self, points: Points, others: Points) -> float:
        """Linear centered kernel alignment, from 0 to 1: `gguf_harness.metrics.kernels.cka.linear_cka`.

        Args:
            points: [n, d1].
            others: [n, d2], another representation of the same examples.
        """
        from gguf_harness.analytics.analyses import cka_task

        facts, _ = self._run(cka_task, {"points": points, "others": others}, {}, "CKA of {} points", "numpy")
        return float(facts["cka"])

    @property
    def pid(self) -> int | None:
        """Process id of the child; None if there is none."""
        return self._worker.pid if self._worker is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child process, if any."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _run(
        self,
        task: Callable[..., Found],
        inputs: dict[str, Points | None],
        parameters: dict[str, Any],
        label: str,
        package: str = "scikit-learn",
    ) -> Found:
        """The result of a task, from the cache if possible. A failure is not stored: the next call tries again."""
        from gguf_harness.analytics.analyses import Setup, run_task
        from gguf_harness.analytics.points import open_points

        name = task.__name__.removesuffix("_task")
        if (metric := parameters.get("metric")) is not None:
            _check("metric", metric, ("euclidean", "cosine"))
        label = label.format(f"{len(open_points(_required(inputs['points']))):,}")
        accelerated = can_accelerate(self.gpu)
        key = {
            "inputs": {name: self._hash(value, label) for name, value in inputs.items()},
            "parameters": parameters,
            "versions": versions(package, accelerated=accelerated),
            "accelerated": [gpu["name"] for gpu in list_gpus()] if accelerated else None,
        }
        sent: dict[str, Points | None] = {}

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            with self._sent(inputs) as files:
                sent.update(files)
                yield

        setup = Setup(accelerated, self._core.options.threads)
        facts, arrays = self._core.measure(
            Job(
                Measurement(f"analyses/{name}", 2, run_task, "steps", _FOUND, remembered=False),
                label,
                key,
                lambda _: (task, setup, sent, parameters),
                around=around,
                worker=self._child,
            )
        )
        if facts["backend"] not in self.backends:
            self.backends.append(facts["backend"])
        return facts, arrays

    def _child(self) -> Worker:
        if self._worker is None:
            log, timeout_s = self._core.log("analytics"), self._core.options.timeout_s
            self._worker = Worker("analytics", log, gpu=self.gpu, timeout_s=timeout_s)
        return self._worker

    def _hash(self, value: Points | None, label: str) -> str | None:
        import numpy as np

        if value is None:
            return None
        if isinstance(value, Path):
            with self._core.progress.task(f"hashing {label}", "MB") as show:
                return hash_files([value], self._core.options.cache, show)
        digest = hashlib.sha256(f"{value.dtype.str} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).data.cast("B"))
        return digest.hexdigest()

    @contextlib.contextmanager
    def _sent(self, inputs: dict[str, Points | None]) -> Iterator[dict[str, Points | None]]:
        """Inputs as sent to the child: large arrays as files, which it reads in pieces."""
        import numpy as np

        root = self._core.cache.root / "analyses"
        _sweep(root)
        sent = dict(inputs)
        with tempfile.TemporaryDirectory(prefix=f"{_SENT}{os.getpid()}-", dir=root) as folder:
            for name, value in inputs.items():
                if isinstance(value, Path):
                    sent[name] = value.absolute()
                elif value is not None and name in _POINTS and value.nbytes >= _BY_FILE_FROM:
                    sent[name] = file = Path(folder) / f"{name}.npy"
                    np.save(file, value, allow_pickle=False)
            yield sent


def _sweep(root: Path) -> None:
    """Remove leftovers of killed sessions."""
    for folder in root.glob(f"{_SENT}*"):
        owner = folder.name.removeprefix(_SENT).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _common(facts: dict[str, Any]) -> dict[str, Any]:
    return {"backend": facts["backend"], "settings": facts["settings"], "warnings": tuple(facts["warnings"])}


def _check(what: str, value: object, known: Any) -> None:
    if value not in known:
        raise AnalyticsError(f"Unknown {what} {value!r}.", f"Known: {', '.join(map(str, known))}.")


def _required(points: Points | None) -> Points:
    if points is None:
        raise AnalyticsError("There are no points.", "Give an array or a .npy file.")
    return points
