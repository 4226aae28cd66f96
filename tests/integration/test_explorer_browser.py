"""The explorer's page in a real browser with real models: what it shows is what llama.cpp computed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.requests import Ablation
from tests.integration.explorer_pages import (
    STRONGEST_ROW,
    do,
    eventually,
    opened,
    press_switch,
    read_prompt,
    shown,
    visit,
)
from tests.integration.explorer_process import Explored, explored
from tests.integration.report_pages import browser, serious
from tests.integration.small_models import write_small_model
from tests.integration.test_explorer import INDUCTION, write_q2

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]

pytestmark = [pytest.mark.model, pytest.mark.browser]

ALL = ["tokens", "attention", "steps", "stream", "lens", "next", "off", "write", "structure"]
HOSTILE = "</script><script>window.caught = 1</script><img src=x onerror='window.caught = 1'> {{ 7 * 7 }} &lt;b&gt;"


@pytest.fixture(scope="module")
def alone() -> Iterator[Explored]:
    with explored("tiny") as explorer:
        yield explorer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explored]:
    q2 = write_q2(tmp_path_factory.mktemp("q2") / "tiny-Q2_K.gguf")
    with explored(str(q2), "--reference=tiny") as explorer:
        yield explorer


@pytest.fixture(scope="module")
def tiny() -> Iterator[LiveModel]:
    with LiveModel(load_info(expand("tiny")[0]), SessionSettings(threads=2), gpu=-1) as model:
        yield model


def _after_the_copy(tokens: list[int]) -> int:
    """Place after the earlier tokens that are the same as the last four."""
    end = tokens[-4:]
    return next(at for at in range(4, len(tokens)) if tokens[at - 4 : at] == end)


def test_a_typed_prompt_is_shown_in_all_sections(browser: Browser, alone: Explored, tiny: LiveModel) -> None:
    reading = tiny.read(INDUCTION)
    last = len(reading.tokens) - 1
    with opened(browser, alone) as tab:
        read_prompt(tab, INDUCTION)
        state = shown(tab)
        assert [token["id"] for token in state["tokens"]] == reading.tokens.tolist()
        assert (state["place"], state["sections"]) == (last, ALL)
        strip = visit(tab, "tokens") or tab.evaluate("document.querySelector('#tokens .chosen-strip').shown")
        np.testing.assert_allclose(np.array(strip["values"][1:], dtype=float), reading.nll()[1:], atol=1e-5)
        tab.evaluate("explorer.app.chooseHead([1, 1])")
        weights = visit(tab, "attention")
        assert (weights["layer"], weights["head"]) == (1, 1)
        np.testing.assert_allclose(weights["reference"] or weights["other"], reading.pattern[1][1], atol=0.005)
        steps = visit(tab, "steps")
        assert (steps["head"], steps["query"]) == ("1.1", last)
        np.testing.assert_allclose(steps["weights"][0], reading.pattern[1][1, last], atol=1e-5)
        norms = np.linalg.norm(reading.states["resid_post"][:, last], axis=1)
        drawn = next(line for line in visit(tab, "stream")["lines"] if line["group"] == "stream")
        np.testing.assert_allclose([point[1] for point in drawn["points"]], norms, rtol=1e-4)
        best = np.exp(tiny.lens(reading, last).max(axis=1))
        np.testing.assert_allclose([row[0] for row in visit(tab, "lens")["values"]], best, atol=1e-5)
        shares = visit(tab, "next")["shares"]
        assert len(shares) == 1, "a model alone has one row of bars"
        assert max(shares[0]) == pytest.approx(np.exp(reading.next_logprobs().max()), abs=1e-4)
        assert len(visit(tab, "structure")["tensors"]) == 57


def test_arrow_keys_choose_a_token_for_all_sections(browser: Browser, alone: Explored, tiny: LiveModel) -> None:
    reading = tiny.read(INDUCTION)
    with opened(browser, alone) as tab:
        read_prompt(tab, INDUCTION)
        visit(tab, "next")
        tab.locator("#tokens .token").last.focus()
        for key in ("ArrowLeft", "ArrowLeft", "Home", "ArrowRight", "ArrowRight", "ArrowRight"):
            tab.keyboard.press(key)
        assert shown(tab)["place"] == 3
        assert tab.locator("#tokens [aria-pressed=true]").count() == 1
        assert max(visit(tab, "next")["shares"][0]) == pytest.approx(np.exp(reading.next_logprobs(3).max()), abs=1e-4)
        assert visit(tab, "steps")["query"] == 3


def test_without_its_head_the_repetition_is_not_expected(browser: Browser, alone: Explored, tiny: LiveModel) -> None:
    with opened(browser, alone) as tab:
        read_prompt(tab, INDUCTION)
        visit(tab, "off")
        press_switch(tab, 1, 1)
        state = shown(tab)
        assert state["off"] == {"heads": [[1, 1]], "layers": []}
        token = state["prediction"]["id"]
        rows = [tiny.read(INDUCTION, off).next_logprobs() for off in (Ablation(), Ablation(((1, 1),)))]
        before, after = state["prediction"]["p"]
        np.testing.assert_allclose([before, after], np.exp([row[token] for row in rows]), rtol=1e-5)
        assert token == rows[0].argmax()
        assert before > 0.3
        assert after < before / 3
        kld = float((np.exp(rows[0]) * (rows[0] - rows[1])).sum())
        assert state["kld"][1] == pytest.approx(kld, rel=1e-3)
        told = tab.inner_text("#off .finding")
        assert told.startswith("With head 1.1 off, the probability of “ate” fell from")
        now = tiny.pieces([int(rows[1].argmax())])[0].decode()
        assert f"The likeliest token is now “{now.replace(' ', '␣')}”" in tab.inner_text("#off .effect")
        widths = tab.evaluate("[...document.querySelectorAll('#off .bar')].map((bar) => parseFloat(bar.style.width))")
        np.testing.assert_allclose(widths, [100 * before, 100 * after], atol=0.01)
        assert "“ate”" in state["line"], "what stays in sight says it, too"
        parts = visit(tab, "attention")["parts"]
        assert parts == ["reference", "candidate", "difference"], "changed is beside unchanged"
        tab.click("text=All on again")
        eventually(tab, "!explorer.shown.busy && explorer.shown.readings.length === 1")
        assert shown(tab)["off"] == {"heads": [], "layers": []}


def test_a_layer_that_cannot_be_skipped_says_so(browser: Browser, alone: Explored) -> None:
    with opened(browser, alone, expected=("400",)) as tab:
        visit(tab, "off")
        do(tab, "void explorer.app.switchOff({ heads: [], layers: [7] })")
        assert "no layer 7" in tab.inner_text("#off [role=alert]")
        assert shown(tab)["off"] == {"heads": [], "layers": []}
        tab.click("[aria-label='Switch off layer 2']")
        eventually(tab, "!explorer.shown.busy && explorer.shown.readings.length === 2")
        assert shown(tab)["readings"][1]["off"] == "layer 2 off"
        assert tab.locator("#off [role=alert]").count() == 0


@pytest.mark.parametrize("which", ["alone", "pair"])
def test_the_tour_goes_through_every_step(
    which: str, browser: Browser, alone: Explored, pair: Explored, tiny: LiveModel
) -> None:
    with opened(browser, alone if which == "alone" else pair) as tab:
        tab.click("text=Guided tour")
        titles, texts = [], []
        for _ in range(20):
            eventually(tab, "!document.querySelector('.tour').hasAttribute('aria-busy')")
            assert tab.evaluate("document.activeElement.id") == "tour-title"
            assert tab.locator(".toured").count() == 1
            titles.append(tab.inner_text("#tour-title"))
            texts.append(tab.inner_text(".tour-body").replace("\u00a0", " "))
            if titles[-1] == "The model writes":
                eventually(tab, "explorer.sections.write.writer.steps.length === 16")
            if tab.inner_text(".tour .primary") == "Done":
                break
            tab.click(".tour .primary")
        assert len(titles) == len(set(titles)) == 12
        assert tab.inner_text(".tour-count") == "Step 12 of 12"
        assert all(text and "undefined" not in text and "NaN" not in text for text in texts)
        reading = tiny.read(tab.evaluate("explorer.app.prompt"))
        if which == "alone":
            assert f"as {len(reading.tokens)} tokens" in texts[0]
            layer, head = map(int, texts[4].split()[1].split("."))
            key = _after_the_copy(reading.tokens.tolist())
            assert float(reading.pattern[layer][head, -1, key]) > 0.5, "it looks at what came next the first time"
            assert f"on token {key} " in texts[4]
            token = reading.next_logprobs().argmax()
            off = tiny.read(tab.evaluate("explorer.app.prompt"), Ablation(((layer, head),))).next_logprobs()[token]
            assert f"to {100 * np.exp(off):.0f} %" in texts[9]
            assert "gguf-harness explore QUANTIZED.gguf --reference tiny-F16" in texts[11]
        else:
            assert "Q2_K was made from F16" in texts[11]
            klds = [token["kld"][1] for token in shown(tab)["tokens"]]
            assert shown(tab)["place"] == int(np.argmax(klds)), "the token that quantization changed most is chosen"
        for title in (titles[10], titles[9]):
            tab.click(".tour button >> text=Back")
            eventually(tab, "!document.querySelector('.tour').hasAttribute('aria-busy')")
            assert tab.inner_text("#tour-title") == title
        assert len(shown(tab)["off"]["heads"]) == 1
        tab.keyboard.press("Escape")
        eventually(tab, "!explorer.shown.busy")
        assert tab.locator(".tour").is_hidden()
        assert tab.evaluate("document.activeElement.textContent") == "Guided tour"
        assert shown(tab)["off"] == {"heads": [], "layers": []}


def test_a_quantized_file_stands_beside_its_reference(browser: Browser, pair: Explored) -> None:
    with opened(browser, pair) as tab:
        state = shown(tab)
        assert [reading["label"] for reading in state["readings"]] == ["F16", "Q2_K"]
        assert tab.inner_text("h1") == "tiny-Q2_K beside tiny-F16"
        assert state["kld"][1] > 0.1
        tab.click("text=difference to the reference")
        strip = tab.evaluate("document.querySelector('#tokens .chosen-strip').shown")
        expected = [None, *(token["nll"][1] - token["nll"][0] for token in state["tokens"][1:])]
        assert strip["values"] == pytest.approx(expected)
        assert visit(tab, "attention")["parts"] == ["reference", "candidate", "difference"]
        assert len(visit(tab, "steps")["weights"]) == 2
        visit(tab, "lens")
        assert tab.locator("#lens .view").count() == 2
        visit(tab, "off")
        press_switch(tab, 2, 0)
        assert [reading["label"] for reading in shown(tab)["readings"]] == ["F16", "Q2_K", "Q2_K, head 2.0 off"]
        assert visit(tab, "attention")["candidate"] == "tiny-Q2_K, head 2.0 off"
        tab.click("text=what quantization changed")
        assert visit(tab, "attention")["candidate"] == "tiny-Q2_K"
        types = {tensor["type"] for tensor in visit(tab, "structure")["tensors"]}
        assert "Q2_K" in types
        tab.click("#structure >> text=F16")
        eventually(tab, "document.querySelector('#structure .view').shown.tensors.every(({ type }) => type[0] === 'F')")


def test_markup_in_a_prompt_stays_text(browser: Browser, alone: Explored) -> None:
    with opened(browser, alone) as tab:
        read_prompt(tab, HOSTILE)
        for section in ALL:
            visit(tab, section)
        assert "".join(token["text"] for token in shown(tab)["tokens"][1:]) == HOSTILE
        assert tab.evaluate("window.caught") is None
        assert tab.locator("img, b, body script").count() == tab.locator("#off b").count()
        # The written text holds the prompt, and goes back into it.
        tab.fill("#write input >> nth=0", "3")
        tab.click("#write button.primary")
        eventually(tab, "explorer.sections.write.writer.steps.length === 3 && !explorer.sections.write.writer.writing")
        tab.click("text=Read this text")
        eventually(tab, f"!explorer.shown.busy && explorer.app.prompt.length > {len(HOSTILE)}")
        assert tab.input_value("#prompt").startswith(HOSTILE)
        assert tab.evaluate("window.caught") is None


def test_two_tabs_do_not_disturb_each_other(browser: Browser, alone: Explored, tiny: LiveModel) -> None:
    prompts = ["one two three one two", INDUCTION]
    with opened(browser, alone) as first, opened(browser, alone) as second:
        for tab, prompt in zip((first, second), prompts, strict=True):
            read_prompt(tab, prompt)
        do(first, "void explorer.app.switchOff({ heads: [[2, 7]], layers: [] })")
        assert shown(second)["off"] == {"heads": [], "layers": []}
        for tab, prompt in zip((first, second), prompts, strict=True):
            expected = np.exp(tiny.read(prompt).next_logprobs().max())
            assert shown(tab)["prediction"]["p"][0] == pytest.approx(expected, rel=1e-5)
            assert visit(tab, "steps") is not None


def test_only_the_newest_prompt_counts(browser: Browser, alone: Explored, tiny: LiveModel) -> None:
    with opened(browser, alone) as tab:
        tab.evaluate("window.read = 0; explorer.app.on('reading', () => { window.read += 1; })")
        do(tab, "void ['a', 'a b', 'a b c', 'a b c d'].forEach((prompt) => explorer.app.read(prompt))")
        eventually(tab, "explorer.app.prompt === 'a b c d'")
        assert [token["id"] for token in shown(tab)["tokens"]] == tiny.read("a b c d").tokens.tolist()
        tab.wait_for_timeout(500)
        assert tab.evaluate("window.read") == 1, "older ones were given up"


def test_a_reading_that_is_gone_is_read_again(browser: Browser, alone: Explored) -> None:
    with opened(browser, alone, expected=("410",)) as tab:
        visit(tab, "next")
        tab.evaluate("explorer.app.reading.id = 'gone'; explorer.app.choosePlace(2)")
        eventually(tab, "explorer.app.reading.id !== 'gone'")
        assert visit(tab, "next") is not None
        assert (shown(tab)["place"], tab.locator(".problem").count()) == (2, 0)


def test_a_worker_that_dies_is_a_message_and_works_again(browser: Browser, alone: Explored) -> None:
    with opened(browser, alone, expected=("503",)) as tab:
        (worker,) = alone.workers
        # Stopped first, so that it dies in the middle of its answer.
        os.kill(worker.pid, signal.SIGSTOP)
        tab.fill("#prompt", "this was never read before")
        tab.click("text=Read >> nth=0")
        eventually(tab, "explorer.shown.busy")
        tab.wait_for_timeout(300)
        worker.kill()
        eventually(tab, "!!document.querySelector('form .problem')")
        told = tab.inner_text("form .problem")
        assert "died" in told
        assert "Trying again starts the model anew." in told
        tab.click("form .problem button")
        eventually(tab, "explorer.app.prompt === 'this was never read before' && !explorer.shown.busy")
        assert tab.locator(".problem").count() == 0


def test_text_streams_with_its_pictures_and_stops(browser: Browser, alone: Explored, tiny: LiveModel) -> None:
    with opened(browser, alone) as tab:
        read_prompt(tab, INDUCTION)
        visit(tab, "write")
        tab.fill("#write input >> nth=0", "400")
        tab.click("#write button.primary")
        eventually(tab, "explorer.sections.write.writer.steps.length > 4")
        given_up: list[str] = []
        tab.on("requestfailed", lambda request: given_up.append(request.url))
        tab.click("#write >> text=Stop")
        eventually(tab, "!explorer.sections.write.writer.writing")
        written = _written(tab)
        tab.wait_for_timeout(300)
        assert len(_written(tab)["ids"]) == len(written["ids"]) < 400
        assert "Stopped." in tab.inner_text("#write")
        assert [url.rpartition("/")[2] for url in given_up] == ["generate"], "the server is told"
        tokens, _ = tiny.tokenize(INDUCTION)
        steps = list(tiny.steps(tokens.tolist(), 4, attention=True))
        assert written["ids"][:4] == [step.token for step in steps]
        assert written["p"][:4] == pytest.approx([np.exp(step.logprob) for step in steps], rel=1e-4)
        # The third token, chosen by keyboard: what all heads looked at when it was written.
        tab.locator("#write .token").first.focus()
        tab.keyboard.press("Home")
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        heat = _written(tab)["heat"]
        assert steps[2].attention is not None
        assert (heat["heads"], heat["keys"]) == steps[2].attention.shape
        np.testing.assert_allclose(heat["weights"], steps[2].attention.ravel(), atol=0.005)
        most, least = tab.evaluate(STRONGEST_ROW)
        assert most != least
        bars = tab.locator("#write .bar-row .num").all_inner_texts()
        assert len(bars) == 5
        tab.fill("#write input >> nth=1", "-3")
        tab.click("#write button.primary")
        assert "temperature is “-3”, expected 0 to 3." in tab.inner_text("#write [role=alert]")


def _written(tab: Page) -> dict[str, Any]:
    written: dict[str, Any] = tab.evaluate("document.querySelector('#write .written').shown")
    return written


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 390)])
def test_the_page_is_accessible_and_fits(dark: bool, width: int, browser: Browser, pair: Explored) -> None:
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    with opened(browser, pair, width=width, dark=dark) as tab:
        for section in ALL:
            visit(tab, section)
            assert tab.evaluate(fits), section
        assert serious(tab) == []
        tab.click("text=Guided tour")
        for step in range(12):
            eventually(tab, "!document.querySelector('.tour').hasAttribute('aria-busy')")
            assert tab.evaluate(fits), step
            if step == 9:
                assert serious(tab) == []
            if step < 11:
                tab.click(".tour .primary")
        tab.click(".tour .primary")
        eventually(tab, "!explorer.sections.write.writer.writing")
        assert serious(tab) == []


def test_a_chat_goes_through_the_template(browser: Browser) -> None:
    with explored("smollm2-135m") as explorer, opened(browser, explorer) as tab:
        assert "9 query heads share 3 heads" in tab.inner_text("header")
        tab.fill("#prompt", "Hi")
        tab.check("form input[type=checkbox]")
        eventually(tab, "explorer.app.chat && !explorer.shown.busy")
        texts = [token["text"] for token in shown(tab)["tokens"]]
        assert texts[0] == "<|im_start|>"
        assert "Hi" in texts


def test_a_sliding_window_is_named(browser: Browser, tmp_path: Path) -> None:
    file = write_small_model(tmp_path / "gemma3.gguf", "gemma3", 2, text=True)
    with explored(str(file)) as explorer, opened(browser, explorer) as tab:
        assert "sliding window of 64 tokens" in tab.inner_text("header")
        assert shown(tab)["sections"] == ALL


def test_what_a_model_cannot_show_is_said_and_not_empty(browser: Browser, tmp_path: Path) -> None:
    file = write_small_model(tmp_path / "t5.gguf", "t5", 2, text=True)
    with explored(str(file)) as explorer, opened(browser, explorer) as tab:
        assert "is an encoder and a decoder" in tab.inner_text(".missing")
        assert shown(tab)["sections"] == ["tokens", "structure"]
        assert tab.locator("main > section:visible h2").all_inner_texts() == ["Tokens", "Inside the file"]
        tab.click("text=Guided tour")
        eventually(tab, "document.querySelector('.tour-count').textContent === 'Step 1 of 2'")
        tab.keyboard.press("Escape")


def test_a_server_that_is_gone_is_a_message(browser: Browser) -> None:
    with contextlib.ExitStack() as tabs:
        with explored("tiny") as explorer:
            # It ends below, without a word, although the page is open.
            tab = tabs.enter_context(opened(browser, explorer, expected=("ERR_",)))
        eventually(tab, "!document.querySelector('.lost').hidden")
        assert "does not answer" in tab.inner_text(".lost")
        tab.click("text=A story")
        eventually(tab, "!!document.querySelector('form .problem')")
        assert "The explorer's server does not answer." in tab.inner_text("form .problem")
