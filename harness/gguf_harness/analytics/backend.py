"""Which GPU analyses get, and what computes them: scikit-learn and umap-learn, or cuML in their place."""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib import metadata
from typing import Final

from gguf_harness.errors import AnalyticsError, OptionError

__all__ = ["activate", "can_accelerate", "choose_gpu", "count_visible", "versions"]

_PACKAGES: Final = ("numpy", "scipy", "scikit-learn", "umap-learn", "pynndescent", "numba")
_REPLACED: Final = ("scikit-learn", "umap-learn")
_CUML: Final = ("cuml-cu13", "cuml-cu12", "cuml-cu11", "cuml")


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
    return gpu >= 0 and importlib.util.find_spec("cuml") is not None


def versions(*, accelerated: bool) -> dict[str, str]:
    """Versions of everything that computes, for cache keys. Nothing is imported.

    Args:
        accelerated: whether cuML takes part.
    """
    found = {name: metadata.version(name) for name in _PACKAGES}
    return found | ({"cuml": _cuml_version()} if accelerated else {})


def activate(package: str, *, accelerated: bool) -> str:
    """Choose what computes in this process, before scikit-learn is imported for the first time.

    Args:
        package: whose functions will be called.
        accelerated: put cuML in the place of scikit-learn and umap-learn. What it does not cover stays theirs.

    Returns:
        What computes, and where: "scikit-learn 1.9.1, CPU".

    Raises:
        AnalyticsError: cuML is installed but cannot be used.
    """
    name = f"{package} {metadata.version(package)}"
    if not accelerated:
        return f"{name}, CPU"
    device = _install_cuml()
    return f"cuml.accel {_cuml_version()} in place of {name}, {device}" if package in _REPLACED else f"{name}, CPU"


@functools.cache
def _install_cuml() -> str:
    """Put cuML in place, once; returns the name of its GPU."""
    if "sklearn" in sys.modules:
        raise AnalyticsError("cuML was asked for after scikit-learn had been imported.", "Use a fresh process.")
    try:
        import cupy
        from cuml import accel

        accel.install()
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    except Exception as error:  # whatever a driver or a library of another version comes up with
        raise AnalyticsError(
            f"cuML is installed but cannot be used: {type(error).__name__}: {error}.",
            "Repair it (its CUDA version must be the driver's), or compute on the CPU with --gguf-analytics-gpu=-1.",
        ) from error
    return name.decode() if isinstance(name, bytes) else str(name)


def _cuml_version() -> str:
    for name in _CUML:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"
