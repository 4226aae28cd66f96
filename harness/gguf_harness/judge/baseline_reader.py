"""Reads baseline files, and checks everything that is used from them. Their format: `gguf_harness.judge.baselines`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gguf_harness.errors import GateError, StoreError, visible
from gguf_harness.inputs.pairing import FAMILY
from gguf_harness.judge.baselines import BASELINE_VERSION, Baseline, Facts
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.registry import METRICS, Metric, compared_by_window
from gguf_harness.store.json_file import JsonFile, is_usual, shown

__all__ = ["load_baseline"]

_MOST_BYTES: Final = 50 * 10**6


def load_baseline(path: Path) -> Baseline:
    """Read a baseline and check everything that is used from it.

    Raises:
        StoreError: unreadable, not a baseline, damaged, or written by a newer version.
    """
    hint = "Give a file that --gguf-save-baseline wrote, or save the baseline again."
    read = _Reader(path, "Baseline", hint, _MOST_BYTES)
    content = read.content
    if not isinstance(content, dict) or type(content.get("baseline_version")) is not int:
        raise read.invalid("has no baseline_version")
    version = content["baseline_version"]
    if version > BASELINE_VERSION:
        raise StoreError(
            f"{path} has baseline version {str(version)[:20]}, this harness reads up to {BASELINE_VERSION}.",
            "Update gguf-harness.",
        )
    if version < 1:
        raise read.invalid(f"has baseline_version = {version}, expected 1 to {BASELINE_VERSION}")
    read.take_metrics(content)
    tables = read.get(content, "models", dict)
    models = {name: _facts(read, name, table, version) for name, table in tables.items()}
    corpus = read.get(content, "corpus", dict, type(None))
    reference = read.get(content, "reference", str, type(None))
    if reference is not None and reference not in models:
        raise read.invalid(f"names {shown(reference)} as the reference, but has no model of that name")
    settings = read.get(content, "settings", dict) if version > 1 else {}
    return Baseline(
        name=visible(path.stem),
        engine=read.get(content, "engine", str, type(None)),
        corpus=None if corpus is None else (read.get(corpus, "sha256", str), read.get(corpus, "n_ctx", int)),
        reference=None if reference is None else models[reference].sha256,
        models=models,
        reference_name=reference,
        settings={name: read.get(settings, name, str) for name in settings},
        notes=(*(_lost(tables) if version == 1 else ()), *read.notes()),
    )


class _Reader(JsonFile):
    """Reads and checks values of a baseline."""

    _theirs: Mapping[str, Metric] = MappingProxyType({})

    def take_metrics(self, content: Any) -> None:
        """Read the entries of plugin metrics."""
        try:
            entries = (
                [Metric.from_json(entry) for entry in self.get(content, "metrics", list)]
                if "metrics" in content
                else []
            )
        except GateError as error:
            raise self.invalid(f"has an entry of metrics that cannot be read: {error.message}") from None
        self._theirs = {entry.name: entry for entry in entries if entry.name not in METRICS or not self._is_same(entry)}

    def _is_same(self, entry: Metric) -> bool:
        now = METRICS[entry.name]
        return (now.unit, now.better, now.definition) == (entry.unit, entry.better, entry.definition)

    def notes(self) -> list[str]:
        """Notes on plugin metrics that this session does not define in the same way, so they are not compared."""
        return [
            f"the baseline has {name}, a metric of a plugin, which"
            f" {'now has another definition' if name in METRICS else 'this session does not have'}: it is not compared"
            for name in self._theirs
        ]

    def metric(self, name: Any) -> str:
        if not isinstance(name, str) or (name not in METRICS and name not in self._theirs):
            raise self.invalid(f"has an estimate of {shown(name)}, which is not a metric of this harness")
        return name

    def is_comparable(self, metric: str) -> bool:
        """Whether a metric still has the same definition."""
        return metric not in self._theirs

    def estimate(self, row: Any) -> dict[str, Any]:
        values = {
            "value": self.get(row, "value", float, int),
            "se": self.get(row, "se", float, int, type(None)),
            "n": self.get(row, "n", int),
            "clusters": self.get(row, "clusters", int, type(None)),
        }
        for key, least in (("se", 0), ("n", 1), ("clusters", 1)):
            if values[key] is not None and values[key] < least:
                raise self.invalid(f"has {key} = {values[key]}, expected at least {least}")
        return values

    def place(self, row: Any) -> Place:
        kinds = {"layer": int, "head": int, "part": str, "prompt": str}
        return Place(**{name: self.get(row, name, kind, type(None)) for name, kind in kinds.items()})


def _facts(read: _Reader, name: str, table: Any, version: int) -> Facts:
    estimates = {read.metric(metric): read.estimate(row) for metric, row in read.get(table, "estimates", dict).items()}
    placed: dict[tuple[str, Place], dict[str, Any]] = {}
    if version == 1:
        estimates = {metric: row for metric, row in estimates.items() if not _is_ambiguous(metric)}
    else:
        for row in read.get(table, "placed", list):
            key = read.metric(row.get("metric") if isinstance(row, dict) else row), read.place(row)
            placed[key] = read.estimate(row)
    estimates = {metric: row for metric, row in estimates.items() if read.is_comparable(metric)}
    placed = {key: row for key, row in placed.items() if read.is_comparable(key[0])}
    failed = read.get(table, "failed", list, type(None)) or []
    if not all(isinstance(sentence, str) for sentence in failed):
        raise read.invalid(f"has failed = {shown(failed)} of {shown(name)}, expected sentences")
    windows, means = _means(read, name, table) if "means" in table else ((), None)
    return Facts(
        sha256=read.get(table, "sha256", str),
        family={key: str(read.get(table, key, str, int, type(None))) for key in FAMILY},
        estimates=estimates,
        windows=windows,
        means=means,
        placed=placed,
        quantization=read.get(table, "quantization", str, type(None)),
        variant=read.get(table, "variant", str, type(None)),
        failed=tuple(failed),
    )


def _means(read: _Reader, name: str, table: Any) -> tuple[tuple[int, ...], dict[str, tuple[float, ...]]]:
    """The windows of a model, and the means of the metrics that are compared by window."""
    windows = read.get(table, "windows", list)
    # A metric may be newer than the file; if all are missing, the error names the first.
    stored = read.get(table, "means", dict)
    names = [metric for metric in compared_by_window() if metric in stored] or compared_by_window()
    means = {metric: read.get(stored, metric, list) for metric in names}
    sound = all(type(window) is int and window >= 0 and is_usual(window) for window in windows)
    sound = sound and len(set(windows)) == len(windows)
    for metric, values in means.items():
        sound = sound and len(values) == len(windows) > 0
        least, most = METRICS[metric].window_means or (-math.inf, math.inf)
        sound = sound and all(is_usual(value) and least <= value <= most for value in values)
        if not sound:
            expected = f"expected a number for each, {least:g} to {most:g}"
            raise read.invalid(f"has windows of {shown(name)} whose {metric} is damaged: {expected}")
    return tuple(windows), {metric: tuple(values) for metric, values in means.items()}


def _is_ambiguous(metric: str) -> bool:
    """Whether suites also record a metric by layer, head or group of tensors: version 1 kept only the last of these."""
    return bool({"layer", "head", "tensors"} & set(METRICS[metric].parts))


def _lost(tables: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on what a file of version 1 does not have."""
    lost = sorted({metric for table in tables.values() for metric in table["estimates"] if _is_ambiguous(metric)})
    if not lost:
        return ()
    return (
        f"the file is of version 1, which does not store the layer or head of an estimate: {len(lost)} metrics are"
        f" not compared ({', '.join(lost)}); save the baseline again",
    )
