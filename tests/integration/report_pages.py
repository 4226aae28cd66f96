"""A real browser and pages of reports, for tests of what people look at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gguf_harness.report.html import write_html
from tests.unit.test_report import STORED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "open_report", "page", "see", "serious", "shown", "stored_run"]

OpenReport = Callable[..., None]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
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


@pytest.fixture
def open_report(page: Page, tmp_path: Path) -> OpenReport:
    """`open_report(run, folder)`: write the report of a run, whose arrays are in a folder, and open it."""

    def open_it(run: dict[str, Any], arrays: Path = STORED) -> None:
        write_html(run, arrays, tmp_path / "report.html")
        page.goto((tmp_path / "report.html").as_uri())

    return open_it


def see(page: Page, chart: str) -> None:
    """Open the section of a chart and scroll to it, which draws it."""
    page.evaluate(
        """id => {
            const chart = document.getElementById(id);
            for (let at = chart; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
            chart.scrollIntoView();
        }""",
        chart,
    )
    page.wait_for_function("id => document.querySelector(`#${id} .view`).shown !== undefined", arg=chart)


def shown(page: Page, chart: str) -> Any:
    """The numbers that a chart drew, as its view says."""
    return page.evaluate("id => document.querySelector(`#${id} .view`).shown", chart)


def stored_run() -> dict[str, Any]:
    """A real run of SmolLM2's quantizations."""
    run: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return run


def serious(page: Page) -> list[str]:
    """Serious and critical violations of accessibility rules."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in {"serious", "critical"}]
