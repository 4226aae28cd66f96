"""Texts side by side and one window token by token in a real browser: what is drawn is what was stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_harness.store.arrays import load_arrays
from tests.integration.report_pages import OpenReport, browser, open_report, page, see, shown, stored_run
from tests.unit.test_report import HOSTILE
from tests.unit.test_text_charts import MODELS, TEXTS, Text, add_strips, make_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "open_report", "page"]

pytestmark = pytest.mark.browser

CELLS = "#texts [role=gridcell]"
TOKENS = "#token-strip .strip .token"


@pytest.fixture
def open_made(open_report: OpenReport, tmp_path: Path) -> OpenReport:
    """`open_made(texts, pieces)`: the report of a run with these texts, and a token strip of these tokens."""

    def open_it(texts: dict[str, tuple[Text, ...]], pieces: tuple[bytes, ...] = (b" one", b" two")) -> None:
        made = add_strips(make_run(texts), tmp_path, pieces)
        facts = stored_run()["models"][0]
        models = [facts | model for model in made["models"]]
        open_report(stored_run() | made | {"models": models, "gates": [], "tests": []}, tmp_path)

    return open_it


def test_texts_are_compared_where_a_cell_is_chosen(page: Page, open_made: OpenReport) -> None:
    open_made(TEXTS)
    see(page, "texts")
    assert shown(page, "texts")["cells"] == [["same", "1"], ["2", "0"], ["–", "✗"]]
    # As wide as this, candidates are below each other; the one that parts first is shown, where it parts last.
    assert page.locator(CELLS).all_inner_texts() == ["=", "2", "–", "1", "0", "✗"]
    assert shown(page, "texts")["rest"] == ["lazy dog.", "hazy day"]
    assert page.locator("#texts .sides pre").all_inner_texts() == ["the lazy dog.", "the hazy day"]
    assert page.locator("#texts mark").all_inner_texts() == ["lazy dog.", "hazy day"]
    underlined = "e => getComputedStyle(e).textDecorationLine"
    assert page.locator("#texts mark").first.evaluate(underlined) == "underline"
    assert "equal for 1 of 4 tokens. edit similarity 25 %, BLEU 12" in page.inner_text("#texts .pair [role=status]")

    page.locator(CELLS).nth(1).click()
    assert (shown(page, "texts")["candidate"], shown(page, "texts")["prompt"]) == (MODELS[1], "tea")
    assert page.locator("#texts mark").all_inner_texts() == ["b\\x1b", "c"]
    assert "no chat template" in page.inner_text("#texts .asked")
    # The keyboard: one stop, from which arrows lead on.
    assert page.locator(f"{CELLS}[tabindex='0']").count() == 1
    page.locator(f"{CELLS}[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    assert shown(page, "texts")["prompt"] == "tea"
    page.keyboard.press("Enter")
    assert shown(page, "texts")["prompt"] == "fox"
    assert page.locator("#texts mark").count() == 0
    page.locator(CELLS).nth(5).click()
    problems = page.locator("#texts .sides .warning").all_inner_texts()
    assert problems == [f"Could not be generated: {model}: no room" for model in (MODELS[0], MODELS[2])]


def test_texts_part_at_a_whole_character(page: Page, open_made: OpenReport) -> None:
    pairs = [
        ("a 😀", "a 😃", ["😀", "😃"]),
        ("a b", "a b c", ["", " c"]),
        ("a\nb", "a b", ["\nb", " b"]),
        ("", "x", ["", "x"]),
    ]
    open_made({f"p{at}": ((one, 3, None), (one, 3, 3), (other, 3, 1)) for at, (one, other, _) in enumerate(pairs)})
    see(page, "texts")
    for at, (one, _, rest) in enumerate(pairs):
        page.locator(CELLS).nth(len(pairs) + at).click()
        assert shown(page, "texts")["rest"] == rest
        texts = page.locator("#texts .sides pre").all_text_contents()
        assert [text.endswith("(ends here)") for text in texts] == [not each for each in rest]
        # An end of a line that differs can be seen.
        assert ("⏎" in texts[0]) == ("\n" in one)


def test_many_texts_stay_light(page: Page, open_made: OpenReport) -> None:
    """The page has the grid and one pair, whatever the number of texts."""
    long = "word " * 400
    open_made({f"p{number}": ((f"{number} {long}", 400, None), (long, 400, 0), (long, 400, 0)) for number in range(60)})
    see(page, "texts")
    assert page.locator(CELLS).count() == 120
    assert page.locator("#texts .view *").count() < 600
    assert len(page.inner_text("#texts .view")) < 3 * len(long)
    # More prompts than there is room for: they are below each other, and scroll.
    assert page.locator("#texts tbody th").all_inner_texts()[:2] == ["p0", "p1"]
    assert page.locator("#texts .cells-room").evaluate("e => e.scrollHeight > e.clientHeight")


def test_texts_and_tokens_are_text(page: Page, open_made: OpenReport) -> None:
    open_made({HOSTILE: ((HOSTILE, 3, None), (HOSTILE, 3, 3), (f"{HOSTILE}{HOSTILE}", 6, 3))}, (HOSTILE.encode(), b" "))
    see(page, "texts")
    words = HOSTILE.replace("\x1b", "\\x1b")
    assert page.inner_text("#texts .asked strong") == words
    assert page.locator("#texts .sides mark").all_inner_texts() == [words]
    see(page, "token-strip")
    assert page.locator(TOKENS).all_inner_texts() == [words, "·"]
    assert page.locator("img").count() == 0


def test_tokens_have_the_colours_of_the_stored_numbers(page: Page, open_made: OpenReport, tmp_path: Path) -> None:
    open_made(TEXTS, (b" the", b"\xe4", b"\n\n", b" ", b"dog"))
    see(page, "token-strip")
    drawn = shown(page, "token-strip")
    one, other = (load_arrays(tmp_path / "arrays" / f"{model}.npz") for model in MODELS[1:])
    assert drawn["values"] == pytest.approx(other["delta_p"].tolist(), rel=1e-4)
    assert drawn["candidate"] == MODELS[2]
    assert drawn["largest"][0] == 1
    listed = page.locator("#token-strip .tools .num").first.inner_text()
    assert listed == f"{100 * other['delta_p'][1]:.1f}"
    assert page.locator(TOKENS).all_inner_texts() == [" the", "\\xe4", "⏎⏎", "·", "dog"]
    assert page.locator("#token-strip .strip br").count() == 2
    seen = page.locator(TOKENS).evaluate_all("tokens => tokens.map((token) => getComputedStyle(token).backgroundColor)")
    assert seen == drawn["fills"]
    assert page.locator(f"{TOKENS}.other").all_inner_texts() == ["\\xe4", "·"]

    # One scale for all candidates, and another for another value.
    page.get_by_role("button", name="Q8_0", exact=True).click()
    assert shown(page, "token-strip")["domain"] == drawn["domain"]
    reach = np.quantile(np.abs([*one["delta_p"], *other["delta_p"]]), 0.99)
    assert drawn["domain"] == pytest.approx([-reach, reach], rel=0.01)
    page.get_by_role("button", name="KL", exact=True).click()
    now = shown(page, "token-strip")
    assert (now["candidate"], now["domain"][0]) == (MODELS[1], 0)
    assert now["values"] == pytest.approx(one["kld"].tolist(), rel=1e-4)


def test_a_token_says_its_numbers_to_pointer_and_keyboard(page: Page, open_made: OpenReport) -> None:
    open_made(TEXTS, (b" the", b"\xe4", b" dog"))
    see(page, "token-strip")
    tip = page.locator("#token-strip .tip")
    assert not tip.is_visible()
    page.locator(TOKENS).nth(1).hover()
    assert "probability: reference 35 %, Q2_K 0.6 %" in tip.inner_text()
    assert 'likeliest: reference "\\xe4", Q2_K "top"' in tip.inner_text()
    page.locator(TOKENS).first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith('" dog"')
    assert 'likeliest for both: " dog"' in tip.inner_text()
    page.locator("#token-strip .tools button").first.click()
    assert tip.inner_text().startswith('"\\xe4"')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_is_not_wider(page: Page, open_made: OpenReport, scheme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    open_made({"a prompt with a long name": TEXTS["fox"]} | TEXTS, (b"long" * 40, b"\n", b" two"))
    see(page, "texts")
    # Prompts are below each other, and so are the two texts.
    assert page.locator(CELLS).all_inner_texts()[:2] == ["=", "1"]
    left = page.locator("#texts .sides > div").evaluate_all("sides => sides.map((side) => side.offsetLeft)")
    assert left[0] == left[1]
    see(page, "token-strip")
    page.locator(TOKENS).last.hover()
    box = page.locator("#token-strip .tip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
