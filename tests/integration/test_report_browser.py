"""The report in a real browser: it draws, sorts, switches, asks nothing of the network, and runs no foreign code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gguf_harness.report.badge import render_badge
from gguf_harness.report.html import write_html
from tests.unit.test_embedding_charts import run_with_maps
from tests.unit.test_report import HOSTILE, STORED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose console errors and network requests fail the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    yield page
    page.close()
    assert problems == []


def _open(page: Page, tmp_path: Path, run: dict[str, Any], arrays: Path = STORED) -> None:
    write_html(run, arrays, tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("h1")


def _see(page: Page, chart: str) -> None:
    """Scroll to a chart, which draws it."""
    page.locator(f"[data-chart={chart}]").scroll_into_view_if_needed()
    page.wait_for_selector(f"[data-chart={chart}] svg.main-svg")


def _stored() -> dict[str, Any]:
    run: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return run


def test_the_report_draws_and_answers(page: Page, tmp_path: Path) -> None:
    _open(page, tmp_path, _stored())
    assert "Smallest candidate that passes every gate: smollm2-135m-Q4_K_M" in page.inner_text("h1")
    assert page.locator("[data-chart=files] svg.main-svg").count() == 0, "drawn before anyone looks"
    for chart in ("quality", "distribution", "speed", "memory", "files"):
        _see(page, chart)
        assert page.locator(f"[data-chart={chart}] svg.main-svg").count() > 0, chart
    assert page.locator("[data-chart=distribution] .scatterlayer .trace").count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_tables_sort_and_charts_switch(page: Page, tmp_path: Path) -> None:
    _open(page, tmp_path, _stored())
    head = page.locator("thead button", has_text="KL mean").first
    head.click()
    order = page.locator("table").first.locator("tbody th").all_inner_texts()
    assert order[0] == "smollm2-135m-Q8_0"
    assert order[-2:] == ["smollm2-135m-IQ3_XS", "smollm2-135m-F16"]
    head.press("Enter")
    assert page.locator("table").first.locator("tbody th").first.inner_text() == "smollm2-135m-IQ3_XS"
    _see(page, "quality")
    page.locator(".tabs[data-for=quality] button", has_text="PPL ratio").click()
    assert "paired error" in page.inner_text("[data-meaning=quality]")
    page.wait_for_function("document.querySelector('[data-chart=quality] .ytitle')?.textContent.includes('PPL ratio')")


def test_estimates_filter(page: Page, tmp_path: Path) -> None:
    _open(page, tmp_path, _stored())
    page.get_by_text("estimates, with both standard errors").click()
    page.fill("[data-filter=estimates]", "Q8_0 kld_mean")
    shown = page.locator("[data-filtered=estimates] tbody tr:visible")
    assert shown.count() == 1
    assert "0.004095" in shown.first.inner_text()


def test_estimates_sort_by_layer_and_head(page: Page, tmp_path: Path) -> None:
    run = _stored()
    row = run["estimates"][0]
    run["estimates"] += [
        row | {"metric": "m", "layer": layer, "head": head} for layer, head in ((10, None), (2, 11), (2, 3), (2, None))
    ]
    _open(page, tmp_path, run)
    page.get_by_text("estimates, with both standard errors").click()
    page.locator("[data-filtered=estimates] thead button", has_text="layer, head").click()
    shown = page.locator("[data-filtered=estimates] tbody tr td:nth-child(4)").all_inner_texts()
    assert shown[:5] == ["layer 2", "layer 2, head 3", "layer 2, head 11", "layer 10", ""]


def test_hostile_names_stay_text(page: Page, tmp_path: Path) -> None:
    run = json.loads(json.dumps(_stored()).replace("smollm2-135m-Q4_K_M", json.dumps(HOSTILE)[1:-1]))
    run["tests"][0] |= {"outcome": "failed", "message": HOSTILE}
    _open(page, tmp_path, run)
    _see(page, "quality")
    page.wait_for_timeout(300)
    assert "</script><img src=x" in page.inner_text("table")
    assert page.locator("img").count() == 0


def test_the_badge_keeps_its_text_in_its_boxes(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "badge.svg"
    file.write_text(render_badge(_stored()), encoding="utf-8")
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


def test_a_map_in_three_dimensions_keeps_its_view(page: Page, tmp_path: Path) -> None:
    run = run_with_maps(tmp_path)
    write_html(run, tmp_path, tmp_path / "report.html")
    page.goto((tmp_path / "report.html").as_uri())
    chart = page.locator("[data-chart=embedding-map]")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").first.wait_for()
    eye = "JSON.stringify(document.querySelector('[data-chart=embedding-map]')._fullLayout.scene.camera.eye)"
    before = page.evaluate(eye)
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function(f"{eye} !== {json.dumps(before)}")
    turned = json.loads(page.evaluate(eye))
    page.locator(".tabs[data-for=embedding-map] button", has_text="Q8_0").click()
    page.wait_for_function(
        "document.querySelector('[data-chart=embedding-map]').data.some(trace => trace.name === 'from the reference')"
    )
    assert json.loads(page.evaluate(eye)) == pytest.approx(turned, rel=1e-6)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_can_read_it(page: Page, tmp_path: Path, scheme: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    _open(page, tmp_path, _stored())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness > 600) == (scheme == "light")
