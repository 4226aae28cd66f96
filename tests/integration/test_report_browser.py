"""The report in a real browser: it draws, sorts, copies, prints, asks nothing of the network, runs no foreign code."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gguf_harness.report.badge import render_badge
from gguf_harness.report.charts.base import make_chart
from gguf_harness.report.html import write_html
from tests.integration.report_pages import OpenReport, browser, open_report, page, see, shown, stored_run
from tests.unit.test_report import HOSTILE, STORED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "open_report", "page"]

pytestmark = pytest.mark.browser

CHARTS = ("quality", "distribution", "speed", "memory", "files")


def test_the_report_draws_and_answers(page: Page, open_report: OpenReport) -> None:
    run = stored_run()
    open_report(run)
    assert "Smallest candidate that passes every gate: smollm2-135m-Q4_K_M" in page.inner_text("h1")
    assert page.locator("#files .view").inner_html() == "", "drawn before anyone looks"
    for chart in CHARTS:
        see(page, chart)
        assert page.locator(f"#{chart} .view svg").count() > 0, chart
    assert len(shown(page, "distribution")["lines"]) == 5
    stored = {row["model"]: row["value"] for row in run["estimates"] if row["metric"] == "kld_mean"}
    assert {point["name"]: point["value"] for point in shown(page, "quality")["points"]} == stored
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_tables_sort_and_charts_switch(page: Page, open_report: OpenReport) -> None:
    open_report(stored_run())
    names = page.locator("#models tbody th")
    head = page.locator("thead button", has_text="KL mean").first
    head.click()
    order = names.all_inner_texts()
    assert order[0] == "smollm2-135m-Q8_0"
    assert order[-2:] == ["smollm2-135m-IQ3_XS", "smollm2-135m-F16"]
    head.press("Enter")
    assert names.first.inner_text() == "smollm2-135m-IQ3_XS"
    see(page, "quality")
    page.locator("#quality .tabs button", has_text="PPL ratio").click()
    assert "paired error" in page.inner_text("#quality .meaning")
    assert "PPL ratio" in (page.locator("#quality .view").text_content() or "")
    assert page.locator("#quality .tabs [aria-pressed=true]").all_inner_texts() == ["PPL ratio"]


def test_a_column_is_there_when_asked_for_and_tables_are_copied(page: Page, open_report: OpenReport) -> None:
    run = stored_run()
    open_report(run)
    page.evaluate("navigator.clipboard.writeText = async (words) => { window.copied = words; }")
    page.get_by_role("button", name="Copy as markdown").click()
    lines = page.evaluate("window.copied").splitlines()
    assert len(lines) == 2 + len(run["models"])
    assert "| KL mean |" in lines[0]
    assert "KL 99th" not in lines[0]
    more = page.get_by_role("button", name="columns")
    more.press("Enter")
    assert more.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Copy as CSV").click()
    rows = list(csv.DictReader(io.StringIO(page.evaluate("window.copied"))))
    stored = {row["model"]: row["value"] for row in run["estimates"] if row["metric"] == "kld_p99"}
    assert {row["model"]: float(row["KL 99th"]) for row in rows if row["model"] in stored} == stored


def test_estimates_are_filtered_and_sorted(page: Page, open_report: OpenReport) -> None:
    run = stored_run()
    row = run["estimates"][0]
    run["estimates"] += [
        row | {"metric": "m", "layer": layer, "head": head} for layer, head in ((10, None), (2, 11), (2, 3), (2, None))
    ]
    open_report(run)
    assert page.locator("[data-filtered=estimates] tr").count() == 0
    page.get_by_text("estimates, with both standard errors").click()
    rows = page.locator("[data-filtered=estimates] tbody tr:visible")
    page.fill("[data-filtered=estimates] input", "Q8_0 kld_mean")
    assert rows.count() == 1
    assert "0.004095" in rows.first.inner_text()
    page.fill("[data-filtered=estimates] input", "")
    page.locator("[data-filtered=estimates] thead button", has_text="layer, head").click()
    cells = page.locator("[data-filtered=estimates] tbody tr td:nth-child(4)").all_inner_texts()
    assert cells[:5] == ["layer 2", "layer 2, head 3", "layer 2, head 11", "layer 10", ""]


def test_hostile_names_stay_text(page: Page, open_report: OpenReport) -> None:
    run = json.loads(json.dumps(stored_run()).replace("smollm2-135m-Q4_K_M", json.dumps(HOSTILE)[1:-1]))
    run["tests"][0] |= {"outcome": "failed", "message": HOSTILE}
    open_report(run)
    for chart in CHARTS:
        see(page, chart)
    page.locator("details.rows").first.locator("summary").click()
    assert "</script><img src=x" in page.inner_text("#models")
    assert "</script><img src=x" in (page.locator("#distribution .view").text_content() or "")
    assert page.locator("img").count() == 0


def test_an_anchor_opens_what_it_leads_to(page: Page, open_report: OpenReport) -> None:
    open_report(stored_run())
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<details><summary>s</summary><p id=inside>x</p></details>')"
    )
    assert not page.locator("#inside").is_visible()
    page.evaluate("location.hash = '#inside'")
    page.locator("#inside").wait_for(state="visible")


def test_paper_shows_every_chart_whole(page: Page, open_report: OpenReport) -> None:
    open_report(stored_run())
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    for chart in CHARTS:
        assert page.locator(f"#{chart} .view svg").count() > 0, chart
    page.emulate_media(media="print")
    assert page.evaluate(
        "[...document.querySelectorAll('.view svg')].every(s => s.getBoundingClientRect().width <= innerWidth)"
    )


def test_without_scripts_there_are_numbers(browser: Browser, tmp_path: Path) -> None:
    write_html(stored_run(), STORED, tmp_path / "report.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    table = page.locator("#quality noscript table, #quality table")
    assert table.count() == 1
    assert "0.004095 ± 0.000097" in table.inner_text()
    assert page.locator(".view:visible").count() == 0
    context.close()


def test_a_picture_is_saved(page: Page, open_report: OpenReport) -> None:
    open_report(stored_run())
    see(page, "quality")
    with page.expect_download() as waiting:
        page.locator("#quality [data-png]").click()
    assert waiting.value.suggested_filename == "quality.png"
    assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_can_read_it(page: Page, open_report: OpenReport, scheme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    open_report(stored_run())
    for chart in CHARTS:
        see(page, chart)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness > 600) == (scheme == "light")


def test_the_badge_keeps_its_text_in_its_boxes(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "badge.svg"
    file.write_text(render_badge(stored_run()), encoding="utf-8")
    page.goto(file.as_uri())
    found = page.evaluate(
        """[...document.querySelectorAll('text')].map(text => {
            const told = +text.getAttribute('textLength'), right = text.getBBox().x + text.getBBox().width;
            text.removeAttribute('textLength');
            return [told, text.getComputedTextLength(), right];
        })"""
    )
    assert page.evaluate("document.title") == "gguf-harness: 3 of 5 pass"
    width = page.evaluate("document.documentElement.width.baseVal.value")
    # Whatever the font, its letters are hardly stretched.
    assert all(0.8 < told / natural < 1.25 for told, natural, _ in found)
    assert found[0][2] < found[1][2] < width


def test_each_verdict_leads_to_its_picture(page: Page, open_report: OpenReport) -> None:
    open_report(stored_run())
    links = page.locator(".card a")
    targets = {link.get_attribute("href") for link in links.all()}
    assert "#quality" in targets
    assert all(target and page.locator(target).count() == 1 for target in targets)


def test_charts_of_plugins_are_drawn_with_plotly(page: Page, tmp_path: Path) -> None:
    """Only then the page has Plotly in it."""
    run = stored_run() | {"arrays": []}
    figure = {"name": "f", "meaning": "Of <b>each</b> file.", "traces": [{"type": "bar", "x": [HOSTILE], "y": [3]}]}
    chart = make_chart("toys", "Toys", "m", [figure | {"layout": {}}], "s")
    (tmp_path / "charts.json").write_text(json.dumps({"charts": [chart]}), encoding="utf-8")
    write_html(run, tmp_path, tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    see(page, "plugin-toys")
    page.wait_for_selector("#plugin-toys svg.main-svg")
    assert shown(page, "plugin-toys")["traces"][0]["y"] == [3]
    assert page.locator("img").count() == 0
