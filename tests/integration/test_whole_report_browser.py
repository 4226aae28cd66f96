"""The report of a whole real run in Chromium, every chart of it: eight candidates of tiny through all suites."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_harness.report.charts import SECTIONS
from tests.integration.drawn import read_back
from tests.integration.report_pages import browser, page, see, serious, shown
from tests.integration.whole_run import TYPES, WholeRun, measure

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "page"]

pytestmark = [pytest.mark.browser, pytest.mark.model]

MOST_BYTES, MOST_NODES = 6_000_000, 6000

OPEN = "document.querySelectorAll('details.suite, details.how').forEach((fold) => { fold.open = true; })"
# Paper shows all, which draws what nobody has scrolled to; afterwards the page has its own colours again.
DRAW = "for (const name of ['beforeprint', 'afterprint']) dispatchEvent(new Event(name))"
UNDRAWN = "[...document.querySelectorAll('.view')].filter((view) => view.shown === undefined).length"

# Text of a picture that nobody can see: it is where its view is cut, and no scrolling leads there.
CUT = """() => [...document.querySelectorAll(".view svg text, .legend, ul.models li, .view td, .view th")]
.filter((text) => {
    const { left, right, top, bottom, width } = text.getBoundingClientRect();
    if (width === 0 || !text.textContent.trim() || !text.checkVisibility()) return false;
    for (let box = text.parentElement; box && !box.matches("figure"); box = box.parentElement) {
        if (!box.matches(".view, .rows-box, .cells-room, .scroll")) continue;
        const around = box.getBoundingClientRect();
        const [from, to] = [around.left - box.scrollLeft, around.left - box.scrollLeft + box.scrollWidth];
        const [high, low] = [around.top - box.scrollTop, around.top - box.scrollTop + box.scrollHeight];
        return left < from - 1 || right > to + 1 || top < high - 4 || bottom > low + 4;
    }
    return false;
}).map((text) => `${text.closest("figure").id}: ${text.textContent.slice(0, 40)}`)"""

# A4 without the margins of browsers, in pixels of CSS.
PAPER = {"width": 718, "height": 1047}
ON_PAPER = """() => [...document.querySelectorAll(".view svg, .view canvas, .view table")]
    .filter((part) => part.checkVisibility())
    .map((part) => [part.closest("figure").id, part.tagName, part.getBoundingClientRect()])
    .map(([id, tag, { left, right, height }]) => [id, tag, left, right, height])"""

SCROLLED = """[...document.querySelectorAll('.rows-box, .cells-room, .given')]
    .filter((box) => box.scrollHeight > box.clientHeight + 2).length"""

# Values that no row of the run has: they are computed from rows or arrays, and have tests of their own.
COMPUTED = {
    "distribution": "kld_quantiles, thinned",
    "head-removal": "means of the array head_removal, less the first",
    "head-evolution": "means over the heads of a layer",
    "files": "tensor types of the files",
    "drift": "growth in the block",
    "sensitivity": "per MB",
    "layer-contributions": "changes",
    "layer-norm-gains": "changes",
    "attention-layers": "means over the heads of a layer",
    "lora-tokens": "probabilities of single tokens",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    return measure(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def charts(page: Page, run: WholeRun) -> list[str]:
    """The ids of all charts of the open report."""
    page.goto(run.report.as_uri())
    ids: list[str] = page.locator("figure.picture").evaluate_all("figures => figures.map(({ id }) => id)")
    return ids


def _data(page: Page, chart: str) -> Any:
    """What the page gives to the view of a chart."""
    return json.loads(page.locator(f"#{chart} > script").text_content() or "")


def _panels(page: Page, chart: str) -> Iterator[dict[str, Any]]:
    """Each panel of a chart while it is the one that is seen."""
    see(page, chart)
    content = _data(page, chart)
    for place, panel in enumerate(content["panels"]):
        if len(content["panels"]) > 1:
            buttons = page.locator(f"#{chart} > .tabs button")
            if buttons.count():
                buttons.nth(place).click()
            else:
                page.locator(f"#{chart} > .choice select").select_option(str(place))
        yield panel | {"view": content["view"]}


def test_it_has_every_section_and_no_chart_is_missing(page: Page, run: WholeRun, charts: list[str]) -> None:
    """What the site shows of a report is in it; nothing below passes because there was nothing to look at."""
    assert sum(model["name"].removeprefix("tiny-") in TYPES for model in run.content["models"]) == len(TYPES)
    links = page.locator("nav a").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    assert links == [f"#{section}" for section in SECTIONS]
    docs = Path(__file__).parents[2] / "docs" / "report.md"
    told = {part.partition(".png")[0] for part in docs.read_text(encoding="utf-8").split("(pictures/")[1:]} - {"top"}
    assert told <= set(charts)
    assert {"kv-grid", "kv-depth", "kv-heads", "lora-retained", "lora-heads", "lens-by-layer"} <= set(charts)
    assert len(charts) > 55


def test_what_is_measured_is_shown(page: Page, run: WholeRun, charts: list[str]) -> None:
    """Scores of texts, analogies, clusters of heads, gains of norms and latency when served once were in no picture."""
    panels = {chart: {panel["name"] for panel in _data(page, chart)["panels"]} for chart in charts}
    assert {"BLEU", "ROUGE-L", "chrF", "edit similarity"} <= panels["text-scores"]
    assert {"TTFT p50", "TTFT p99", "ITL p50", "ITL p99"} <= panels["speed"]
    assert {"analogies", "head-clusters", "layer-norm-gains"} <= set(charts)
    measured = {row["metric"] for row in run.content["estimates"]}
    assert {"bleu", "rouge_l", "analogy_accuracy", "attn_norm_gain", "served_ttft_p50_s"} <= measured


POINTS = """() => [...document.querySelectorAll("#models thead th")].map((head, column) =>
    [...document.querySelectorAll(`#models tbody tr td:nth-child(${column + 1}) > span`)]
        .filter((cell) => cell.checkVisibility() && cell.textContent.includes("."))
        .map((cell) => {
            const range = document.createRange(), at = cell.textContent.indexOf(".");
            range.setStart(cell.firstChild, at);
            range.setEnd(cell.firstChild, at + 1);
            return range.getBoundingClientRect().left;
        })).filter((places) => places.length > 1)"""


def test_the_table_of_models_can_be_read_down_and_across(page: Page, charts: list[str]) -> None:
    """Numbers are aligned on their decimal points; on a phone the names stay while columns scroll."""
    assert charts
    columns = page.evaluate(POINTS)
    assert len(columns) > 3
    assert [places for places in columns if max(places) - min(places) > 2] == []
    page.set_viewport_size({"width": 390, "height": 800})
    box = page.locator("#decide .scroll").first
    box.evaluate("box => { box.scrollLeft = 200; }")
    name, around = page.locator("#models tbody th").first.bounding_box(), box.bounding_box()
    assert name is not None
    assert around is not None
    assert name["x"] == pytest.approx(around["x"], abs=1)


def test_it_is_small_and_light(page: Page, run: WholeRun, charts: list[str]) -> None:
    assert run.report.stat().st_size < MOST_BYTES
    assert page.evaluate("document.querySelectorAll('*').length") < MOST_NODES
    assert page.locator("details.suite .view").evaluate_all("views => views.every((view) => view.shown === undefined)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(page: Page, run: WholeRun, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(run.report.as_uri())
    page.evaluate(OPEN)
    page.evaluate(DRAW)
    assert page.evaluate(UNDRAWN) == 0
    assert serious(page) == []


@pytest.mark.parametrize("width", [1280, 900, 390])
def test_nothing_is_cut(page: Page, run: WholeRun, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(run.report.as_uri())
    page.evaluate(OPEN)
    page.evaluate(DRAW)
    assert page.evaluate(UNDRAWN) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []


def test_paper_has_every_chart_whole(page: Page, run: WholeRun, charts: list[str]) -> None:
    """As wide as the paper, and no higher: browsers keep a picture on one page where it fits on one."""
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate(UNDRAWN) == 0
    page.emulate_media(media="print")
    page.set_viewport_size(PAPER)  # type: ignore[arg-type]
    page.evaluate(OPEN)
    parts = page.evaluate(ON_PAPER)
    assert {part[0] for part in parts} | {"token-strip"} >= set(charts)
    assert [part for part in parts if part[2] < -1 or part[3] > PAPER["width"] + 1] == []
    assert [part for part in parts if part[1] != "TABLE" and part[4] > PAPER["height"]] == []
    assert page.evaluate(SCROLLED) == 0


def test_paper_is_light(page: Page, run: WholeRun) -> None:
    """Also where the page is dark, and pictures are drawn already."""
    page.emulate_media(color_scheme="dark")
    page.goto(run.report.as_uri())
    see(page, "attention-moved")
    look = "getComputedStyle(document.body).backgroundColor"
    seen = [(page.evaluate(look), shown(page, "attention-moved")["colors"])]
    for event in ("beforeprint", "afterprint"):
        page.evaluate("name => dispatchEvent(new Event(name))", event)
        seen.append((page.evaluate(look), shown(page, "attention-moved")["colors"]))
    assert [background for background, _ in seen] == ["rgb(20, 23, 26)", "rgb(252, 252, 250)", "rgb(20, 23, 26)"]
    assert seen[0][1] == seen[2][1] != seen[1][1]


def test_without_scripts_each_chart_is_a_sentence_and_a_table(browser: Browser, run: WholeRun) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(run.report.as_uri())
    for suite in page.locator("details.suite > summary").all():
        suite.click()
    figures = page.locator("figure.picture")
    told = figures.evaluate_all(
        "figures => figures.map((figure) => [figure.id, figure.querySelector('noscript p')?.innerText ?? '',"
        " figure.querySelectorAll('noscript tbody tr').length])"
    )
    assert len(told) > 55
    assert [chart for chart, sentence, _ in told if len(sentence) < 10] == []
    assert [chart for chart, _, rows in told if not rows] == []
    assert page.locator(".view:visible, .tools:visible").count() == 0
    context.close()


def test_marks_are_where_the_numbers_say(page: Page, charts: list[str]) -> None:
    """Read back from the ticks of the axes: dots, lines, bars and cells of every panel of every chart."""
    checked: dict[str, int] = {}
    for chart in charts:
        for panel in _panels(page, chart):
            check = {"dots": _dots, "lines": _lines, "bars": _bars, "tradeoff": _tradeoff, "matrix": _cells}.get(
                panel["view"]
            )
            if check is not None:
                check(page, chart, panel["data"])
                checked[panel["view"]] = checked.get(panel["view"], 0) + 1
    assert checked.keys() == {"dots", "lines", "bars", "tradeoff", "matrix"}
    assert checked["dots"] >= 40
    assert checked["lines"] > 30
    assert checked["matrix"] > 60


def _same(drawn: Any, expected: Any, told: str) -> None:
    """Within two hundredths of all that is shown: a line on a screen is as wide."""
    ours, theirs = np.sort(np.array(drawn, float)), np.sort(np.array(expected, float))
    assert ours.shape == theirs.shape, told
    if len(theirs) and not np.isnan(ours).any():
        reach = max(float(np.ptp(theirs)), 1e-3 * float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=max(2e-2 * reach, 1e-12), err_msg=told)


def _dots(page: Page, chart: str, data: Any) -> None:
    factor = 100 if data["x"].get("percent") else 1
    _same([x for x, _ in read_back(page, chart).dots], [factor * row["value"] for row in data["rows"]], chart)


def _tradeoff(page: Page, chart: str, data: Any) -> None:
    factor, drawn = 100 if data["y"].get("percent") else 1, read_back(page, chart).dots
    _same([y for _, y in drawn], [factor * model["value"] for model in data["models"]], chart)
    _same([x for x, _ in drawn], [model["bits"] for model in data["models"]], chart)


def _lines(page: Page, chart: str, data: Any) -> None:
    factor, drawn = 100 if data["y"].get("percent") else 1, read_back(page, chart).lines
    expected = [[factor * point[1] for point in line["points"]] for line in data["lines"]]
    assert len(drawn) == len(expected), chart
    _same([y for line in drawn for _, y in line], [value for line in expected for value in line], chart)


def _bars(page: Page, chart: str, data: Any) -> None:
    values = [value for part in data["parts"] for value in part["values"] if value > 0]
    # Half a pixel at each side is left free.
    np.testing.assert_allclose(sorted(read_back(page, chart).bars), sorted(values), rtol=0.02, atol=0.02 * max(values))


def _cells(page: Page, chart: str, data: Any) -> None:
    fills = (
        page.locator(f"#{chart} .view g[data-mark=cell]")
        .first.locator("rect")
        .evaluate_all("cells => cells.map((cell) => cell.getAttribute('fill'))")
    )
    drawn = shown(page, chart)
    assert drawn["values"] == data["values"], chart
    assert fills == [color for row in drawn["colors"] for color in row if color is not None], chart


def test_numbers_are_those_that_were_stored(page: Page, run: WholeRun, charts: list[str]) -> None:
    """Each value of a model that a chart draws is a row of the run, of that model."""
    rows: dict[str, set[str]] = {}
    for row in run.content["estimates"]:
        own = rows.setdefault(row["model"], set())
        # Bytes are drawn as megabytes.
        own.update(_key(value) for value in (row["value"], row["value"] / 1e6))
    compared, unknown = 0, []
    for chart in charts:
        if chart in COMPUTED:
            continue
        content = _data(page, chart)
        for panel in content["panels"]:
            for model, value in _values(content["view"], panel["data"]):
                compared += model in rows
                if model in rows and _key(value) not in rows[model]:
                    unknown.append((chart, panel["name"], model, value))
    assert unknown == []
    assert compared > 1000


def _key(value: float) -> str:
    return f"{value:.6g}"


def _values(view: str, data: Any) -> Iterator[tuple[str, float]]:
    if view == "dots":
        for row in data["rows"]:
            if row.get("model") is not None:
                yield data["models"][row["model"]]["name"], row["value"]
    elif view == "tradeoff":
        for model in data["models"]:
            yield model["name"], model["value"]
    elif view == "lines":
        for line in data["lines"]:
            if line.get("model") is not None:
                for point in line["points"]:
                    yield data["models"][line["model"]]["name"], point[1]


def test_all_models_of_a_chart_share_its_scale(page: Page, charts: list[str]) -> None:
    """Of every chart with a panel for each model: what reaches the view."""
    several = []
    for chart in charts:
        content = _data(page, chart)
        panels = content["panels"] if content["view"] == "matrix" else []
        scales = [panel["data"]["scale"] for panel in panels if panel["name"] in {"F16", *TYPES}]
        if len(scales) > 1:
            several.append(chart)
            assert all(scale.get("domain") == scales[0].get("domain") for scale in scales), chart
            assert all(scale.get("names") == scales[0].get("names") for scale in scales), chart
    assert len(several) > 8


def test_a_model_looks_the_same_everywhere(page: Page, run: WholeRun, charts: list[str]) -> None:
    looks: dict[str, set[tuple[str, int]]] = {}
    for chart in charts:
        for panel in _data(page, chart)["panels"]:
            for model in panel["data"].get("models", []):
                looks.setdefault(model["name"], set()).add((model["role"], model["series"]))
    names = {model["name"] for model in run.content["models"]}
    assert {name: look for name, look in looks.items() if name in names and len(look) > 1} == {}
    # Candidates by bits, whatever else was measured of their files: as many colours as there are.
    assert [looks[f"tiny-{kind}"] for kind in TYPES] == [{("candidate", place)} for place in range(len(TYPES))]


def test_verdicts_lead_to_pictures(page: Page, charts: list[str]) -> None:
    """Every gate that was decided has a link, and what it leads to opens."""
    assert page.locator(".card li a").count() == page.locator(".card li:has(.dot)").count() > len(TYPES)
    for target in {link.get_attribute("href") or "" for link in page.locator(".card li a").all()}:
        page.evaluate("target => { location.hash = target; }", target)
        page.locator(target).wait_for(state="visible")


def test_numbers_have_no_more_digits_than_they_can_carry(page: Page, run: WholeRun) -> None:
    """No `± 3e-05` beside `± 0.000030`, no digits that the error makes meaningless."""
    page.goto(run.report.as_uri())
    page.evaluate(OPEN)
    page.evaluate(DRAW)
    words = page.inner_text("body")
    assert "nan" not in words.lower().split()
    assert "undefined" not in words
    assert "[object" not in words
    assert not math.isnan(len(words))


TIP = """id => {
    const tip = [...document.querySelectorAll(`#${CSS.escape(id)} [aria-label=tip] > g`)].at(-1);
    if (!tip) return null;
    const [inner, view] = [tip.getBoundingClientRect(), tip.closest(".view")];
    const scrolls = getComputedStyle(view).overflowX !== "visible";
    const outer = (scrolls ? view : document.documentElement).getBoundingClientRect();
    return [outer.left - inner.left, inner.right - outer.right, outer.top - inner.top, inner.bottom - outer.bottom];
}"""


def test_what_is_told_of_a_mark_is_not_cut(page: Page, charts: list[str]) -> None:
    """The first and the last mark of each chart, which are nearest to its edges."""
    beyond, told = {}, 0
    for chart in charts:
        marks = "[data-mark=cell] rect, [data-mark=dot] path, [data-mark=bar] rect"
        see(page, chart)
        found = page.locator(f"#{chart} .view > svg").locator(marks)
        for mark in (found.first, found.last) if found.count() else ():
            mark.scroll_into_view_if_needed()
            mark.hover(force=True)
            page.wait_for_timeout(60)
            box = page.evaluate(TIP, chart)
            told += box is not None
            if box is not None and max(box) > 2:
                beyond[chart] = box
    assert beyond == {}
    assert told > 45
