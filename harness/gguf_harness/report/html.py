"""Report of a stored run as one self-contained HTML file, which opens from disk without network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import StoreError
from gguf_harness.judge.claims import judge_claims
from gguf_harness.metrics.registry import ESTIMATED, Metric
from gguf_harness.report.answer import answer_of, noise_of
from gguf_harness.report.charts import SECTIONS, build_charts
from gguf_harness.report.charts.base import PLOTLY, Chart
from gguf_harness.report.data import RunView, visible, visible_lines
from gguf_harness.report.model_groups import SECTION_OF_SUITE, Group, groups_of
from gguf_harness.report.numbers import doubt_mark, format_bytes, format_metric, format_value
from gguf_harness.report.prices import price_list, show_average, show_step
from gguf_harness.report.standing import failures_of
from gguf_harness.report.tables import estimates_table, numbers_tables, tests_table
from gguf_harness.report.times import budget_told, forecast_told
from gguf_harness.store.runs import write_text
from gguf_harness.views.bundle import report_script, views_style

if TYPE_CHECKING:
    import jinja2

__all__ = ["embed_json", "page_style", "page_template", "plotly_js", "write_html"]

_TEMPLATE: Final = "report.html.j2"
_PICTURE: Final = "picture.html.j2"
_PLOTLY_KEYS: Final = ("traces", "layout", "height")


def write_html(run: Mapping[str, Any], run_dir: Path, destination: Path) -> None:
    """Render a run.

    Args:
        run: content of a run.json.
        run_dir: folder of that run.json, for its arrays.
        destination: written atomically.

    Raises:
        StoreError: it cannot be written.
    """
    from markupsafe import Markup

    template = page_template(_TEMPLATE)
    view = RunView(run)
    charts = build_charts(view, run_dir)
    drawn_by_plotly = any(chart["view"] == PLOTLY for section in charts.values() for chart in section)
    groups = groups_of(view)
    columns = {group.section: group.columns(view, "html") for group in groups}
    page = template.render(
        run=run,
        view=view,
        answer=answer_of(view),
        noise=noise_of(view),
        failures=failures_of(run),
        own_words={"measurement", "prompt", "assertion", "fixture"},
        headline=view.headline(),
        groups={group.section: group for group in groups},
        columns=columns,
        brief={section: _brief(of_group) for section, of_group in columns.items()},
        cells={
            (group.section, metric.name): _column(view, group, metric)
            for group in groups
            for metric in columns[group.section]
        },
        metrics=view.metrics,
        glossary=view.used_metrics(),
        estimated=ESTIMATED,
        forecast=forecast_told(run),
        budget=budget_told(run),
        prices=price_list(view),
        show_average=show_average,
        show_step=show_step,
        claims=judge_claims(run),
        estimates=estimates_table(view),
        tests=tests_table(run),
        numbers=numbers_tables(view),
        sections=SECTIONS,
        charts=charts,
        picture_of=lambda gate: _picture_of(view, charts, gate),
        css=Markup(page_style()),  # noqa: S704
        script=Markup(report_script()),  # noqa: S704
        plotly=Markup(plotly_js() if drawn_by_plotly else ""),  # noqa: S704
    )
    write_text(destination, page)


def page_template(name: str) -> jinja2.Template:
    """A template of our pages, which escape everything but our own files and JSON from `embed_json`.

    What Jinja compiles is kept in its own folder of temporary files: compiling takes longer than rendering a small
    report.

    Args:
        name: of its file in `assets`.
    """
    import jinja2
    from markupsafe import Markup

    try:
        kept = jinja2.FileSystemBytecodeCache()
    except (OSError, RuntimeError):
        # No folder that only this user can write.
        kept = None
    assets = resources.files("gguf_harness.report") / "assets"
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.DictLoader({file: (assets / file).read_text(encoding="utf-8") for file in (name, _PICTURE)}),
        bytecode_cache=kept,
    )
    environment.filters |= {
        "visible": visible,
        "lines": visible_lines,
        "size": format_bytes,
        "number": format_value,
        "shell": shlex.join,
        "embedded": lambda data: Markup(embed_json(data)),  # noqa: S704
        "for_its_view": _for_its_view,
    }
    return environment.get_template(name)


def _for_its_view(chart: Chart) -> dict[str, Any]:
    """What the page's script reads of a chart: its view, and the data of each of its panels."""
    panels = [
        {
            **({"opens": True} if figure.get("opens") else {}),
            "name": figure["name"],
            "meaning": figure["meaning"],
            "data": figure["data"] if "data" in figure else {key: figure[key] for key in _PLOTLY_KEYS if key in figure},
        }
        for figure in chart["figures"]
    ]
    return {"view": chart["view"], "panels": panels}


