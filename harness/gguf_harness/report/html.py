"""Report of a stored run as one self-contained HTML file, which opens from disk without network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gguf_harness.errors import StoreError
from gguf_harness.judge.claims import judge_claims
from gguf_harness.metrics.registry import ESTIMATED, Metric
from gguf_harness.report.charts import build_charts
from gguf_harness.report.data import RunView, place, visible, visible_lines
from gguf_harness.report.numbers import doubt_mark, format_bytes, format_metric, format_value
from gguf_harness.report.prices import price_list, show_average, show_step
from gguf_harness.report.standing import failures_of
from gguf_harness.store.runs import write_text

__all__ = ["embed_json", "plotly_js", "write_html"]


def write_html(run: Mapping[str, Any], run_dir: Path, destination: Path) -> None:
    """Render a run.

    Args:
        run: content of a run.json.
        run_dir: folder of that run.json, for its arrays.
        destination: written atomically.

    Raises:
        StoreError: it cannot be written.
    """
    import jinja2
    from markupsafe import Markup

    assets = resources.files("gguf_harness.report") / "assets"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"visible": visible, "lines": visible_lines, "size": format_bytes, "number": format_value}
    template = environment.from_string((assets / "report.html.j2").read_text(encoding="utf-8"))
    view = RunView(run)
    charts = build_charts(view, run_dir)
    # Only our own files, and JSON from embed_json: everything else is escaped.
    page = template.render(
        run=run,
        view=view,
        failures=failures_of(run),
        own_words={"measurement", "prompt", "assertion", "fixture"},
        headline=view.headline(),
        columns=[metric for metric in view.metrics.values() if "html" in metric.tables and view.measured(metric.name)],
        cell=lambda model, metric: _cell(view, model, metric),
        metrics=view.metrics,
        glossary=view.used_metrics(),
        estimated=ESTIMATED,
        prices=price_list(view),
        show_average=show_average,
        show_step=show_step,
        claims=judge_claims(run),
        estimates=[(row, *_place(row)) for row in view.shown_estimates()],
        charts=charts,
        charts_json=Markup(embed_json(charts)),  # noqa: S704
        css=Markup((assets / "report.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup((assets / "report.js").read_text(encoding="utf-8")),  # noqa: S704
        plotly=Markup(plotly_js() if charts else ""),  # noqa: S704
    )
    write_text(destination, page)


def _cell(view: RunView, model: str, metric: Metric) -> tuple[str, float | None]:
    """(text, value to sort by) of a table cell; empty cells sort last."""
    row = view.row(model, metric.name)
    if row is None:
        # The reference is not compared with itself: nothing is missing.
        is_reference = any(other.is_reference and other.name == model for other in view.models)
        return ("–" if is_reference else "no data"), None
    return f"{format_metric(metric, row['value'], row['se'])}{doubt_mark(row)}", row["value"]


def _place(row: Mapping[str, Any]) -> tuple[str, int | None]:
    """(text, value to sort by) of the layer and head of an estimate."""
    layer, head = row.get("layer"), row.get("head")
    if layer is None and head is None:
        return "", None
    return place(layer, head), ((layer or 0) << 20) + (0 if head is None else head + 1)


def embed_json(data: object) -> str:
    """JSON that is safe inside a script element, whatever strings it contains."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    for character, escape in escapes.items():
        text = text.replace(character, escape)
    return text


def plotly_js() -> str:
    """Plotly's JavaScript from its Python package.

    Raises:
        StoreError: plotly is not installed.
    """
    # Locate the package without importing it: the import takes longer than everything else here.
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise StoreError("plotly, which draws a report's charts, is not installed.", "pip install gguf-harness")
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
