"""Metrics and charts from other plugins, through `gguf_harness.pytest_plugin.hooks`, collected once per session."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from gguf_harness.errors import HarnessError, visible
from gguf_harness.metrics.registry import METRICS, Metric
from gguf_harness.report.charts import ChartBuilder

__all__ = ["add_charts", "add_metrics"]


def add_metrics(config: pytest.Config) -> None:
    """Add metrics of plugins to the registry, until the session ends.

    Raises:
        pytest.UsageError: a plugin's hook failed, an entry is invalid, or its name is taken.
    """
    for plugin, entry in _collected(config, "pytest_gguf_metrics"):
        if not isinstance(entry, Metric):
            raise _misuse(plugin, "pytest_gguf_metrics", f"it returned {entry!r}, expected entries of class Metric.")
        try:
            METRICS.add(entry)
        except HarnessError as error:
            raise _misuse(plugin, "pytest_gguf_metrics", str(error)) from None
        config.add_cleanup(partial(METRICS.remove, [entry.name]))


def add_charts(config: pytest.Config) -> dict[str, list[ChartBuilder]]:
    """Functions that draw the charts of plugins, by plugin.

    Raises:
        pytest.UsageError: a plugin's hook failed, or returned something else.
    """
    builders: dict[str, list[ChartBuilder]] = {}
    for plugin, builder in _collected(config, "pytest_gguf_charts"):
        if not callable(builder):
            raise _misuse(plugin, "pytest_gguf_charts", f"it returned {builder!r}, expected functions.")
        builders.setdefault(plugin, []).append(builder)
    return builders


def _collected(config: pytest.Config, hook: str) -> Iterator[tuple[str, Any]]:
    """Yield (name of the plugin, item that it returned), in the order in which plugins were registered."""
    manager = config.pluginmanager
    for implementation in getattr(config.hook, hook).get_hookimpls():
        others = [plugin for plugin in manager.get_plugins() if plugin is not implementation.plugin]
        name = visible(str(implementation.plugin_name))
        try:
            given = manager.subset_hook_caller(hook, others)(config=config)
            entries = [entry for part in given for entry in part]
        except Exception as error:
            told = "it did not return a list" if isinstance(error, TypeError) else "it failed"
            raise _misuse(name, hook, f"{told}: {type(error).__name__}: {error}") from error
        for entry in entries:
            yield name, entry


def _misuse(plugin: str, hook: str, problem: str) -> pytest.UsageError:
    return pytest.UsageError(f"The plugin {plugin} and its hook {hook}: {visible(problem)}")
