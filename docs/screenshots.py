"""Screenshots of a report: its top, and each of its pictures.

    python docs/screenshots.py results/runs/<id>/report.html [FOLDER] [--only logit-lens,...] [--dark] [--width 900]

A PNG for each picture, by its id (`attention-patterns.png`, `logit-lens.png`), and `top.png`. Chromium has to be there.
Those in docs/pictures are of all suites on `tiny`, with
`--gguf-quants=Q8_0,Q6_K,Q5_K_M,Q5_K_S,Q4_K_M,Q4_K_S,Q3_K_M,Q2_K`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, sync_playwright

OPEN = "document.querySelectorAll('details.suite').forEach((fold) => { fold.open = true; })"
DRAWN = "id => document.querySelector(`#${CSS.escape(id)} .view`).shown !== undefined"


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/pictures"))
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=900)
    parser.add_argument("--only", default="", help="names of pictures, with commas; all without it")
    known = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        sys.exit("There is no Chromium here: install the package chromium.")
    known.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        viewport: ViewportSize = {"width": known.width, "height": 800}
        page = browser.new_page(viewport=viewport, color_scheme="dark" if known.dark else "light")
        page.goto(known.report.resolve().as_uri())
        _take(page, known.folder, known.only.split(",") if known.only else [])
        browser.close()


def _take(page: Page, folder: Path, only: list[str]) -> None:
    page.screenshot(path=folder / "top.png")
    page.evaluate(OPEN)
    names = [figure.get_attribute("id") or "" for figure in page.locator("figure.picture").all()]
    for name in [name for name in names if not only or name in only]:
        figure = page.locator(f"figure.picture[id='{name}']")
        figure.scroll_into_view_if_needed()
        page.wait_for_function(DRAWN, arg=name)
        page.wait_for_timeout(150)
        figure.screenshot(path=folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
