"""The site of the documentation, built from a stored run and opened from disk in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from gguf_harness.metrics.registry import METRICS
from tests.integration.report_pages import browser
from tests.unit.test_report import STORED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent.parent
BUILD = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir")
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def build(site: Path, demo: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"GGUF_DOCS_DEMO": str(demo), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run((*BUILD, str(site)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, STORED / "run.json")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page in which any word on the console, and any request beyond the disk, fails the test."""
    scheme: Literal["light", "dark"] = request.param
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(10_000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda asked: problems.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
    )
    yield page
    dark = sum(json.loads(page.evaluate(BACKGROUND).replace("rgb(", "[").replace(")", "]"))) < 300
    assert dark == (scheme == "dark")
    page.close()
    assert problems == []


def test_the_site_opens_from_disk(page: Page, site: Path) -> None:
    page.goto((site / "index.html").as_uri())
    assert page.locator("h1").inner_text().startswith("gguf-harness")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("article").get_by_role("link", name="The next token").click()
    page.locator("article").get_by_role("link", name="softmax").click()
    page.wait_for_url(f"{(site / 'glossary.html').as_uri()}#softmax")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert set(METRICS) <= set(page.evaluate("[...document.querySelectorAll('h4')].map((head) => head.id)"))


@pytest.mark.parametrize("page", ["dark"], indirect=True)
def test_the_search_finds_a_metric(page: Page, site: Path) -> None:
    page.goto((site / "index.html").as_uri())
    page.locator("label.md-header__button[for=__search]").click()
    page.locator(".md-search__input").press_sequentially("head_copy_score")
    found = page.locator(".md-search-result__link[href*='glossary.html#head_copy_score']")
    found.wait_for()
    found.click()
    page.wait_for_function("() => location.hash === '#head_copy_score'")


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_the_demo_report_is_that_of_the_run(page: Page, site: Path) -> None:
    page.goto((site / "how-to-read.html").as_uri())
    page.locator("a[href='demo/report.html#quality']").click()
    page.wait_for_function("() => document.querySelector('#quality .view').shown !== undefined")
    run = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    assert run["models"][0]["name"] in page.inner_text("#models")


def test_a_missing_demo_run_is_told(tmp_path: Path) -> None:
    done = build(tmp_path / "site", tmp_path / "none.json")
    assert done.returncode != 0
    assert "There is no run" in done.stderr
    assert "`make docs` measures it" in done.stderr
    assert "Traceback" not in done.stderr
