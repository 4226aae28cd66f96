"""Charts of a stored run, a module per suite."""

from __future__ import annotations

from pathlib import Path

from gguf_harness.report.charts.attention import attention_charts
from gguf_harness.report.charts.base import Chart
from gguf_harness.report.charts.drift import drift_charts
from gguf_harness.report.charts.embeddings import embedding_charts
from gguf_harness.report.charts.heads import head_charts
from gguf_harness.report.charts.layers import layers_charts
from gguf_harness.report.charts.quant import quant_charts
from gguf_harness.report.charts.weights import weight_charts
from gguf_harness.report.data import RunView

__all__ = ["build_charts"]


def build_charts(view: RunView, run_dir: Path) -> list[Chart]:
    """Every chart that the run has data for."""
    return [
        *quant_charts(view, run_dir),
        *attention_charts(view, run_dir),
        *head_charts(view, run_dir),
        *embedding_charts(view, run_dir),
        *layers_charts(view, run_dir),
        *weight_charts(view, run_dir),
        *drift_charts(view, run_dir),
    ]
