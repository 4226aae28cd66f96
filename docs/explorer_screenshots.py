"""Screenshots of the explorer: `tiny` quantized to Q2_K, beside its reference, at two steps of the guided tour.

    python docs/explorer_screenshots.py [FOLDER] [--dark]

`explorer.png` has the attention of both files, `explorer-switch.png` what happens without a head. Chromium has to be
there.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = {"explorer": "A head that continues repetitions", "explorer-switch": "What if a head were missing?"}
LONGEST_S = 60


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/pictures"))
    parser.add_argument("--dark", action="store_true")
    known = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        sys.exit("There is no Chromium here: install the package chromium.")
    known.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        harness("quantize", "tiny", "Q2_K", f"--out={folder}").wait()
        with explored(f"{folder}/tiny-Q2_K.gguf", "--reference=tiny") as address:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            page = browser.new_page(
                viewport={"width": 1280, "height": 900},
                color_scheme="dark" if known.dark else "light",
                reduced_motion="reduce",
            )
            page.goto(address)
            eventually(page, "!!window.explorer && explorer.shown.readings.length > 0 && !explorer.shown.busy")
            page.get_by_role("button", name="Guided tour").click()
            take(page, known.folder)
            browser.close()


def take(page: Page, folder: Path) -> None:
    """Go through the tour, and take a picture at each of its steps that has one."""
    left = {title: name for name, title in PICTURES.items()}
    while left:
        eventually(page, "!explorer.shown.busy && !!document.querySelector('.tour:not([aria-busy])')")
        page.wait_for_timeout(600)
        title = page.locator("#tour-title").inner_text()
        if title in left:
            path = folder / f"{left.pop(title)}.png"
            page.screenshot(path=path)
            print(path)
        page.get_by_role("button", name="Next", exact=True).click()


@contextmanager
def explored(*arguments: str) -> Iterator[str]:
    """The address of a running explorer."""
    process = harness("explore", *arguments)
    address = next(line.split()[1] for line in process.stdout or () if line.startswith("Open "))
    try:
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def harness(*arguments: str) -> subprocess.Popen[str]:
    """A command of gguf-harness."""
    return subprocess.Popen([sys.executable, "-m", "gguf_harness.cli", *arguments], stdout=subprocess.PIPE, text=True)


def eventually(page: Page, expression: str) -> None:
    """Wait until an expression is true. Playwright's own wait needs `eval`, which the page does not allow."""
    deadline = time.monotonic() + LONGEST_S
    while not page.evaluate(expression):
        if time.monotonic() > deadline:
            sys.exit(f"never true: {expression}")
        page.wait_for_timeout(50)


if __name__ == "__main__":
    main()
