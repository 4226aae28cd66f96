"""Pictures of single steps in a real browser: what they drew is what llama.cpp and the stored arrays say."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import pytest

from tests.integration.report_pages import OpenReport, browser, open_report, page, see, shown
from tests.unit.test_report import HOSTILE
from tests.unit.test_step_charts import (
    CANDIDATES,
    VOCABULARY,
    make_logits,
    piece_of,
    run_with_next_tokens,
    run_with_steps,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["browser", "open_report", "page"]

pytestmark = pytest.mark.browser

NEXT, STEPS = "#next-tokens", "#qkv-steps"


def _sampled_by_llama_cpp(logits: Any, top_k: int, top_p: float, min_p: float, temperature: float) -> dict[int, float]:
    """Probabilities of the tokens that llama.cpp's own samplers leave, in the order of its default chain."""
    data = (llama_cpp.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token] = llama_cpp.llama_token_data(token, logit, 0.0)
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in (
        llama_cpp.llama_sampler_init_top_k(top_k),
        llama_cpp.llama_sampler_init_top_p(top_p, 1),
        llama_cpp.llama_sampler_init_min_p(min_p, 1),
        llama_cpp.llama_sampler_init_temp(temperature),
        llama_cpp.llama_sampler_init_dist(0),
    ):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
    left = {int(array.data[at].id): float(array.data[at].p) for at in range(array.size) if array.data[at].p > 0}
    llama_cpp.llama_sampler_free(chain)
    return left


