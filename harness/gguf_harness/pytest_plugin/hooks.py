"""Hooks for other plugins: additional metrics, and charts of the report.

A plugin, or the conftest.py of a project, implements them as functions of these names:

    def pytest_gguf_metrics():
        return [Metric(name="toy_score", title="toy score", ...)]

Imported in every session: keep it light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gguf_harness.metrics.registry import Metric
    from gguf_harness.report.charts import ChartBuilder

__all__ = ["pytest_gguf_charts", "pytest_gguf_metrics"]


@pytest.hookspec
def pytest_gguf_metrics(config: pytest.Config) -> Iterable[Metric]:  # type: ignore[empty-body]
    """Return metrics for the registry: they can be recorded, gated, compared with baselines and shown in tables.

    Called once, before options are checked. A stored run contains their entries, so it can be shown without the plugin.
    Exit code 4 if an entry is invalid or its name is taken.

    Args:
        config: of the session.

    Returns:
        Entries, `gguf_harness.metrics.registry.Metric`. A `gate` names the suite, which is the folder of the test's
        file, and the test that decides it: if a limit is set and the test does not decide it, the session fails.
    """


@pytest.hookspec
def pytest_gguf_charts(config: pytest.Config) -> Iterable[ChartBuilder]:  # type: ignore[empty-body]
    """Return functions that draw charts for the report's page.

    Args:
        config: of the session.

    Returns:
        Functions of a stored run (`gguf_harness.report.data.RunView`) and its folder, each of which returns the charts
        that the run has data for, made by `gguf_harness.report.charts.base.make_chart`: Plotly figures as JSON types.
        They are called once, at the end of the session; the result is stored next to run.json.
    """
