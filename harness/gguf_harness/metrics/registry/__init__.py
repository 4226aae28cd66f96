"""The registry of metrics: one entry for each, from which tables, help, glossary, gates and comparisons are derived.

Each family has a module with its entries; a metric without an entry cannot be recorded. Other plugins add entries with
the hook `pytest_gguf_metrics`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from gguf_harness.errors import GateError
from gguf_harness.metrics.registry import (
    attention,
    depth,
    divergence,
    embeddings,
    files,
    heads,
    kv,
    kv_cache,
    layers,
    lora,
    perplexity,
    serving,
    speed,
    tensors,
    texts,
)
from gguf_harness.metrics.registry.entry import (
    ESTIMATED,
    Better,
    Column,
    Estimated,
    GatedBy,
    Metric,
    WindowMean,
)

__all__ = [
    "ESTIMATED",
    "METRICS",
    "Better",
    "Column",
    "Estimated",
    "GatedBy",
    "Metric",
    "Registry",
    "WindowMean",
    "close_to",
    "compared_by_window",
    "metric_info",
    "metrics_of_run",
    "possible_values",
]

# Tables show their columns in this order.
_FAMILIES: Final = (
    files, perplexity, divergence, texts, speed, serving, attention, heads, layers, embeddings, tensors,
    kv, depth, kv_cache, lora,
)  # fmt: skip


class Registry(Mapping[str, Metric]):
    """Metrics by name, in the order of tables; those of plugins come last."""

    def __init__(self, built_in: Iterable[Metric]) -> None:
        entries = list(built_in)
        self._entries = {metric.name: metric for metric in entries}
        self._built_in = frozenset(self._entries)
        if len(self._entries) < len(entries):
            raise ValueError("Two entries of the registry have the same name.")

    def __getitem__(self, name: str) -> Metric:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def is_built_in(self, name: str) -> bool:
        """Whether a metric is the harness's own."""
        return name in self._built_in

    def add(self, metric: Metric) -> None:
        """Add a metric of a plugin.

        Raises:
            GateError: the entry is invalid, or its name is taken.
        """
        metric.check()
        if metric.name in self._entries:
            whose = "of gguf-harness" if self.is_built_in(metric.name) else "of another plugin"
            raise GateError(f"there is a metric {metric.name!r} already, {whose}.", "Choose another name.")
        suites = {entry.gate.suite for entry in self.values() if entry.gate and self.is_built_in(entry.name)}
        if metric.gate is not None and metric.gate.suite in suites:
            raise GateError(
                f"gate of {metric.name} names the suite {metric.gate.suite!r}, which is one of gguf-harness.",
                "Give the folder of the test that decides on it, and choose another name for it.",
            )
        self._entries[metric.name] = metric

    def remove(self, names: Iterable[str]) -> None:
        """Remove metrics of plugins at the end of a session."""
        for name in names:
            if not self.is_built_in(name):
                self._entries.pop(name, None)


METRICS: Final = Registry(metric for family in _FAMILIES for metric in family.METRICS)
"""Every metric that can be recorded."""


def metric_info(metric: str) -> Metric:
    """Look a metric up.

    Raises:
        GateError: for an unknown name, with the closest known one.
    """
    try:
        return METRICS[metric]
    except KeyError:
        raise GateError(f"Unknown metric {metric!r}.", close_to(metric, METRICS)) from None


def close_to(name: str, known: Iterable[str]) -> str:
    """Advice for an unknown name: the closest one, or all names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known metrics: {', '.join(names)}."


def possible_values(metric: str) -> tuple[float, float]:
    """The smallest and largest possible value of a metric; infinite if unknown.

    Raises:
        GateError: for an unknown name.
    """
    return metric_info(metric).values


def compared_by_window() -> tuple[str, ...]:
    """Metrics that are compared with a baseline by means of shared windows."""
    return tuple(name for name, metric in METRICS.items() if metric.window_means is not None)


def metrics_of_run(run: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics for showing a stored run: built-in ones, and the plugin entries stored in it.

    Args:
        run: content of a run.json checked by `gguf_harness.store.runs.load_run`, or being written.
    """
    ours = {name: metric for name, metric in METRICS.items() if METRICS.is_built_in(name)}
    theirs = (Metric.from_json(entry) for entry in run.get("metrics") or [])
    return {metric.name: metric for metric in theirs} | ours
