"""The explorer's page in a real browser: opened as the command printed it, and read through what it says it shows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.integration.explorer_process import Explored

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["STRONGEST_ROW", "do", "eventually", "opened", "press_switch", "read_prompt", "shown", "visit"]

_LONGEST_S = 60

STRONGEST_ROW = """() => {
    const { canvas, layout: { left, wide, high, rows, keys, bytes } } = explorer.sections.write.writer.heat;
    const row = Math.floor(bytes.indexOf(Math.max(...bytes)) / keys);
    const weights = [...bytes.slice(row * keys, (row + 1) * keys)];
    const y = Math.floor((row * high + rows[row][0] + high / 2) * devicePixelRatio);
    const { data } = canvas.getContext("2d").getImageData(0, y, canvas.width, 1);
    return [Math.max, Math.min].map((end) => {
        const x = Math.floor((left + (weights.indexOf(end(...weights)) + 0.5) * wide) * devicePixelRatio);
        return data.slice(4 * x, 4 * x + 4).join();
    });
}"""
"""Colours of the cells with the most and the least weight of the head that looks at one token most while writing."""


@contextlib.contextmanager
def opened(
    browser: Browser, explorer: Explored, *, width: int = 1280, dark: bool = False, expected: tuple[str, ...] = ()
) -> Iterator[Page]:
    """A tab with the page, once it has read its first example, if the model can.

    Console messages, dialogs, and requests to anywhere else are failures.

    Args:
        browser: a real one.
        explorer: a running one.
        width: of the window, in pixels.
        dark: the theme.
        expected: parts of console messages that the test provokes.
    """
    tab = browser.new_page(
        viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda r: problems.append(r.url) if not r.url.startswith((explorer.base, "data:")) else None)
    tab.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    try:
        tab.goto(explorer.address)
        eventually(
            tab, "!!window.explorer && (explorer.shown.readings.length > 0 || !!document.querySelector('.problem'))"
        )
        yield tab
    finally:
        tab.close()
    assert [problem for problem in problems if not any(part in problem for part in expected)] == []


def eventually(tab: Page, expression: str, timeout_s: float = _LONGEST_S) -> None:
    """Wait until an expression is true; Playwright's own wait needs `eval`, which the page forbids."""
    deadline = time.monotonic() + timeout_s
    while not tab.evaluate(expression):
        assert time.monotonic() < deadline, f"never true: {expression}"
        tab.wait_for_timeout(40)


def shown(tab: Page) -> dict[str, Any]:
    """What the page shows: readings, tokens, prediction, chosen token and head, what is off, sections."""
    state: dict[str, Any] = tab.evaluate("explorer.shown")
    return state


def do(tab: Page, action: str) -> None:
    """Run something that makes the page read, and wait until it has."""
    tab.evaluate(action)
    eventually(tab, "!explorer.shown.busy")


def read_prompt(tab: Page, prompt: str) -> None:
    """Type a prompt and read it."""
    tab.fill("#prompt", prompt)
    tab.press("#prompt", "Control+Enter")
    eventually(tab, "!explorer.shown.busy && explorer.app.prompt === document.getElementById('prompt').value")


def visit(tab: Page, section: str) -> Any:
    """Scroll to a section, wait until all of it is there; what its picture drew."""
    tab.evaluate("id => document.getElementById(id).scrollIntoView()", section)
    eventually(tab, f"explorer.shown.loaded.includes('{section}')")
    return tab.evaluate("id => document.querySelector(`#${id} .view`)?.shown", section)


def press_switch(tab: Page, layer: int, head: int) -> None:
    """Switch a head by keyboard, from the first switch on."""
    tab.locator(".switches button").first.focus()
    for key, times in (("ArrowDown", layer), ("ArrowRight", head + 1)):
        for _ in range(times):
            tab.keyboard.press(key)
    assert f"head {layer}.{head}" in (tab.locator(":focus").get_attribute("aria-label") or "")
    tab.keyboard.press("Enter")
    eventually(tab, "!explorer.shown.busy")
