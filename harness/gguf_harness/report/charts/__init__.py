"""Charts of a stored run, a module per suite. Charts of plugins are stored with the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from gguf_harness.report.charts.attention_charts import attention_charts
from gguf_harness.report.charts.base import Chart
from gguf_harness.report.charts.drift_charts import drift_charts
from gguf_harness.report.charts.embedding_charts import embedding_charts
from gguf_harness.report.charts.head_charts import head_charts
from gguf_harness.report.charts.kept import kept_charts
from gguf_harness.report.charts.layers_charts import layers_charts
from gguf_harness.report.charts.quant_charts import quant_charts
from gguf_harness.report.charts.weight_charts import weight_charts
from gguf_harness.report.data import RunView

__all__ = ["ChartBuilder", "build_charts"]

ChartBuilder = Callable[[RunView, Path], Iterable[Chart]]
"""Returns the charts that a run has data for, from the stored run and its folder only."""

_BUILDERS: Final[tuple[ChartBuilder, ...]] = (
    quant_charts,
    attention_charts,
    head_charts,
    embedding_charts,
    layers_charts,
    weight_charts,
    drift_charts,
)


def build_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """Every chart that the run has data for.

    Raises:
        StoreError: the charts that plugins drew are damaged.
    """
    return [*(chart for builder in _BUILDERS for chart in builder(view, run_dir)), *kept_charts(run_dir)]
