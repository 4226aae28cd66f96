"""Means of windows that runs stored, by which changes are paired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from gguf_harness.errors import StoreError
from gguf_harness.metrics.registry import METRICS
from gguf_harness.store.arrays import Arrays, load_arrays
from gguf_harness.store.runs import run_file

__all__ = ["Means", "StoredMeans", "means_of_run"]

Means = Mapping[int, float]
"""The mean of each window."""

_FILES: Final = ("window_means", "kld_quantiles")
_IN_CURVES: Final = {
    "kld": "window_kld",
    "nll": "window_nll",
    # Of the candidate alone: the reference is the same in both runs, so that its loss cancels.
    "nll_difference": "window_nll",
}
"""Names in `kld_quantiles`, which every run has, by what a metric is the mean of; `window_means` is only in those that
saved a baseline."""


class StoredMeans(Mapping[str, Means]):
    """Means of the windows of a subject by metric, read when they are first asked for.

    Args:
        files: of the run, by name of the arrays.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def __getitem__(self, metric: str) -> Means:
        """The means of a metric, on the scale of `gguf_harness.metrics.windows.to_mean`.

        Raises:
            KeyError: the run did not store them, or they cannot be read.
        """
        for name, key in (("window_means", metric), ("kld_quantiles", _in_curves(metric))):
            arrays = _load(self._files[name]) if name in self._files else None
            if arrays is None or key not in arrays or "window" not in arrays:
                continue
            windows, values = arrays["window"], arrays[key].astype(np.float64)
            if values.shape == windows.shape and values.ndim == 1 and np.isfinite(values).all():
                return dict(zip(windows.tolist(), values.tolist(), strict=True))
        raise KeyError(metric)

    def __iter__(self) -> Iterator[str]:
        return (metric for metric in METRICS if metric in self)

    def __len__(self) -> int:
        return len(list(iter(self)))


def means_of_run(file: Path, content: Mapping[str, Any]) -> dict[str, StoredMeans]:
    """Means of windows by subject. A name that leads out of the run's folder is not followed.

    Args:
        file: a run.json.
        content: of it.
    """
    files: dict[str, dict[str, Path]] = {}
    for entry in content.get("arrays") or []:
        if entry["name"] not in _FILES:
            continue
        try:
            files.setdefault(entry["model"], {})[entry["name"]] = run_file(file.parent, entry["file"])
        except StoreError:
            continue
    return {model: StoredMeans(of_model) for model, of_model in files.items()}


def _in_curves(metric: str) -> str | None:
    """The name of a metric's window means in `kld_quantiles`; None if they are not there."""
    early = METRICS[metric].early if metric in METRICS else None
    return None if early is None or early.by == "quantile" else _IN_CURVES.get(early.of)


@lru_cache(maxsize=256)
def _load(file: Path) -> Arrays | None:
    try:
        return load_arrays(file)
    except StoreError:
        return None
