"""Which GPU analyses get, and what computes them: scikit-learn and umap-learn, or cuML in their place."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from gguf_harness.errors import AnalyticsError, OptionError, is_installed, require_extra

__all__ = ["Backend", "can_accelerate", "choose_gpu", "count_visible", "use_backend", "versions"]

_BELOW: Final = {
    "numpy": ("numpy",),
    "scikit-learn": ("numpy", "scipy", "scikit-learn"),
    "umap-learn": ("numpy", "scipy", "scikit-learn", "umap-learn", "pynndescent", "numba"),
}
"""By the package that is called: what computes."""

_CUML: Final = ("cuml-cu13", "cuml-cu12", "cuml")

_DIFFERENT: Final = {
    "KMeans": "it starts from k-means|| (scalable-k-means++) instead of k-means++",
    "TSNE": "it approximates by FFT instead of Barnes-Hut, in single precision, and a seed does not fix its result",
    "UMAP": "it computes in single precision",
    "HDBSCAN": "it computes in single precision",
    "NearestNeighbors": "it computes in single precision",
}
"""What cuML does in another way than the class it stands for, without saying so: `_params_from_cpu` and the types of
arrays in its sources (cuML 26.10: cluster/kmeans.pyx, manifold/t_sne.pyx, manifold/umap/umap.pyx,
cluster/hdbscan/hdbscan.pyx, neighbors/nearest_neighbors.pyx)."""


def count_visible(installed: int, allowed: str | None) -> int:
    """How many GPUs a child process can be given.

    Args:
        installed: GPUs of the machine.
        allowed: CUDA_VISIBLE_DEVICES of this process, None where it is not set.
    """
    if allowed is None:
        return installed
    # CUDA stops at the first -1.
    devices = [device.strip() for device in allowed.partition("-1")[0].split(",") if device.strip()]
    return min(installed, len(devices))


def choose_gpu(wanted: int | None, visible: int) -> int:
    """Index of the GPU for analyses, -1 for none: the second, which llama.cpp leaves alone, or else the first.

    Args:
        wanted: what a person asked for; None if nothing.
        visible: from `count_visible`.

    Raises:
        OptionError: there are GPUs, but not that one.
    """
    if visible == 0 or (wanted is not None and wanted < 0):
        return -1
    if wanted is None:
        return min(1, visible - 1)
    if wanted >= visible:
        raise OptionError(
            f"--gguf-analytics-gpu={wanted}: there is no such GPU, only {', '.join(map(str, range(visible)))}.",
            "Give one of them, or -1 for none.",
        )
    return wanted


def can_accelerate(gpu: int) -> bool:
    """Whether cuML is installed and there is a GPU for it. Nothing is imported."""
    return gpu >= 0 and is_installed("cuml")


def versions(package: str, *, accelerated: bool) -> dict[str, str]:
    """Versions of everything that computes, for cache keys. Nothing is imported.

    Args:
        package: whose functions will be called: numpy, scikit-learn or umap-learn.
        accelerated: whether cuML takes part.

    Raises:
        MissingExtra: umap-learn is not installed.
    """
    _require(package)
    found = {name: metadata.version(name) for name in _BELOW[package]}
    return found | ({"cuml": _cuml_version()} if accelerated else {})


@dataclass(slots=True)
class Backend:
    """What computed, once it has.

    Attributes:
        name: library, version and device: "scikit-learn 1.9.1, CPU", or "cuml.accel 26.10.0 in place of scikit-learn
            1.9.1: KMeans.fit on NVIDIA H100; TSNE.fit_transform on the CPU".
        warnings: what cuML left to the CPU, and why; what it does in another way than the library it stands for.
    """

    name: str
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def use_backend(package: str, *, accelerated: bool) -> Iterator[Backend]:
    """Choose what computes within, before scikit-learn is imported for the first time.

    Where cuML is put in the place of scikit-learn and umap-learn, it decides at each call whether it can do what was
    asked for, and leaves the rest to them without a word. So what is reported comes from its own profiler, afterwards.

    Args:
        package: whose functions are called.
        accelerated: put cuML in the place of scikit-learn and umap-learn.

    Raises:
        AnalyticsError: cuML is installed but cannot be used.
        MissingExtra: umap-learn is not installed.
    """
    _require(package)
    library = f"{package} {metadata.version(package)}"
    backend = Backend(f"{library}, CPU")
    if not accelerated:
        yield backend
        return
    accel, device = _install_cuml()
    with accel.profile(quiet=True) as profile:
        yield backend
    cuml = f"cuml.accel {_cuml_version()}"
    on_gpu = sorted(method for method, calls in profile.method_calls.items() if calls.gpu_calls)
    on_cpu = {method: calls for method, calls in sorted(profile.method_calls.items()) if calls.cpu_calls}
    if on_gpu:
        left = f"; {', '.join(on_cpu)} on the CPU" if on_cpu else ""
        backend.name = f"{cuml} in place of {library}: {', '.join(on_gpu)} on {device}{left}"
    fallbacks = [
        f"{method} ran on the CPU, not on {device} ({cuml}: {'; '.join(sorted(calls.fallback_reasons)) or 'no reason'})"
        for method, calls in on_cpu.items()
    ]
    classes = dict.fromkeys(method.partition(".")[0] for method in on_gpu)
    different = [f"{name} ran as {cuml}: {_DIFFERENT[name]}" for name in classes if name in _DIFFERENT]
    backend.warnings = (*fallbacks, *different)


def _require(package: str) -> None:
    if package == "umap-learn":
        require_extra("maps", "UMAP")


@functools.cache
def _install_cuml() -> tuple[Any, str]:
    """Put cuML in place, once; returns `cuml.accel` and the name of its GPU."""
    if "sklearn" in sys.modules:
        raise AnalyticsError("cuML was asked for after scikit-learn had been imported.", "Use a fresh process.")
    try:
        import cupy
        from cuml import accel

        # Managed memory would spill to the host where the GPU is full, which llama.cpp may share, and crawl.
        accel.install(disable_uvm=True)
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
        accel.profile  # noqa: B018 - without it nothing says what ran where
    except Exception as error:  # whatever a driver or a library of another version comes up with
        raise AnalyticsError(
            f"cuML is installed but cannot be used: {type(error).__name__}: {error}.",
            "Repair it (its CUDA version must be the driver's; `pip install -U 'gguf-harness[gpu]'`), or compute on the"
            " CPU with --gguf-analytics-gpu=-1.",
        ) from error
    return accel, name.decode() if isinstance(name, bytes) else str(name)


def _cuml_version() -> str:
    for name in _CUML:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "of unknown version"
