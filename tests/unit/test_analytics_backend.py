"""Which GPU analyses get, and what computes: also with a cuML that is only pretended, for order and words."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.analytics.analyses import Found, Setup, cka_task, cluster_task, project_task, silhouette_task
from gguf_harness.analytics.backend import can_accelerate, choose_gpu, count_visible, versions
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import AnalyticsError, OptionError

POINTS = np.random.default_rng(0).normal(size=(20, 4))


@pytest.mark.parametrize(
    ("wanted", "visible", "expected"),
    [
        (None, 0, -1),
        (None, 1, 0),
        (None, 2, 1),
        (None, 8, 1),
        (0, 2, 0),
        (3, 4, 3),
        (-1, 2, -1),
        (0, 0, -1),
        (5, 0, -1),
    ],
)
def test_the_second_gpu_is_for_analyses(wanted: int | None, visible: int, expected: int) -> None:
    assert choose_gpu(wanted, visible) == expected


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OptionError, match="--gguf-analytics-gpu=2: there is no such GPU, only 0, 1"):
        choose_gpu(2, 2)


@pytest.mark.parametrize(
    ("installed", "allowed", "expected"),
    [(0, None, 0), (2, None, 2), (4, "2,3", 2), (4, "", 0), (4, "1", 1), (4, "-1", 0), (4, "0,-1,1", 1), (0, "0,1", 0)],
)
def test_gpus_are_counted_as_cuda_shows_them(installed: int, allowed: str | None, expected: int) -> None:
    assert count_visible(installed, allowed) == expected


def test_cuml_needs_a_gpu() -> None:
    assert not can_accelerate(-1)


def test_versions_name_what_computes() -> None:
    assert set(versions("numpy", accelerated=False)) == {"numpy"}
    assert set(versions("scikit-learn", accelerated=False)) == {"numpy", "scipy", "scikit-learn"}
    assert {"scikit-learn", "umap-learn", "numba"} <= set(versions("umap-learn", accelerated=False))
    assert "cuml" in versions("scikit-learn", accelerated=True)


# Its interface is that of cuML 26.10: `accel.install(disable_uvm, log_level)`, `accel.profile(quiet)` and the names and
# reasons that its proxies count under. It computes nothing on a GPU, and no test here has one.
ACCEL = """
import contextlib
import sys
from types import SimpleNamespace

_ACTIVE = []

def _count(method, reason=""):
    for calls in _ACTIVE:
        new = SimpleNamespace(gpu_calls=0, cpu_calls=0, fallback_reasons=set())
        stats = calls.method_calls.setdefault(method, new)
        stats.gpu_calls += not reason
        stats.cpu_calls += bool(reason)
        stats.fallback_reasons |= {{reason}} if reason else set()

@contextlib.contextmanager
def profile(quiet=False):
    assert quiet, "it prints"
    calls = SimpleNamespace(method_calls={{}})
    _ACTIVE.append(calls)
    try:
        yield calls
    finally:
        _ACTIVE.remove(calls)

def install(disable_uvm=False, log_level=None):
    assert "sklearn" not in sys.modules, "too late"
    {action}
    import sklearn.cluster
    import sklearn.manifold

    class KMeans(sklearn.cluster.KMeans):
        def fit(self, *arguments):
            _count("KMeans.fit")
            return super().fit(*arguments)

    class TSNE(sklearn.manifold.TSNE):
        def fit_transform(self, *arguments):
            _count("TSNE.fit_transform", "Only `n_components=2` is supported" if self.n_components != 2 else "")
            return super().fit_transform(*arguments)

    sklearn.cluster.KMeans, sklearn.manifold.TSNE = KMeans, TSNE
"""
CUPY = """
class cuda:
    class runtime:
        @staticmethod
        def getDeviceProperties(index):
            return {"name": b"NVIDIA Pretend"}
"""


def _pretend_cuml(folder: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    for name, text in {
        "cuml/__init__.py": "",
        "cuml/accel.py": ACCEL.format(action=action),
        "cupy.py": CUPY,
        "cuml_cu12-26.10.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: cuml-cu12\nVersion: 26.10.0\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_cuml_is_installed_before_scikit_learn_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without managed memory, once."""
    _pretend_cuml(tmp_path, monkeypatch, "print('installed', disable_uvm)")
    setup = Setup(accelerated=True, threads=1)
    with Worker("analytics", tmp_path / "log") as worker:
        for _ in range(2):
            worker.call(project_task, None, setup, POINTS, "pca", 2, "euclidean", None, 0)
    assert [line for line in (tmp_path / "log").read_text().splitlines() if "installed" in line] == ["installed True"]


def test_what_ran_on_the_gpu_is_what_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what was hoped: cuML leaves to the CPU what it cannot do, and silhouettes always."""
    _pretend_cuml(tmp_path, monkeypatch, "pass")
    setup = Setup(accelerated=True, threads=1)
    sklearn = f"scikit-learn {metadata.version('scikit-learn')}"
    labels = np.arange(len(POINTS)) % 2

    def facts(task: Callable[..., Found], *arguments: object) -> tuple[str, list[str]]:
        found, _ = worker.call(task, None, setup, *arguments)
        return found["backend"], found["warnings"]

    with Worker("analytics", tmp_path / "log") as worker:
        clusters = facts(cluster_task, POINTS, "kmeans", None, "euclidean", 100, 0)
        flat = facts(project_task, POINTS, "tsne", 2, "euclidean", 5.0, 0)
        deep = facts(project_task, POINTS, "tsne", 3, "euclidean", 5.0, 0)
        assert facts(silhouette_task, POINTS, labels, "euclidean", 100, 0) == (f"{sklearn}, CPU", [])
        assert facts(project_task, POINTS, "pca", 2, "euclidean", None, 0) == (f"{sklearn}, CPU", [])
        assert facts(cka_task, POINTS, POINTS) == (f"numpy {np.__version__}, CPU", [])
    ran_as = f"cuml.accel 26.10.0 in place of {sklearn}"
    assert clusters == (
        f"{ran_as}: KMeans.fit on NVIDIA Pretend",
        ["KMeans ran as cuml.accel 26.10.0: it starts from k-means|| (scalable-k-means++) instead of k-means++"],
    )
    assert flat[0] == f"{ran_as}: TSNE.fit_transform on NVIDIA Pretend"
    assert "FFT instead of Barnes-Hut" in flat[1][0]
    assert deep == (
        f"{sklearn}, CPU",
        [
            "TSNE.fit_transform ran on the CPU, not on NVIDIA Pretend (cuml.accel 26.10.0: Only `n_components=2` is"
            " supported)"
        ],
    )


def test_a_broken_cuml_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_cuml(tmp_path, monkeypatch, "raise RuntimeError('driver too old')")
    with (
        Worker("analytics", tmp_path / "log") as worker,
        pytest.raises(
            AnalyticsError, match=r"cannot be used: RuntimeError: driver too old(.|\n)*--gguf-analytics-gpu=-1"
        ),
    ):
        worker.call(project_task, None, Setup(True, 1), POINTS, "pca", 2, "euclidean", None, 0)
