"""Pages of graphs in a real browser: they draw, filter, ask nothing of the network, and run no foreign code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gguf_harness.gguf.header import read_header
from gguf_harness.graphs import AttentionGraph, CosineNetwork, Graph, LayerTokenFlow, ModelStructure, write_graph
from tests.integration.test_report_browser import browser, page  # noqa: F401 - fixtures
from tests.unit.test_graphs import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
RNG = np.random.default_rng(0)
PATTERN = RNG.dirichlet(np.ones(5), size=(3, 2, 5))


def _open(page: Page, graph: Graph, folder: Path) -> None:  # noqa: F811
    page.goto(write_graph(graph, folder).view.as_uri())
    page.wait_for_selector("#plot svg.main-svg")


def test_the_structure_of_a_model_is_a_tree(page: Page, tmp_path: Path, llama_file: Path) -> None:  # noqa: F811
    graph = ModelStructure("random", [read_header(llama_file)]).build()
    _open(page, graph, tmp_path)
    shown = page.locator("#plot .textpoint").all_text_contents()
    assert sorted(shown) == sorted(map(str, graph.nodes["label"].values))
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_attention_is_filtered_by_layer_head_and_weight(page: Page, tmp_path: Path) -> None:  # noqa: F811
    graph = AttentionGraph("random", PATTERN, list("abcde")).build()
    _open(page, graph, tmp_path)
    edges = list(zip(*(np.asarray(graph.edges[name].values) for name in ("layer", "head", "weight")), strict=True))
    assert page.inner_text("#count") == f"{len(edges)} of {len(edges)} edges shown"
    page.select_option("[data-facet=layer]", "1")
    page.select_option("[data-facet=head]", "0")
    chosen = [weight for layer, head, weight in edges if (layer, head) == (1, 0)]
    assert page.inner_text("#count") == f"{len(chosen)} of {len(edges)} edges shown"
    page.fill("#least", "100")
    assert (
        page.inner_text("#count") == f"{sum(w >= max(e[2] for e in edges) for w in chosen)} of {len(edges)} edges shown"
    )


def test_a_search_marks_nodes(page: Page, tmp_path: Path) -> None:  # noqa: F811
    points = RNG.normal(size=(6, 3))
    _open(page, CosineNetwork("random", points, ["Fox", "dog", "fog", "x", "y", "z"]).build(), tmp_path)
    page.fill("#find", "fo")
    sizes = page.evaluate("document.getElementById('plot').data.at(-1).marker.size")
    assert sizes == [15, 8, 15, 8, 8, 8]


def test_hostile_tokens_stay_text(page: Page, tmp_path: Path) -> None:  # noqa: F811
    states = RNG.normal(size=(4, 5, 8))
    _open(page, LayerTokenFlow(HOSTILE[0], states, PATTERN, HOSTILE).build(), tmp_path)
    page.wait_for_timeout(300)
    assert page.inner_text("h1") == HOSTILE[0]
    assert page.locator("img").count() == 0
    assert page.locator("#plot a").count() == 0
    shown = page.locator("#plot .textpoint").all_text_contents()[:5]
    assert shown == ["</script><i…", '<a href="ja…', "\\x1b[2J", "\\xd83d", "&lt;b&gt;"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_can_read_it(page: Page, tmp_path: Path, scheme: str) -> None:  # noqa: F811
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    _open(page, AttentionGraph("random", PATTERN, list("abcde")).build(), tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
