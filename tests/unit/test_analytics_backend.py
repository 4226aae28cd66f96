"""Which GPU analyses get, and what computes: also with a cuML that is only pretended, for order and words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_harness.analytics.analyses import Setup, cka_task, project_task
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
    assert {"scikit-learn", "umap-learn", "numpy"} <= set(versions(accelerated=False))
    assert "cuml" in versions(accelerated=True)


ACCEL = """
import sys
def install():
    assert "sklearn" not in sys.modules, "too late"
    {action}
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
        "cuml_cu12-25.6.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: cuml-cu12\nVersion: 25.6.0\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_cuml_is_installed_before_scikit_learn_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_cuml(tmp_path, monkeypatch, "print('installed')")
    setup = Setup(accelerated=True, threads=1)
    with Worker("analytics", tmp_path / "log") as worker:
        for _ in range(2):
            facts, _ = worker.call(project_task, None, setup, POINTS, "pca", 2, "euclidean", None, 0)
            assert facts["backend"].startswith("cuml.accel 25.6.0 in place of scikit-learn 1.")
            assert facts["backend"].endswith(", NVIDIA Pretend")
        facts, _ = worker.call(cka_task, None, setup, POINTS, POINTS)
        assert facts["backend"] == f"numpy {np.__version__}, CPU"
    assert (tmp_path / "log").read_text().count("installed") == 1


def test_a_broken_cuml_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_cuml(tmp_path, monkeypatch, "raise RuntimeError('driver too old')")
    with (
        Worker("analytics", tmp_path / "log") as worker,
        pytest.raises(
            AnalyticsError, match=r"cannot be used: RuntimeError: driver too old(.|\n)*--gguf-analytics-gpu=-1"
        ),
    ):
        worker.call(project_task, None, Setup(True, 1), POINTS, "pca", 2, "euclidean", None, 0)
