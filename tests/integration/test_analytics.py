"""Analyses in their child process: the same as called directly, seeded, cached, bounded, and gone at the end."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from gguf_harness.analytics.analyses import Setup, _computing, neighbors_task, project_task
from gguf_harness.analytics.neighbors import plan_blocks
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import AnalyticsError, EngineCrashed, MissingExtra, NoData, OptionError, is_installed
from gguf_harness.inputs.options import Options, read_options
from gguf_harness.measure.analyses.calls import Analytics
from gguf_harness.measure.core import Core
from gguf_harness.metrics.kernels.cka import linear_cka
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(60, 8)) + 5 * np.eye(3, 8)[np.arange(60) % 3]


def _options(cache: Path) -> Options:
    arguments = ["--models=tiny", f"--gguf-cache={cache}", "--gguf-threads=1"]
    return read_options(parse_command_line(*arguments))


def loaded_modules(_: WorkerContext) -> list[str]:
    return sorted(sys.modules)


def visible_gpus(_: WorkerContext) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def warn(_: WorkerContext) -> dict[str, Any]:
    with _computing(Setup(False, 1), parallel=False) as facts:
        warnings.warn("odd points", UserWarning, stacklevel=1)
        warnings.warn("soon to go", FutureWarning, stacklevel=1)
        warnings.warn("odd points", UserWarning, stacklevel=1)
    return facts


def peak_resident(_: WorkerContext, reset: bool) -> int:
    """VmHWM in bytes, which can begin anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    core = Core(_options(tmp_path_factory.mktemp("cache")), SilentProgress())
    yield core
    core.close()


@pytest.fixture(scope="module")
def analytics(core: Core) -> Analytics:
    return Analytics(core)


def umap_of(_: WorkerContext, points: NDArray[np.float64]) -> NDArray[np.float32]:
    """UMAP, called directly."""
    with warnings.catch_warnings():
        # It tells developers about TensorFlow.
        warnings.simplefilter("ignore", ImportWarning)
        import umap
    settings = {"n_components": 2, "n_neighbors": 7, "min_dist": 0.1, "random_state": 2, "n_jobs": 1}
    projected: NDArray[np.float32] = umap.UMAP(**settings).fit_transform(points)
    return projected


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Another process, of a person who has made errors of warnings. In each, UMAP takes 15 s to compile itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "error")
        with Worker("analytics", tmp_path_factory.mktemp("other") / "log") as worker:
            yield worker


def test_every_analysis_says_what_computed_it(analytics: Analytics) -> None:
    labels = np.arange(60) % 3
    outcomes = [
        analytics.project(POINTS),
        analytics.cluster(POINTS),
        analytics.neighbors(POINTS),
        analytics.silhouette(POINTS, labels),
    ]
    from sklearn import __version__

    assert {outcome.backend for outcome in outcomes} == {f"scikit-learn {__version__}, CPU"}
    assert analytics.backends == [f"scikit-learn {__version__}, CPU"]
    assert all(outcome.warnings == () for outcome in outcomes)


def test_cka_is_ours(analytics: Analytics) -> None:
    other = POINTS @ RNG.normal(size=(8, 5))
    assert analytics.cka(POINTS, other) == pytest.approx(linear_cka(POINTS, other), rel=1e-12)
    assert analytics.cka(POINTS, POINTS) == pytest.approx(1)


def test_clusters_of_cosines_do_not_see_lengths(analytics: Analytics) -> None:
    longer = POINTS * RNG.uniform(1, 100, size=(60, 1))
    plain, scaled = (analytics.cluster(points, size=3, metric="cosine") for points in (POINTS, longer))
    assert (plain.labels == scaled.labels).all()
    assert plain.clusters == 3
    assert analytics.silhouette(POINTS, plain.labels, metric="cosine").mean > 0.5


@pytest.mark.parametrize("dimensions", [2, 3])
def test_umap_is_seeded_and_says_who_it_is(analytics: Analytics, other: Worker, dimensions: int) -> None:
    first = analytics.project(POINTS, "umap", dimensions=dimensions, seed=4)
    assert first.backend.startswith("umap-learn ")
    assert first.coordinates.shape == (60, dimensions)
    # Measured again, in a process of its own.
    same, differs = (
        other.call(project_task, None, Setup(False, 1), POINTS, "umap", dimensions, "euclidean", None, seed)[1]
        for seed in (4, 5)
    )
    assert (same["coordinates"] == first.coordinates).all()
    assert (differs["coordinates"] != first.coordinates).any()


