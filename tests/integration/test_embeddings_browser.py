"""The map of words and the words of analogies and cosines in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.store.arrays import load_arrays
from tests.integration.report_pages import OpenReport, browser, open_report, page, see, shown
from tests.unit.test_embedding_charts import TEXTS, run_with_maps
from tests.unit.test_report import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

__all__ = ["browser", "open_report", "page"]

pytestmark = pytest.mark.browser

MAP = "embedding-map"
SIZE = "(c => [c.clientWidth, c.clientHeight])(document.querySelector('#embedding-map canvas'))"
PIXELS = "document.querySelector('#embedding-map canvas').toDataURL()"
SHOWN_HOSTILE = HOSTILE.replace("\x1b", "\\x1b")


@pytest.fixture
def run(page: Page, open_report: OpenReport, tmp_path: Path) -> dict[str, Any]:
    """An open report with three models."""
    content = run_with_maps(tmp_path)
    open_report(content, tmp_path)
    return content


def _choose(page: Page, chart: str, label: str, value: str) -> None:
    choice = page.locator(f"#{chart} .choice").filter(has_text=re.compile(f"^{label} "))
    choice.locator("select").select_option(label=value, timeout=2000)


def _canvas(page: Page) -> Locator:
    return page.locator(f"#{MAP} canvas")


def test_words_are_where_they_were_stored(run: dict[str, Any], page: Page, tmp_path: Path) -> None:
    see(page, MAP)
    frames = []
    for entry, model in ((("embedding_map", "F16"), "F16"), (("embedding_map_aligned", "Q8_0"), "Q8_0")):
        _choose(page, MAP, "Model", model)
        (file,) = (e["file"] for e in run["arrays"] if (e["name"], e["model"].rsplit("-", 1)[1]) == entry)
        stored = load_arrays(tmp_path / file)
        drawn = shown(page, MAP)
        assert drawn["model"].endswith(model)
        assert np.allclose(drawn["xyz"], stored["xyz"].tolist(), rtol=1e-4)
        assert drawn["words"] == [SHOWN_HOSTILE if text == HOSTILE else text for text in TEXTS]
        frames.append((drawn["center"], drawn["reach"], drawn["view"]))
    # Another model moves points, and nothing else.
    assert frames[0] == frames[1]
    assert shown(page, MAP)["farthest"] > 0
    # Larger moves are for the eye: what is said of the model stays.
    places = shown(page, MAP)["places"]
    _choose(page, MAP, "Moves", "× 10")
    assert shown(page, MAP)["places"] != places
    assert shown(page, MAP)["xyz"] == drawn["xyz"]


def test_the_map_keeps_its_view(run: dict[str, Any], page: Page) -> None:
    see(page, MAP)
    first = shown(page, MAP)["view"]
    box = _canvas(page).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3, steps=5)
    page.mouse.up()
    dragged = shown(page, MAP)["view"]
    assert dragged["yaw"] > first["yaw"]
    assert dragged["pitch"] < first["pitch"]
    _canvas(page).press("ArrowLeft")
    _canvas(page).press("ArrowDown")
    _canvas(page).press("+")
    turned = shown(page, MAP)["view"]
    assert turned["yaw"] < dragged["yaw"]
    assert turned["pitch"] > dragged["pitch"]
    assert turned["zoom"] > first["zoom"]
    _choose(page, MAP, "Model", "Q5_K_M")
    assert shown(page, MAP)["view"] == turned
    drawn = "document.querySelector('#embedding-map canvas').dataset.drawn = 'before'"
    page.evaluate(drawn)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => !document.querySelector('#embedding-map canvas').dataset.drawn")
    after = shown(page, MAP)
    assert (after["view"], after["model"]) == (turned, shown(page, MAP)["model"])
    assert after["model"].endswith("Q5_K_M")
    page.locator(f"#{MAP} button", has_text="reset").click()
    assert shown(page, MAP)["view"] == first


def test_words_are_drawn_as_the_view_turns_them(run: dict[str, Any], page: Page) -> None:
    see(page, MAP)
    _choose(page, MAP, "Model", "Q8_0")
    for key in ("ArrowRight", "ArrowUp"):
        _canvas(page).press(key)
        drawn = shown(page, MAP)
        places, depth = _project(drawn, page.evaluate(SIZE))
        order = [drawn["words"][at] for at in np.argsort(depth)]
        assert [word for word, *_ in drawn["places"]] == order, "the nearest is drawn last"
        for word, x, y in drawn["places"]:
            assert np.allclose((x, y), places[drawn["words"].index(word)], atol=0.01)
    # A place that the reader can see differs between turns.
    seen = page.evaluate(PIXELS)
    _canvas(page).press("ArrowRight")
    assert page.evaluate(PIXELS) != seen


def _project(drawn: dict[str, Any], size: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """[n, 2] pixels and [n] depths: turned about the upright axis, then tilted, seen from a distance of 4 radii."""
    view = drawn["view"]
    x, y, z = ((np.array(drawn["xyz"]) - drawn["center"]) / drawn["reach"]).T
    turned = (x + 1j * y) * np.exp(1j * view["yaw"])
    across, up = turned.real, z * np.cos(view["pitch"]) + turned.imag * np.sin(view["pitch"])
    depth = z * np.sin(view["pitch"]) - turned.imag * np.cos(view["pitch"])
    scale = 0.48 * min(size) * view["zoom"] * 4 / (4 - depth)
    return np.stack([size[0] / 2 + scale * across, size[1] / 2 - scale * up], axis=1), depth


def test_a_word_is_found_with_its_neighbours(run: dict[str, Any], page: Page) -> None:
    see(page, MAP)
    _choose(page, MAP, "Model", "Q8_0")
    page.get_by_label("Find a word").fill("RED")
    drawn = shown(page, MAP)
    assert (drawn["word"], drawn["near"], drawn["lost"]) == ("red", ["dog", "cat"], [SHOWN_HOSTILE, "%{x}{y}"])
    assert "0 of 2 are also nearest in F16" in page.inner_text(f"#{MAP} .told-of-word")
    assert "red" in drawn["labels"]
    # Words that lost most come first; each is a button.
    assert page.locator(f"#{MAP} tbody th button").all_inner_texts() == ["red", "dog"]
    page.locator(f"#{MAP} tbody th button", has_text="dog").press("Enter")
    assert (shown(page, MAP)["word"], shown(page, MAP)["lost"]) == ("dog", ["red"])
    page.get_by_label("Find a word").fill("nothing of the kind")
    page.get_by_label("Find a word").press("Enter")
    assert "is not on the map" in page.inner_text(f"#{MAP} .told-of-word")
    # Under the pointer, and after a click.
    place = next(place for place in shown(page, MAP)["places"] if place[0] == "cat")
    _canvas(page).hover(position={"x": place[1], "y": place[2]})
    assert "nearest: red" in page.inner_text(f"#{MAP} .space-tip")
    _canvas(page).click(position={"x": place[1], "y": place[2]})
    assert shown(page, MAP)["word"] == "cat"


def test_groups_are_switched(run: dict[str, Any], page: Page) -> None:
    see(page, MAP)
    everything = shown(page, MAP)["drawn"]
    page.locator(f"#{MAP} .groups").get_by_label("animals").press("Space")
    assert set(everything) - set(shown(page, MAP)["drawn"]) == {"dog", "cat"}
    page.locator(f"#{MAP} .groups button", has_text="none").click()
    assert shown(page, MAP)["drawn"] == []
    page.locator(f"#{MAP} .groups button", has_text="all").click()
    assert sorted(shown(page, MAP)["drawn"]) == sorted(everything)


def test_analogies_show_what_each_model_finds(run: dict[str, Any], page: Page) -> None:
    see(page, "analogies")
    drawn = shown(page, "analogies")
    assert (drawn["lost"], drawn["won"], drawn["changed"], drawn["questions"]) == (1, 1, 2, 3)
    assert drawn["rows"][0] == {
        "question": "dogs − dog + cat", "right": SHOWN_HOSTILE, "found": [[SHOWN_HOSTILE, 1], ["red", 3]],
    }  # fmt: skip
    assert page.locator("#analogies tbody tr").first.locator("td").all_inner_texts() == [
        f"✓ {SHOWN_HOSTILE} rank 1", "✗ red rank 3",
    ]  # fmt: skip
    _choose(page, "analogies", "Show", "gained")
    assert [row["right"] for row in shown(page, "analogies")["rows"]] == ["dogs"]
    _choose(page, "analogies", "Show", "all")
    _choose(page, "analogies", "Family", "plural")
    assert len(shown(page, "analogies")["rows"]) == 2


def test_cosines_and_their_difference(run: dict[str, Any], page: Page, tmp_path: Path) -> None:
    files = {e["model"].rsplit("-", 1)[1]: tmp_path / e["file"] for e in run["arrays"] if e["name"] == "word_cosines"}
    base, own = (float(np.asarray(load_arrays(files[model])["cosines"], float)[0, 1]) for model in ("F16", "Q8_0"))
    see(page, "word-cosines")
    domains = []
    for model, cosine in (("F16", base), ("Q8_0", own)):
        _choose(page, "word-cosines", "Model", model)
        drawn = shown(page, "word-cosines")
        assert drawn["values"][0][0] == pytest.approx(cosine, abs=1e-5)
        domains.append(drawn["domain"])
    assert domains[0] == domains[1]
    page.locator("#word-cosines button", has_text="difference from F16").click()
    _choose(page, "word-cosines", "Words of", "animals")
    drawn = shown(page, "word-cosines")
    assert (drawn["kind"], drawn["names"]) == ("difference", ["dog", "cat"])
    assert drawn["values"][0][1] == pytest.approx(own - base, abs=2e-5)
    assert drawn["domain"][0] == -drawn["domain"][1]


def test_a_phone_shows_words_as_text(page: Page, open_report: OpenReport, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    open_report(run_with_maps(tmp_path), tmp_path)
    for chart in (MAP, "analogies", "word-cosines", "embedding-neighbours"):
        see(page, chart)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, chart
    page.get_by_label("Find a word").fill(SHOWN_HOSTILE)
    assert SHOWN_HOSTILE in page.inner_text(f"#{MAP} .told-of-word")
    box = _canvas(page).bounding_box()
    assert box is not None
    assert box["width"] <= 390
    assert page.locator("img").count() == 0
