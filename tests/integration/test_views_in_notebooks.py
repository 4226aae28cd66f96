"""Every view there is, drawn where notebooks draw: as a widget, and on a page that was saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gguf_harness as gh
from gguf_harness.judge.history import read_history
from gguf_harness.metrics.registry import METRICS
from gguf_harness.report.history.charts import metric_chart
from tests.integration.notebook_host import FIRST, open_notebook, open_widget
from tests.integration.report_pages import browser, serious
from tests.large_run import large_run
from tests.unit.test_embedding_charts import run_with_maps
from tests.unit.test_history_report import write_regression
from tests.unit.test_report import STORED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "open_notebook"]

pytestmark = [pytest.mark.browser, pytest.mark.model]

PROMPT = "Return the number of items in the list. Return the number"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, gh.Picture]:
    """A picture of each view: of stored runs, and of what models answer."""
    found: dict[str, gh.Picture] = {}
    for make in (large_run, run_with_maps):
        folder = tmp_path_factory.mktemp("run")
        content: dict[str, Any] = make(folder)
        (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
        found |= {each.view: each for each in gh.report_pictures(gh.load_run(folder)).values()}
    found |= {each.view: each for each in gh.report_pictures(gh.load_run(STORED)).values()}
    (family,) = read_history(write_regression(tmp_path_factory.mktemp("history")))
    chart = metric_chart(family, METRICS["kld_mean"], "kl", [None] * len(family.moments))
    (panel,) = chart["figures"]
    found["history"] = gh.Picture(chart["view"], panel["data"], chart["title"], panel["meaning"])
    with gh.open("tiny", threads=2, gpu=-1) as model:
        compared = gh.compare(model, model, PROMPT, off=gh.off(heads=[(4, 4)]))
        for each in (compared.plot(), compared.steps(4, 4), compared.next_tokens(), model.structure().plot()):
            found[each.view] = each
    return found


def _views() -> set[str]:
    """Names of all views, but the one for Plotly's figures, which only plugins' charts have."""
    source = Path(gh.__file__).parent / "views" / "src" / "views.js"
    listed = re.search(r"VIEWS = \{(.*)\}", source.read_text(encoding="utf-8"))
    assert listed is not None
    return {name.strip() for name in listed[1].split(",")} - {"figure"}


def test_all_views_are_tried(pictures: dict[str, gh.Picture]) -> None:
    assert set(pictures) == _views()


@pytest.mark.parametrize("view", sorted(_views()))
def test_a_widget_draws_it(view: str, pictures: dict[str, gh.Picture], open_notebook: Page, tmp_path: Path) -> None:
    open_widget(open_notebook, pictures[view], tmp_path, light=True)
    assert open_notebook.evaluate(f"Object.keys({FIRST}).length") > 0
    box = open_notebook.locator(".view").first.bounding_box()
    assert box is not None
    assert box["height"] > 40


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_saved_page_draws_them_all_for_everybody(
    theme: Any, pictures: dict[str, gh.Picture], browser: Browser, tmp_path: Path
) -> None:
    problems: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=theme)
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: problems.append(asked.url) if not asked.url.startswith("file:") else None)
    page.goto(gh.side_by_side(*pictures.values()).save(tmp_path / "all.html").as_uri())
    for number, view in enumerate(pictures, start=1):
        page.locator(f"#picture-{number}").scroll_into_view_if_needed()
        page.wait_for_function(f"() => document.querySelector('#picture-{number} .view').shown !== undefined")
        assert page.locator(f"#picture-{number} .view").locator("svg, canvas, table, button").count() > 0, view
    assert serious(page) == []
    page.close()
    assert problems == []
