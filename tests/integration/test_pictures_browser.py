"""Pictures of the API in a real browser: as pages and as widgets of a notebook, with the numbers of the arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import gguf_harness as gh
from gguf_harness.views.bundle import widget_module
from tests.integration.notebook_host import FIRST, HOST, open_notebook, open_widget
from tests.integration.report_pages import browser, serious

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser", "open_notebook"]

pytestmark = [pytest.mark.browser, pytest.mark.model]

PROMPT = "the cat sat, and the cat sat, and the"


class Asked:
    """Everything that a picture is made of, from one open model."""

    def __init__(self, model: gh.OpenModel) -> None:
        off = gh.off(heads=[(1, 1)])
        self.attention, self.states = model.attention(PROMPT), model.hidden_states(PROMPT)
        self.after, self.lens = model.next_tokens(PROMPT), model.lens(PROMPT)
        self.written, self.words = model.generate(PROMPT, limit=6), model.word_embeddings()
        self.structure = model.structure()
        self.compared = gh.compare(model, model, PROMPT, off=off)
        self.other = model.attention(PROMPT, off=off)


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> Iterator[Asked]:
    with gh.open(getattr(request, "param", "tiny"), threads=2, gpu=-1) as model:
        yield Asked(model)


def _near(shown: Any, expected: Any, atol: float) -> None:
    np.testing.assert_allclose(np.array(shown, dtype=np.float64), np.asarray(expected, dtype=np.float64), 0, atol)


def _triangle(rows: list[list[float]], pattern: np.ndarray[Any, Any]) -> None:
    """Bytes of square roots: a weight is known to 1 / 255 of its root."""
    assert len(rows) == len(pattern), "one row for each token, also of those with the same text"
    for query, row in enumerate(rows):
        _near(row[: query + 1], pattern[query, : query + 1], atol=2.5 / 255)


def _check_attention(asked: Asked, shown: Any) -> None:
    assert (shown["layer"], shown["head"], shown["other"]) == (2, 7, None)
    _triangle(shown["reference"], asked.attention.pattern[2, 7])


def _check_compared(asked: Asked, shown: Any) -> None:
    layer, head = shown["layer"], shown["head"]
    _triangle(shown["reference"], asked.attention.pattern[layer, head])
    _triangle(shown["other"], asked.other.pattern[layer, head])
    # What is off has no effect on its own pattern, but on those after it.
    assert layer > 1


def _check_steps(asked: Asked, shown: Any) -> None:
    query = len(asked.attention.tokens) - 1
    assert shown["query"] == query
    _near(shown["weights"][0], asked.attention.pattern[1, 1, query], atol=1e-5)
    q, k = asked.attention.q, asked.attention.k
    assert q is not None
    assert k is not None
    # Two heads of queries share one of keys.
    _near(shown["products"][0], k[1, :, 0] @ q[1, query, 1], atol=1e-2)


def _check_stream(asked: Asked, shown: Any) -> None:
    found = {line["group"]: [point[1] for point in line["points"]] for line in shown["lines"]}
    _near(found["stream"], np.linalg.norm(asked.states.resid_post[:, 3].astype(float), axis=-1), atol=1e-4)
    assert asked.states.attn_out is not None
    _near(found["attention adds"], np.linalg.norm(asked.states.attn_out[:, 3].astype(float), axis=-1), atol=1e-4)


def _check_next(asked: Asked, shown: Any) -> None:
    assert shown["pieces"][:5] == [piece.replace("\n", "↵") for piece in asked.after.pieces[:5]]
    _near(shown["shares"][0], asked.after.probabilities, atol=1e-5)


def _check_next_of_two(asked: Asked, shown: Any) -> None:
    assert shown["candidate"].endswith(", head 1.1 off")
    likeliest = shown["pieces"].index(asked.after.pieces[0].replace("\n", "↵"))
    assert shown["shares"][0][likeliest] == pytest.approx(asked.after.probabilities[0], abs=1e-4)
    assert shown["shares"][0][likeliest] != shown["shares"][1][likeliest]


def _check_lens(asked: Asked, shown: Any) -> None:
    _near(shown["values"], asked.lens.probabilities[:, :5], atol=1e-5)
    assert shown["cells"][4][0] == asked.lens.pieces[4][0].replace(" ", "·").replace("\n", "↵")


def _check_written(asked: Asked, shown: Any) -> None:
    _near([point[1] for point in shown["lines"][0]["points"]], np.exp(asked.written.logprobs), atol=1e-5)


def _check_words(asked: Asked, shown: Any) -> None:
    assert shown["words"] == list(asked.words.words)
    xyz = np.array(shown["xyz"])
    centred = asked.words.vectors.astype(float) - asked.words.vectors.mean(axis=0)
    # Distances in three of the dimensions are at most those in all, and the first axis has the largest variance.
    assert (np.linalg.norm(xyz, axis=1) <= np.linalg.norm(centred, axis=1) + 1e-3).all()
    largest = np.linalg.svd(centred, compute_uv=False)[:3]
    _near(np.linalg.norm(xyz, axis=0) / largest, np.ones(3), atol=1e-3)


def _check_structure(asked: Asked, shown: Any) -> None:
    stored = {tensor.name: (tensor.type, tensor.bytes) for tensor in asked.structure.tensors}
    assert {each["name"]: (each["type"], each["bytes"]) for each in shown["tensors"]} == stored


def _check_comparison(asked: Asked, shown: Any) -> None:
    assert shown["value"] == "delta_p"
    _near(shown["values"], asked.compared.delta_p[:-1], atol=1e-4)


PICTURES: dict[str, tuple[Callable[[Asked], gh.Picture], Callable[[Asked, Any], None]]] = {
    "attention": (lambda asked: asked.attention.plot(layer=2, head=7), _check_attention),
    "attention of two": (lambda asked: asked.compared.attention, _check_compared),
    "steps": (lambda asked: asked.attention.steps(1, 1), _check_steps),
    "stream": (lambda asked: asked.states.plot(3), _check_stream),
    "next tokens": (lambda asked: asked.after.plot(), _check_next),
    "next tokens of two": (lambda asked: asked.compared.next_tokens(), _check_next_of_two),
    "lens": (lambda asked: asked.lens.plot(), _check_lens),
    "written": (lambda asked: asked.written.plot(), _check_written),
    "words": (lambda asked: asked.words.plot(), _check_words),
    "structure": (lambda asked: asked.structure.plot(), _check_structure),
    "comparison": (lambda asked: asked.compared.plot(), _check_comparison),
}


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """`open_page(theme)`: a page that may say nothing at all, and ask for nothing."""
    pages: list[Page] = []
    problems: list[str] = []

    def open_it(theme: Any) -> Page:
        page = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme=theme)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: problems.append(asked.url) if not asked.url.startswith("file:") else None)
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        page.close()
    assert problems == []


# SmolLM2 has 270 heads, in 30 layers.
@pytest.mark.parametrize("asked", ["tiny", "smollm2-135m"], indirect=True)
@pytest.mark.parametrize("name", PICTURES)
def test_a_saved_picture_shows_the_numbers(
    name: str, asked: Asked, open_page: Callable[[str], Page], tmp_path: Path
) -> None:
    make, check = PICTURES[name]
    saved = make(asked).save(tmp_path / "picture.html")
    backgrounds = []
    for theme in ("light", "dark"):
        page = open_page(theme)
        page.goto(saved.as_uri())
        page.wait_for_function(f"() => {FIRST} !== undefined")
        check(asked, page.evaluate(FIRST))
        assert page.evaluate("document.documentElement.scrollWidth") <= 1000
        backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == ["rgb(252, 252, 250)", "rgb(20, 23, 26)"]


def test_pictures_of_several_prompts_stand_side_by_side(
    asked: Asked, open_page: Callable[[str], Page], tmp_path: Path
) -> None:
    both = gh.side_by_side(asked.attention.plot(layer=1, head=1), asked.other.plot(layer=3, head=2))
    page = open_page("light")
    page.goto(both.save(tmp_path / "pictures.html").as_uri())
    page.set_viewport_size({"width": 1400, "height": 900})
    for number in (1, 2):
        page.locator(f"#picture-{number}").scroll_into_view_if_needed()
        page.wait_for_function(f"() => document.querySelector('#picture-{number} .view').shown !== undefined")
    shown = page.evaluate("[...document.querySelectorAll('.view')].map(view => view.shown)")
    assert [(each["layer"], each["head"]) for each in shown] == [(1, 1), (3, 2)]
    _triangle(shown[1]["reference"], asked.other.pattern[3, 2])
    first, second = (page.locator(f"#picture-{number}").bounding_box() for number in (1, 2))
    assert first is not None
    assert second is not None
    assert second["x"] > first["x"] + 400
    assert second["y"] == first["y"]


def test_a_frame_draws_without_rights(asked: Asked, open_page: Callable[[str], Page], tmp_path: Path) -> None:
    """As a notebook without anywidget shows it: in a sandbox, which has no origin."""
    page = open_page("light")
    frame = gh.side_by_side(asked.lens.plot())._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!DOCTYPE html><title>n</title>{frame}", encoding="utf-8")
    page.goto((tmp_path / "notebook.html").as_uri())
    inside = page.frames[1]
    inside.wait_for_function(f"() => {FIRST} !== undefined")
    _check_lens(asked, inside.evaluate(FIRST))
    assert inside.evaluate("origin") == "null"


# -- widgets ----------------------------------------------------------------------------------------------------------

STYLES = """() => ["own", "table"].map((id) => {
    const { color, fontSize, fontFamily, width, borderCollapse } = getComputedStyle(document.getElementById(id));
    return [color, fontSize, fontFamily, width, borderCollapse];
}).concat([document.body, document.documentElement].map((each) => getComputedStyle(each)).flatMap(
    (style) => [style.backgroundColor, style.getPropertyValue("--page")]))"""


@pytest.mark.parametrize("name", PICTURES)
def test_a_widget_shows_the_same(name: str, asked: Asked, open_notebook: Page, tmp_path: Path) -> None:
    make, check = PICTURES[name]
    open_widget(open_notebook, make(asked), tmp_path, light=True)
    check(asked, open_notebook.evaluate(FIRST))
    # In a page it was looked at; here its heads have no page around them.
    assert name != "attention of two" or serious(open_notebook) == []


def test_a_widget_follows_its_data_its_room_and_the_theme(asked: Asked, open_notebook: Page, tmp_path: Path) -> None:
    page, (first, second) = open_notebook, (asked.lens.plot(), asked.lens.plot(most=3))
    open_widget(page, first, tmp_path, light=False)
    root = "getComputedStyle(document.querySelector('.gguf-view'))"
    assert page.evaluate(f"{root}.backgroundColor") == "rgb(20, 23, 26)", "the notebook is dark, the machine is not"
    dark = page.evaluate(FIRST)["colors"]
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    page.wait_for_function(f"() => {root}.backgroundColor === 'rgb(252, 252, 250)'")
    # Styles change at once, and the picture is drawn again after them.
    _drawn(page, lambda shown: bool(shown["colors"] != dark))
    page.evaluate("delete document.body.dataset.jpThemeLight")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => {root}.backgroundColor === 'rgb(20, 23, 26)'")
    _drawn(page, lambda shown: bool(shown["colors"] == dark))
    page.evaluate("data => window.model.set('data', data)", second.data)
    assert [len(row) for row in page.evaluate(FIRST)["values"]] == [3] * 5
    assert page.locator(".gguf-view svg").count() == 1, "the old picture is gone"
    wide = page.locator(".view svg").first.bounding_box()
    page.set_viewport_size({"width": 420, "height": 800})
    page.wait_for_function("() => document.querySelector('.view').clientWidth < 420")
    page.wait_for_timeout(100)
    assert page.locator(".view svg").count() == 1
    assert wide is not None
    page.evaluate("window.clean()")
    assert page.locator("#cell").inner_html() == ""
    assert page.evaluate("[...window.listeners.values()].flat().length") == 0


def _drawn(page: Page, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until something is true of what the first picture shows."""
    deadline = time.monotonic() + 20
    while not holds(page.evaluate(FIRST)):
        assert time.monotonic() < deadline, page.evaluate(FIRST)
        page.wait_for_timeout(30)