def _set(page: Page, **values: float) -> None:
    for name, value in values.items():
        page.locator(f"{NEXT} input[aria-label='{name.replace('_', '-')}']").evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
        )


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "temperature"),
    [(0, 1.0, 0.0, 1.0), (40, 0.95, 0.05, 0.8), (5, 1.0, 0.0, 2.0), (0, 0.6, 0.0, 0.5), (0, 1.0, 0.1, 1.3),
     (0, 1.0, 0.0, 0.0)],
)  # fmt: skip
def test_settings_do_what_llama_cpp_does(
    page: Page, open_report: OpenReport, tmp_path: Path, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    open_report(run_with_next_tokens(tmp_path), tmp_path)
    see(page, "next-tokens")
    _set(page, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    drew = shown(page, "next-tokens")
    assert drew["candidate"] == CANDIDATES[-1]
    assert drew["certain"] == [True, True]
    for side, model in enumerate((0, 2)):
        expected = _sampled_by_llama_cpp(make_logits(model)[0].tolist(), top_k, top_p, min_p, temperature)
        shares = dict(zip(drew["pieces"], drew["shares"][side], strict=True))
        tail = len(expected) == VOCABULARY
        assert drew["tail"][side] == tail
        assert sum(drew["kept"][side]) == (len(shares) if tail else len(expected))
        named = {piece_of(token).decode(): share for token, share in expected.items() if token > 2}
        compared = [piece for piece in named if piece in shares]
        assert len(compared) >= min(len(named), 60)
        assert [shares[piece] for piece in compared] == pytest.approx([named[p] for p in compared], rel=1e-3, abs=1e-7)
        assert sum(drew["shares"][side]) + drew["rest"][side] == pytest.approx(1)


def test_choices_survive_another_prompt_and_theme(page: Page, open_report: OpenReport, tmp_path: Path) -> None:
    open_report(run_with_next_tokens(tmp_path), tmp_path)
    see(page, "next-tokens")
    page.locator(f"{NEXT} select").select_option(label="Q8_0")
    page.locator(f"{NEXT} button", has_text="defaults").press("Enter")
    page.locator(f"{NEXT} .tabs button").nth(1).click()
    page.emulate_media(color_scheme="dark")
    drew = shown(page, "next-tokens")
    assert drew["candidate"] == CANDIDATES[0]
    assert drew["settings"] == {"topK": 40, "topP": 0.95, "minP": 0.05, "temperature": 0.8}
    assert page.locator(f"{NEXT} output").all_inner_texts() == ["40", "0.95", "0.05", "0.8"]
    assert HOSTILE.split("\x1b", 1)[0] in page.inner_text(f"{NEXT} .meaning")
    page.locator(f"{NEXT} button", has_text="Logarithmic").click()
    assert page.locator(f"{NEXT} .view svg").count() > 1
    assert page.locator("img").count() == 0


def test_a_cut_beyond_what_is_kept_is_told(page: Page, open_report: OpenReport, tmp_path: Path) -> None:
    open_report(run_with_next_tokens(tmp_path), tmp_path)
    see(page, "next-tokens")
    told = "falls among tokens that are not listed one by one"
    # The 64 likeliest tokens have 98.5 % of the probability in the reference, and 97.7 % in the candidate.
    for top_p, certain in ((0.97, [True, True]), (0.98, [True, False]), (0.99, [False, False])):
        _set(page, top_p=top_p)
        assert shown(page, "next-tokens")["certain"] == certain
        assert page.inner_text(f"{NEXT} .view").count(told) == certain.count(False)


def test_next_tokens_on_a_phone(page: Page, open_report: OpenReport, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    open_report(run_with_next_tokens(tmp_path), tmp_path)
    see(page, "next-tokens")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(f"document.querySelector('{NEXT} .view').scrollWidth") <= 390


def test_a_head_is_shown_step_by_step(page: Page, open_report: OpenReport, tmp_path: Path) -> None:
    open_report(run_with_steps(tmp_path), tmp_path)
    see(page, "qkv-steps")
    page.locator(f"{STEPS} select").nth(1).select_option("5")
    drew = shown(page, "qkv-steps")
    assert (drew["head"], drew["query"], drew["models"][1]) == ("2.3", 5, CANDIDATES[-1])
    products, scaled, weights, parts = drew["drawn"]
    assert products == drew["products"]
    assert weights == drew["weights"]
    for side in (0, 1):
        assert scaled[side] == pytest.approx([0.25 * product for product in products[side]])
        assert sum(weights[side]) == pytest.approx(1, abs=2e-3)
        # What is drawn is what these numbers give: the softmax of the column before.
        exponentials = [math.exp(score) for score in scaled[side]]
        assert weights[side] == pytest.approx([each / sum(exponentials) for each in exponentials], abs=2e-3)
        assert all(part >= weight * 0.5 for part, weight in zip(parts[side], weights[side], strict=True))
    # Bars of all columns are as long as their numbers say, those of both models on one scale.
    for column, lengths in zip(drew["drawn"], drew["lengths"], strict=True):
        values = [*column[0], *column[1]]
        per_unit = [length / value for length, value in zip(lengths, values, strict=True) if abs(value) > 1e-3]
        assert max(per_unit) == pytest.approx(min(per_unit), rel=1e-6)
    said = page.inner_text(f"{STEPS} .view")
    assert "the 4 tokens after token 5 are in the future" in said
    assert "A <b>fact</b>." in said
    page.locator(f"{STEPS} select").nth(1).select_option("0")
    hostile = HOSTILE.split("\x1b", 1)[0].replace(" ", "␣")
    assert hostile in page.inner_text(f"{STEPS} [aria-live]")
    assert page.locator("img").count() == 0


def test_keys_answer_to_the_keyboard_and_the_pointer(page: Page, open_report: OpenReport, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    open_report(run_with_steps(tmp_path), tmp_path)
    see(page, "qkv-steps")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(f"{STEPS} select").nth(1).select_option("8")
    said = page.locator(f"{STEPS} [aria-live]")
    frame = page.locator(f"{STEPS} [tabindex='0']")
    for _ in range(9):
        frame.press("ArrowUp")
    assert "looks at token 0 " in said.inner_text()
    frame.press("ArrowDown")
    frame.press("ArrowDown")
    assert "Token 8 “␣8” looks at token 2 “␣2”" in said.inner_text()
    assert said.inner_text().count("q · k = ") == 2
    box = frame.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 38 + 27 * 4.5)
    assert "looks at token 4 " in said.inner_text()
