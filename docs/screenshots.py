"""Screenshots of a report: its top, and each of its pictures.

    python docs/screenshots.py results/runs/<id>/report.html [FOLDER] [--only logit-lens,...] [--dark] [--width 900]
    python docs/screenshots.py REPORT --only structure --choose Q4_K_M --name structure-q4
    python docs/screenshots.py REPORT --only attention-patterns --height 945 --name attention-heads
    python docs/screenshots.py REPORT --only head-kinds --choose F16 --point 10

A PNG for each picture, by its id (`attention-patterns.png`, `logit-lens.png`), and `top.png`. Chromium has to be there.
Those in docs/pictures are of all suites on `tiny` (`gguf-harness run all --models=tiny`), with
`--gguf-quants=Q8_0,Q6_K,Q5_K_M,Q5_K_S,Q4_K_M,Q4_K_S,Q3_K_M,Q2_K`; `structure-q4.png` and `attention-heads.png`, made
by the second and third of these commands, are of the run that `make docs` measures (.cache/docs/runs). The last command
shows why a head is of its kind.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import FloatRect, Locator, Page, ViewportSize, sync_playwright

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
    parser.add_argument("--choose", help="name of a button to press in the picture, such as a model's")
    parser.add_argument("--point", type=int, help="number of a tile to point at, counted from 0, which tells its note")
    parser.add_argument("--height", type=int, help="the upper part of the picture only, in pixels")
    parser.add_argument("--name", help="name of the file, without .png, for a single picture")
    known = parser.parse_args()
    only = known.only.split(",") if known.only else []
    if (known.name or known.choose or known.point is not None) and len(only) != 1:
        parser.error("--name, --choose and --point are for one picture: give its id by --only.")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        sys.exit("There is no Chromium here: install the package chromium.")
    known.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        viewport: ViewportSize = {"width": known.width, "height": 800}
        page = browser.new_page(viewport=viewport, color_scheme="dark" if known.dark else "light")
        page.goto(known.report.resolve().as_uri())
        if not only:
            page.screenshot(path=known.folder / "top.png")
        for figure in _figures(page, only):
            if known.choose:
                figure.get_by_role("button", name=known.choose, exact=True).click()
            if known.point is not None:
                figure.locator("g[data-mark=cell] rect").nth(known.point).hover()
            _take(page, figure, known.folder / f"{known.name or figure.get_attribute('id')}.png", known.height)
        browser.close()


def _figures(page: Page, only: list[str]) -> Iterator[Locator]:
    """The pictures of a report, each drawn."""
    page.evaluate(OPEN)
    names = [figure.get_attribute("id") or "" for figure in page.locator("figure.picture").all()]
    for name in [name for name in names if not only or name in only]:
        figure = page.locator(f"figure.picture[id='{name}']")
        figure.scroll_into_view_if_needed()
        page.wait_for_function(DRAWN, arg=name)
        yield figure


def _take(page: Page, figure: Locator, path: Path, height: int | None) -> None:
    page.wait_for_timeout(150)
    box = figure.bounding_box()
    if height is None or box is None:
        figure.screenshot(path=path)
    else:
        scrolled = page.evaluate("[scrollX, scrollY]")
        clip = FloatRect(x=box["x"] + scrolled[0], y=box["y"] + scrolled[1], width=box["width"], height=height)
        page.screenshot(path=path, clip=clip, full_page=True)
    print(path)


if __name__ == "__main__":
    main()