def test_umap_of_few_points(analytics: Analytics) -> None:
    for n in (4, 5, 9):
        projection = analytics.project(POINTS[:n], "umap", dimensions=3)
        assert projection.settings["n_neighbors"] == n - 1
        assert np.isfinite(projection.coordinates).all()
    with pytest.raises(AnalyticsError, match="UMAP cannot keep 60 neighbors of 60 points"):
        analytics.project(POINTS, "umap", size=60)


def test_umap_equals_a_direct_call(analytics: Analytics, other: Worker) -> None:
    expected = other.call(umap_of, None, POINTS - POINTS.mean(0))
    assert analytics.project(POINTS, "umap", size=7, seed=2).coordinates == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_what_cannot_be_projected_is_no_data(analytics: Analytics, method: str) -> None:
    for points, words in (
        (POINTS[:1], "1 points is not defined"),
        (np.ones((20, 3)), "all 20 points are the same"),
        (np.where(np.arange(60)[:, None] == 7, np.nan, POINTS), "not finite, the first of them in row 7"),
        (np.empty((0, 3)), "There are no points"),
    ):
        with pytest.raises(NoData, match=words):
            analytics.project(points, method)


def test_what_libraries_warn_of_comes_back(other: Worker) -> None:
    """Also where a person makes errors of warnings; what is for developers stays in the log."""
    facts = other.call(warn, None)
    assert facts["warnings"] == ["odd points"]
    assert "soon to go" in other.log.read_text()
    _, arrays = other.call(project_task, None, Setup(False, 1), POINTS, "umap", 2, "euclidean", None, 0)
    assert np.isfinite(arrays["coordinates"]).all()


def test_a_mistake_is_named(analytics: Analytics, tmp_path: Path) -> None:
    for wrong in (
        lambda: analytics.project(POINTS, "mds"),
        lambda: analytics.project(POINTS, dimensions=4),
        lambda: analytics.cluster(POINTS, "dbscan"),
        lambda: analytics.neighbors(POINTS, metric="manhattan"),  # type: ignore[arg-type]
        lambda: analytics.project(tmp_path / "missing.npy"),
        lambda: analytics.silhouette(POINTS, np.zeros(3, dtype=np.int64)),
        lambda: analytics.cka(POINTS, POINTS[:9]),
    ):
        with pytest.raises(AnalyticsError):
            wrong()


def test_each_analysis_is_done_once(tmp_path: Path) -> None:
    with Analytics(Core(_options(tmp_path), SilentProgress())) as first:
        whole = first.neighbors(POINTS, 3)
        assert first.neighbors(POINTS.copy(), 3).indices.tolist() == whole.indices.tolist()
        assert first.neighbors(POINTS, 3, rows=np.array([5, 2])).indices.tolist() == whole.indices[[5, 2]].tolist()
        assert first.neighbors(POINTS + 1, 3).distances.tolist() != whole.distances.tolist()
    second = Core(_options(tmp_path), SilentProgress())
    analytics = Analytics(second)
    neighbors = analytics.neighbors(POINTS, 3)
    assert neighbors.distances.tolist() == whole.distances.tolist()
    assert (second.hits, second.misses) == (1, 0)
    assert analytics.pid is None


def test_large_arrays_travel_as_files_that_go(tmp_path: Path) -> None:
    large = RNG.normal(size=(3000, 64))
    np.save(tmp_path / "x.npy", large)
    left = tmp_path / "cache" / "analyses" / ".sent-999999999-x"
    left.mkdir(parents=True)
    with Analytics(Core(_options(tmp_path / "cache"), SilentProgress())) as analytics:
        by_array = analytics.neighbors(large, 2, rows=np.arange(9))
        by_file = analytics.neighbors(tmp_path / "x.npy", 2, rows=np.arange(9))
    assert by_array.indices.tolist() == by_file.indices.tolist()
    assert not list((tmp_path / "cache" / "analyses").glob(".sent*"))


