"""The page of a history in a real browser: lines with gaps, marks by shape and word, links, both themes, a phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gguf_harness.judge.history import read_history
from gguf_harness.report.history import write_history
from tests.history_runs import Measured, write_run_of
from tests.integration.report_pages import browser, page, see, serious, shown
from tests.unit.test_history_report import TEXT, commit, write_regression
from tests.unit.test_report import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "page"]

pytestmark = pytest.mark.browser

KL = "family-0-kld-mean"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a regression, whose first run has a report."""
    results = write_regression(tmp_path_factory.mktemp("results"))
    first, *_ = sorted((results / "runs").iterdir())
    (first / "report.html").write_text("<h1>The report</h1>")
    write_history(read_history(results, metrics=["kld_mean", "ppl"]), results / "history.html")
    return results / "history.html"


def test_lines_break_at_gaps_and_marks_have_a_shape_and_a_word(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    assert page.inner_text("h1").startswith("Q4_K_M got worse at 19fe2aa: KL mean")
    see(page, KL)
    drawn = shown(page, KL)
    assert [(line["name"], line["runs"]) for line in drawn["lines"]] == [
        ("Q8_0", [0, 1]),
        ("Q8_0", [3, 4]),
        ("Q4_K_M", [0, 1, 2, 3, 4]),
    ]
    assert drawn["marks"] == [{"name": "Q4_K_M", "run": 3, "word": "worse"}]
    words = page.locator(f"#{KL} .view svg text").all_text_contents()
    assert {"worse", "limit: at most 0.1"} <= set(words)
    labels = " ".join(words)
    assert "19fe2aa" in labels
    assert "2026-11-04" in labels
    see(page, "family-0-ppl")
    assert shown(page, "family-0-ppl")["marks"] == []


def test_a_colour_is_that_of_a_type(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    see(page, KL)
    colours = {line["name"]: line["color"] for line in shown(page, KL)["lines"]}
    assert len(set(colours.values())) == 2
    see(page, "family-0-ppl")
    assert shown(page, "family-0-ppl")["lines"][0]["color"] == "var(--reference)"


def test_a_point_leads_to_the_report_of_its_run(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    see(page, KL)
    links = page.locator(f"#{KL} .view a")
    assert links.count() == 2
    assert "Report: Q4_K_M at 3f2a91c" in (links.last.get_attribute("aria-label") or "")
    links.last.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The report")


def test_all_values_are_a_table_that_sorts(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    page.get_by_text("values, with the errors of their changes").click()
    rows = page.locator("details.rows tbody tr:visible")
    assert rows.count() == 9 + 5
    page.fill("details.rows input", "worse")
    assert rows.count() == 1
    assert "paired over 16 windows" in rows.first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everybody_can_read_it(page: Page, written: Path, scheme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(written.as_uri())
    for chart in (KL, "family-0-ppl"):
        see(page, chart)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    frame = page.locator(f"#{KL} .view").bounding_box()
    assert frame is not None
    for text in page.locator(f"#{KL} .view svg text").all():
        box = text.bounding_box()
        assert box is None or (
            frame["x"] - 1 <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
        )
    assert serious(page) == []


def test_paper_shows_it_whole(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.locator(f"#{KL} .view svg").count() > 0


def test_without_scripts_there_are_sentences_and_numbers(browser: Browser, written: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written.as_uri())
    assert page.locator(".view:visible").count() == 0
    table = page.locator(f"#{KL} table")
    assert "(worse)" in table.inner_text()
    assert "not measured" in table.inner_text()
    assert page.get_by_role("link", name="20260000-120000-000000").count() == 1
    context.close()


def test_several_families_and_hostile_names(page: Page, tmp_path: Path) -> None:
    for number in range(2):
        candidate = Measured(TEXT + number, quantization=HOSTILE, name=HOSTILE, sha256=f"{number:064x}")
        write_run_of(tmp_path, number, [candidate], commit=HOSTILE)
        write_run_of(tmp_path, 9 + number, [Measured(TEXT)], reference="e" * 64, commit=commit(number))
    write_history(read_history(tmp_path), tmp_path / "history.html")
    page.goto((tmp_path / "history.html").as_uri())
    assert "2 families" in page.inner_text("h1") or "got worse" in page.inner_text("h1")
    for number in range(2):
        see(page, f"family-{number}-kld-mean")
    assert page.locator("img").count() == 0
    assert serious(page) == []