def test_what_is_chosen_is_kept_and_leaks_into_no_trait(asked: Asked, open_notebook: Page, tmp_path: Path) -> None:
    page = open_notebook
    open_widget(page, asked.attention.plot(layer=2, head=7), tmp_path, light=True)
    page.get_by_label("Layer", exact=False).and_(page.locator("select")).select_option("4")
    assert page.evaluate(FIRST)["layer"] == 4
    page.set_viewport_size({"width": 640, "height": 800})
    page.wait_for_timeout(150)
    assert page.evaluate(FIRST)["layer"] == 4
    assert page.evaluate("window.model.get('head')") is None
    assert page.evaluate("window.model.get('state')") == {"head": [2, 7]}


def test_styles_of_a_widget_stay_in_it(asked: Asked, open_notebook: Page, tmp_path: Path) -> None:
    page = open_notebook
    empty = HOST.partition("<div id")[0].replace("THEME", "true")
    (tmp_path / "empty.html").write_text(empty, encoding="utf-8")
    page.goto((tmp_path / "empty.html").as_uri())
    before = page.evaluate(STYLES)
    open_widget(page, asked.compared.plot(), tmp_path, light=True)
    assert page.evaluate(STYLES) == before
    assert before[-1] == "", "no custom property of the whole page"


CELLS = (
    "import gguf_harness as gh\nmodel = gh.open('tiny', threads=2, gpu=-1)",
    "attention = model.attention('the cat sat')\nattention",
    "attention.plot(layer=1, head=1)",
)


def test_a_notebook_shows_tables_and_widgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by a real kernel: what it stores is what a person sees."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    table, picture = (cell.outputs[-1].data for cell in notebook.cells[1:])
    assert "<table>" in table["text/html"]
    assert table["text/plain"].startswith("Attention(model='tiny-F16', tokens=")
    shown = picture["application/vnd.jupyter.widget-view+json"]
    assert "text/html" not in picture, "the widget is enough"
    assert picture["text/plain"] == "<picture attention: Attention of tiny-F16>"
    stored = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"][shown["model_id"]][
        "state"
    ]
    assert stored["view"] == "attention"
    assert stored["state"] == {"head": [1, 1]}
    assert len(stored["data"]["models"][0]["heads"]) == 40
    assert stored["_esm"] == widget_module()
