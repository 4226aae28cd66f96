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
from gguf_harness.report.charts.kv_cache_charts import kv_cache_charts
from gguf_harness.report.charts.kv_charts import kv_charts
from gguf_harness.report.charts.kv_depth_charts import kv_depth_charts
from gguf_harness.report.charts.layers_charts import layers_charts
from gguf_harness.report.charts.lora_charts import lora_charts
from gguf_harness.report.charts.pair_charts import pair_charts
from gguf_harness.report.charts.quant_charts import quant_charts
from gguf_harness.report.charts.step_charts import next_token_charts, step_charts
from gguf_harness.report.charts.strip_charts import strip_charts
from gguf_harness.report.charts.structure_charts import structure_charts
from gguf_harness.report.charts.text_charts import text_charts
from gguf_harness.report.charts.weight_charts import weight_charts
from gguf_harness.report.data import RunView

__all__ = ["SECTIONS", "ChartBuilder", "build_charts"]

ChartBuilder = Callable[[RunView, Path], Iterable[Chart]]
"""Returns the charts that a run has data for, from the stored run and its folder only."""

SECTIONS: Final = {
    "decide": "Decide",
    "cache": "KV cache",
    "adapters": "Adapters",
    "attention": "Attention",
    "heads": "Heads",
    "layers": "Layers",
    "embeddings": "Embeddings",
    "evidence": "Evidence",
}
"""Sections of the report, in order."""

_BUILDERS: Final[tuple[tuple[str, ChartBuilder], ...]] = (
    ("decide", quant_charts),
    ("decide", pair_charts),
    ("decide", text_charts),
    ("decide", strip_charts),
    ("decide", next_token_charts),
    ("cache", kv_charts),
    ("cache", kv_depth_charts),
    ("cache", kv_cache_charts),
    ("adapters", lora_charts),
    ("attention", attention_charts),
    ("attention", step_charts),
    ("heads", head_charts),
    ("layers", layers_charts),
    ("layers", drift_charts),
    ("layers", weight_charts),
    ("layers", structure_charts),
    ("embeddings", embedding_charts),
)


def build_charts(view: RunView, run_dir: Path) -> dict[str, list[Chart]]:
    """Every chart that the run has data for, by section; those of plugins are in the last one.

    Raises:
        StoreError: the charts that plugins drew are damaged.
    """
    charts: dict[str, list[Chart]] = {section: [] for section in SECTIONS}
    for section, builder in _BUILDERS:
        charts[section] += builder(view, run_dir)
    charts["evidence"] += kept_charts(run_dir)
    return charts