def test_a_death_is_one_error_and_the_same_call_works(analytics: Analytics) -> None:
    analytics.project(POINTS, seed=100)
    assert analytics.pid is not None
    os.kill(analytics.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match="analytics: the worker process died of SIGKILL"):
        analytics.project(POINTS, seed=101)
    assert np.isfinite(analytics.project(POINTS, seed=101).coordinates).all()


def test_llama_cpp_is_not_loaded(analytics: Analytics) -> None:
    analytics.project(POINTS, seed=200)
    reply = analytics._child().call(loaded_modules, None)
    assert "sklearn" in reply
    assert not [name for name in reply if name.startswith("llama_cpp")]


def test_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    core = Core(_options(tmp_path), SilentProgress())
    analytics = Analytics(core)
    analytics.project(POINTS)
    child = psutil.Process(analytics.pid)
    core.close()
    assert not child.is_running()
    # What needs the machine for itself closes it as well; then it starts again.
    analytics.project(POINTS, seed=1)
    core.close()
    assert analytics.pid is None


@pytest.mark.parametrize(
    ("gpus", "wanted", "allowed", "expected"),
    [
        (0, None, None, ""),
        (1, None, None, "0"),
        (2, None, None, "1"),
        (2, 0, None, "0"),
        (2, -1, None, ""),
        (4, None, "3,2", "2"),
    ],
)
def test_the_child_sees_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: int | None, allowed: str | None, expected: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    monkeypatch.setattr("gguf_harness.measure.analyses.calls.list_gpus", lambda: [{"name": "pretend"}] * gpus)
    # Whoever asks for a GPU by number must have cuML; which GPU the child sees does not depend on it.
    monkeypatch.setattr("gguf_harness.measure.analyses.calls.require_extra", lambda *_: None)
    options = dataclasses.replace(_options(tmp_path), analytics_gpu=wanted)
    with Analytics(Core(options, SilentProgress())) as analytics:
        assert analytics._child().call(visible_gpus, None) == expected


@pytest.mark.skipif(is_installed("cuml"), reason="cuML is installed")
def test_a_gpu_by_number_needs_cuml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("gguf_harness.measure.analyses.calls.list_gpus", lambda: [{"name": "pretend"}])
    options = dataclasses.replace(_options(tmp_path), analytics_gpu=0)
    with pytest.raises(MissingExtra, match=r"--gguf-analytics-gpu=0 needs the package cuml-cu12"):
        Analytics(Core(options, SilentProgress())).project(POINTS)


def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("gguf_harness.measure.analyses.calls.list_gpus", lambda: [{"name": "pretend"}])
    options = dataclasses.replace(_options(tmp_path), analytics_gpu=3)
    with pytest.raises(OptionError, match="--gguf-analytics-gpu=3: there is no such GPU, only 0"):
        Analytics(Core(options, SilentProgress())).project(POINTS)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "threads"), [(np.float32, 1), (np.float64, 2)])
def test_neighbors_keep_their_bound_on_memory(tmp_path: Path, dtype: type, threads: int) -> None:
    """A matrix of four times the bound, on disk: the child's peak rises by no more than the bound."""
    n, d, limit = 20_000, 512 if dtype is np.float32 else 256, 10_000_000
    matrix = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", dtype, (n, d))
    for start in range(0, n, 1000):
        matrix[start : start + 1000] = RNG.normal(size=(1000, d))
    matrix.flush()
    del matrix
    rows = np.arange(0, n, 25)
    setup = Setup(accelerated=False, threads=threads)
    with Worker("analytics", tmp_path / "log") as worker:
        worker.call(neighbors_task, None, setup, RNG.normal(size=(600, d)).astype(dtype), None, 3, "cosine", limit)
        before = worker.call(peak_resident, None, reset=True)
        facts, arrays = worker.call(neighbors_task, None, setup, tmp_path / "x.npy", rows, 3, "cosine", limit)
        risen = worker.call(peak_resident, None, reset=False) - before
    plan = plan_blocks(len(rows), d, 3, np.dtype(dtype).itemsize, threads, limit)
    assert facts["settings"]["bytes"] == plan.bytes <= limit
    assert plan.rows < n / 8
    assert risen <= plan.bytes
    assert arrays["indices"].shape == (800, 3)
    assert (tmp_path / "x.npy").stat().st_size > 4 * limit
