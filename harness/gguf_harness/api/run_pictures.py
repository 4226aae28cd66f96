"""Pictures of a stored run: those of its report, one by one."""

from __future__ import annotations

from gguf_harness.api.pictures import Picture
from gguf_harness.store.frames import StoredRun

__all__ = ["report_pictures"]


def report_pictures(run: StoredRun) -> dict[str, Picture]:
    """The pictures of a run's report, by the ids that are its anchors.

        pictures = gguf_harness.report_pictures(gguf_harness.load_run("last"))
        pictures["quality"]

    Where a picture of the report has several panels, such as one for each model, its id is the panel that is seen
    first, and the others are `id/panel`. Charts that plugins draw with Plotly are left out.

    Raises:
        TypeError: not a stored run.
        StoreError: arrays of the run cannot be read.
    """
    if not isinstance(run, StoredRun):
        raise TypeError(f"run is what load_run returns, got {type(run).__name__}")
    from gguf_harness.report.charts import build_charts
    from gguf_harness.report.charts.base import PLOTLY
    from gguf_harness.report.data import RunView

    pictures: dict[str, Picture] = {}
    for chart in (chart for section in build_charts(RunView(run.raw), run.folder).values() for chart in section):
        if chart["view"] == PLOTLY:
            continue
        panels = chart["figures"]
        seen_first = next((panel for panel in panels if panel.get("opens")), panels[0])
        for panel in panels:
            name = chart["id"] if panel is seen_first else f"{chart['id']}/{panel['name']}"
            pictures[name] = Picture(chart["view"], panel["data"], chart["title"], panel["meaning"])
    return pictures
