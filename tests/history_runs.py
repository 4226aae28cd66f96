"""Runs of one family over time, as sessions store them: candidates change, the reference and the text stay."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.kernels.standard_errors import clustered_se
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.registry import METRICS
from gguf_harness.store.arrays import save_arrays

__all__ = ["REFERENCE", "TEXT", "Measured", "content", "row", "write_run_of"]

REFERENCE: Final = "f" * 64
TEXT: Final = {"name": "pydoc", "sha256": "c" * 64, "bytes": 466272, "available": 237, "order": "sampled", "n_ctx": 512}
_FIRST: Final = datetime(2026, 11, 1, 12, tzinfo=UTC)
_TOKENS: Final = 255


@dataclass(frozen=True)
class Measured:
    """A candidate in a run.

    Attributes:
        kld: mean KL of each window; None where it was not measured.
        sha256: hash of its file.
        quantization: type of its file.
        name: of its file; made of the type if not given.
        variant: how it is run.
        more: other rows, as (metric, value, se).
        pairs: whether the run keeps the means of windows.
    """

    kld: Sequence[float] | NDArray[np.float64] | None
    sha256: str = "1" * 64
    quantization: str | None = "Q4_K_M"
    name: str = ""
    variant: str | None = None
    more: Sequence[tuple[str, float, float | None]] = ()
    pairs: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        return (self.name or f"toy-{self.quantization}") + (f" [{self.variant}]" if self.variant else "")


def row(model: str, metric: str, value: float, se: float | None, clusters: int | None = None) -> dict[str, Any]:
    """A row of `estimates` of a whole model."""
    entry = METRICS[metric]
    return {
        "suite": "quant", "test": "test", "model": model, "reference": "toy-F16", **Place()._asdict(), "metric": metric,
        "value": value, "se": se, "se_iid": None, "clusters": clusters, "n": (clusters or 1) * _TOKENS,
        "unit": entry.unit, "better": entry.better, "detail": None, "low": None, "high": None, "doubt": None,
    }  # fmt: skip


def content(
    number: int,
    candidates: Sequence[Measured],
    *,
    reference: str = REFERENCE,
    windows: int = 16,
    commit: str | None = None,
    **changed: Any,
) -> dict[str, Any]:
    """What a run.json holds: the run of day `number`.

    Args:
        number: of the run, from 0.
        candidates: what was compared.
        reference: hash of the reference's file.
        windows: how many were read.
        commit: that the session ran at.
        changed: other values of the run, in place of the usual ones.
    """
    models = [_model("toy-F16", reference, "F16", None, size=1000) | {"reference": True}]
    models += [
        _model(one.name or f"toy-{one.quantization}", one.sha256, one.quantization, one.variant) | dict(one.extra)
        for one in candidates
    ]
    rows = [row("toy-F16", "ppl", 12.0, 0.5, windows)]
    for one in candidates:
        if one.kld is not None:
            means = np.asarray(one.kld, dtype=np.float64)
            rows.append(row(one.subject, "kld_mean", float(means.mean()), clustered_se(means[:, None]), len(means)))
        rows += [row(one.subject, metric, value, se, windows) for metric, value, se in one.more]
    return {
        "schema_version": 2,
        "id": f"2026{number:04d}-120000-0000{number:02d}",
        "started": (_FIRST + timedelta(days=number)).isoformat(),
        "duration_s": 1.0,
        "finished": True,
        "harness": "0.1.0",
        "git": None if commit is None else {"commit": commit, "dirty": False},
        "machine": {"cpu": "EPYC", "cores": 2, "memory_bytes": 2**34, "gpus": []},
        "engine": {"llama_cpp": "0c1e570", "system_info": "CPU : AVX2 = 1"},
        "settings": {"threads": 2, "batch": 2048, "side_by_side": "auto", "until_decided": False},
        "corpus": TEXT | {"windows": windows, "tokens": windows * 512, "scored_tokens": windows * _TOKENS},
        "models": models,
        "tests": [],
        "estimates": rows,
        "gates": [],
        "arrays": [],
        **changed,
    }  # fmt: skip


def _model(file: str, sha256: str, quantization: str | None, variant: str | None, size: int = 500) -> dict[str, Any]:
    return {
        "name": file if variant is None else f"{file} [{variant}]", "file": file, "variant": variant,
        "context": {"cache_type_k": "f16", "cache_type_v": "f16", "rotate_kv": True}, "adapters": [], "bytes": size,
        "bits_per_weight": 4.5, "quantization": quantization, "reference": False, "sha256": sha256,
    }  # fmt: skip


def write_run_of(results: Path, number: int, candidates: Sequence[Measured], **changed: Any) -> Path:
    """Store a run and the arrays that it keeps of each candidate; returns its run.json."""
    run = content(number, candidates, **changed)
    folder: Path = results / "runs" / run["id"]
    for place, one in enumerate(candidates):
        if one.kld is not None and one.pairs:
            means = np.asarray(one.kld, dtype=np.float64)
            save_arrays(folder / "arrays" / f"{place}.npz", _kept(means))
            entry = {"model": one.subject, "name": "kld_quantiles", "file": f"arrays/{place}.npz", "description": ""}
            run["arrays"].append(entry)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder / "run.json"


def _kept(kld: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    windows = np.arange(len(kld)) * 7
    return {"window": windows, "window_kld": kld, "window_nll": math.log(12.0) + kld}