def _picture_of(view: RunView, charts: Mapping[str, list[Chart]], gate: Mapping[str, Any]) -> str | None:
    """Id of the chart that shows a gate's metric; else of the section of its suite."""
    title = view.title(gate["metric"])
    for of_section in charts.values():
        for chart in of_section:
            if any(figure["name"] == title for figure in chart["figures"]):
                return str(chart["id"])
    suite = str(gate.get("suite"))
    section = SECTION_OF_SUITE.get(suite, suite)
    return section if charts.get(section) else None


def _brief(columns: list[Metric]) -> set[str]:
    """Names of the metrics that are shown without asking for more columns: all, where none of those was measured."""
    brief = {metric.name for metric in columns if "brief" in metric.tables}
    return brief or {metric.name for metric in columns}


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of the table of models.

    Attributes:
        text: the value.
        error: its error, which stands smaller.
        value: what it is sorted by; None for no data, which is always last.
        space: widths of a digit to leave after the value, so that the points of a column are below each other.
    """

    text: str
    error: str = ""
    value: float | None = None
    space: float = 0.0


_POINT: Final = 0.5
"""Width of a decimal point in widths of a digit."""


def _column(view: RunView, group: Group, metric: Metric) -> tuple[dict[str, _Cell], int]:
    """The cells of a metric by model, and the width of the longest error in widths of a digit."""
    cells = {model.name: _cell(view, model.name, metric) for model in group.models}
    behind = {name: _behind_the_point(cell.text) for name, cell in cells.items()}
    most = max((behind[name] for name, cell in cells.items() if cell.value is not None), default=0.0)
    aligned = {
        name: cell if cell.value is None else replace(cell, space=most - behind[name]) for name, cell in cells.items()
    }
    # Its sign is wider than a digit, its blanks and its point are narrower: with the room before it, about as wide.
    return aligned, max(0, *(len(cell.error) for cell in cells.values()))


def _behind_the_point(text: str) -> float:
    """Widths of what stands behind the decimal point, the point included."""
    whole, point, rest = text.partition(".")
    unit = len(whole) - len(whole.rstrip(" %kMGBTs")) if not point else 0
    return len(rest) + _POINT if point else float(unit)


def _cell(view: RunView, model: str, metric: Metric) -> _Cell:
    row = view.row(model, metric.name)
    if row is None:
        # The reference is not compared with itself: nothing is missing.
        is_reference = any(other.is_reference and other.name == model for other in view.models)
        return _Cell("–" if is_reference else "no data")
    value, sign, error = format_metric(metric, row["value"], row["se"]).partition(" ± ")
    return _Cell(value, f"{sign}{error}{doubt_mark(row)}", row["value"])


def page_style() -> str:
    """CSS of a page of ours: that of its views, and of what stands around them."""
    page = resources.files("gguf_harness.report") / "assets" / "report.css"
    return f"{views_style()}\n{page.read_text(encoding='utf-8')}"


def embed_json(data: object) -> str:
    """JSON that is safe inside a script element, whatever strings it contains."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
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
