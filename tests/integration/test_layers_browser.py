"""Layers, drift, weights and structure in a real browser: what is drawn is what is stored, and names are text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.errors import visible
from gguf_harness.store.arrays import save_arrays
from tests.integration.report_pages import browser, open_report, page, see, shown, stored_run
from tests.unit.test_report import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.integration.report_pages import OpenReport

pytestmark = pytest.mark.browser

__all__ = ["browser", "open_report", "page"]

LAYERS = 30
TOKENS = [HOSTILE, "<b>bold</b>", "&amp;", " the", *(f"t{place}" for place in range(20))]
KINDS = ("attn_norm", "attn_q", "attn_output", "ffn_down")
REFERENCE, FIRST, LAST = "smollm2-135m-F16", "smollm2-135m-Q8_0", "smollm2-135m-IQ3_XS"


def _states(scale: float) -> NDArray[np.float32]:
    """Grows from layer to layer, and differs between tokens."""
    layers, tokens = np.arange(1, LAYERS + 1)[:, None], np.arange(1, len(TOKENS) + 1)
    return np.asarray(scale * layers * (1 + tokens % 7), dtype=np.float32)


def _layers_of(place: int) -> dict[str, NDArray[Any]]:
    cells = np.tile(np.array(TOKENS), (LAYERS, 1))
    if place:
        cells[4, 2], cells[29, 5] = "other", "</script>"
    drawn: dict[str, NDArray[Any]] = {
        "text": np.array(TOKENS),
        "norm": _states(3.0 + place),
        "lens_p": _states(1 / 240),
        "lens_text": cells,
    }
    return drawn | ({"error_resid_post": _states(1e-4 * place)} if place else {})


def _weights_of(place: int) -> dict[str, NDArray[Any]]:
    names = ["token_embd.weight", *(f"blk.{layer}.{kind}.weight" for layer in range(LAYERS) for kind in KINDS)]
    count = len(names)
    exact = np.array(["norm" in name for name in names])
    errors = np.where(exact, 0.0, 0.001 * place * (1 + np.arange(count) % 9))
    return {
        "tensor": np.array(names),
        "role": np.array(["token_embd", *(KINDS * LAYERS)]),
        "layer": np.array([-1, *np.repeat(np.arange(LAYERS), len(KINDS))]),
        "type": np.where(exact, "F32", ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K"][place % 5]),
        "reference_type": np.where(exact, "F32", "F16"),
        "weights": np.where(exact, 576, 331_776),
        "bits": np.where(exact, 32.0, 9.0 - place),
        "relative_rmse": errors,
        "max_error": errors,
        "cosine": 1 - errors,
        "snr_db": np.where(exact, np.nan, 20.0),
        "outlier_share": 0 * errors,
        "largest_sigmas": 5 + 0 * errors,
    }


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """Six models with 30 layers: rows by layer, states by token, and errors of tensors."""
    content = stored_run()
    content["arrays"] = []
    names = [model["name"] for model in content["models"]]
    names.sort(key=lambda name: name != REFERENCE)
    base = content["estimates"][0] | {"head": None, "prompt": None, "detail": None, "se": 0.001}
    for place, name in enumerate(names):
        save_arrays(tmp_path / f"layers-{place}.npz", _layers_of(place))
        content["arrays"].append({"model": name, "name": "layers", "file": f"layers-{place}.npz", "description": ""})
        if place:
            save_arrays(tmp_path / f"weights-{place}.npz", _weights_of(place))
            entry = {"model": name, "name": "weight_errors", "file": f"weights-{place}.npz", "description": ""}
            content["arrays"].append(entry)
        metrics = {"direct_attn": 0.5, "direct_mlp": -0.3, "resid_norm": 40.0}
        metrics |= {"resid_relative_error": 0.0045 * place, "weight_relative_rmse": 0.02 * place} if place else {}
        content["estimates"] += [
            base | {"model": name, "metric": metric, "layer": layer, "value": value * (1 + layer / 10) + 0.001 * place}
            for metric, value in metrics.items()
            for layer in range(LAYERS)
        ]
    return content


def _stored(run: dict[str, Any], metric: str, model: str) -> list[list[float]]:
    return [
        [row["layer"], row["value"], row["se"]]
        for row in run["estimates"]
        if (row["metric"], row["model"]) == (metric, model) and row.get("layer") is not None
    ]


def _choose(page: Page, chart: str, panel: str) -> None:
    page.locator(f"#{chart} > .tabs button", has_text=panel).click()


def _apart(boxes: list[dict[str, float]]) -> bool:
    """Whether no two boxes of text cover each other."""
    return not any(
        one["x"] < other["x"] + other["width"]
        and other["x"] < one["x"] + one["width"]
        and one["y"] < other["y"] + other["height"]
        and other["y"] < one["y"] + one["height"]
        for place, one in enumerate(boxes)
        for other in boxes[place + 1 :]
    )


def _boxes(page: Page, selector: str) -> list[dict[str, float]]:
    """Where elements are; text without the room above and below its letters."""
    boxes: list[dict[str, float]] = page.evaluate(
        """selector => [...document.querySelectorAll(selector)].map(element => {
            const { x, y, width, height } = element.getBoundingClientRect();
            return { x, y: y + 0.2 * height, width, height: 0.6 * height };
        })""",
        selector,
    )
    return boxes


def _frame_top(page: Page, chart: str) -> float:
    box = page.locator(f"#{chart} .view > svg").bounding_box()
    assert box is not None
    return box["y"]


@pytest.mark.parametrize("width", [1280, 390])
def test_lines_are_the_rows_and_can_be_read(
    page: Page, open_report: OpenReport, run: dict[str, Any], tmp_path: Path, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    open_report(run, tmp_path)
    see(page, "layer-errors")
    lines = shown(page, "layer-errors")["lines"]
    assert len(lines) == 5
    for line in lines:
        assert [point[:3] for point in line["points"]] == _stored(run, "resid_relative_error", line["name"])
    assert len({(line["color"], line["symbol"]) for line in lines}) == 5
    # The highest tick, 10 %, is above all points: the axis reaches to it, below the room for its label.
    texts = "#layer-errors .view > svg text"
    top = _boxes(page, texts)[page.locator(texts).all_text_contents().index("10")]
    assert top["y"] + top["height"] / 2 > _frame_top(page, "layer-errors") + 20
    # The toolbar, the names of models and the picture follow each other.
    see(page, "layer-contributions")
    tabs, names, picture = (
        _boxes(page, f"#layer-contributions {part}")[0] for part in (".tabs", ".models", ".view > svg")
    )
    assert tabs["y"] + tabs["height"] < names["y"] < names["y"] + names["height"] < picture["y"]
    ticks = _boxes(page, "#layer-contributions .view > svg text")
    assert len(ticks) > 10
    assert _apart(ticks)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_reference_is_beside_all_candidates(
    page: Page, open_report: OpenReport, run: dict[str, Any], tmp_path: Path
) -> None:
    """Attention and MLP with the same axes, in one picture with every model; a panel shows the changes alone."""
    open_report(run, tmp_path)
    see(page, "layer-contributions")
    drawn = shown(page, "layer-contributions")
    lines = {(line["name"], line["group"]): line for line in drawn["lines"]}
    assert len(lines) == 12
    for group, metric in (("attention", "direct_attn"), ("MLP", "direct_mlp")):
        assert [point[:3] for point in lines[REFERENCE, group]["points"]] == _stored(run, metric, REFERENCE)
        assert lines[REFERENCE, group]["color"] == "var(--reference)"
        assert lines[LAST, group]["color"] != "var(--reference)"
    assert drawn["log"] is False
    _choose(page, "layer-contributions", "change")
    changed = shown(page, "layer-contributions")["lines"]
    ours, theirs = (np.array(_stored(run, "direct_mlp", name))[:, 1] for name in (FIRST, REFERENCE))
    line = next(line for line in changed if (line["name"], line["group"]) == (FIRST, "MLP"))
    assert np.allclose([point[1] for point in line["points"]], ours - theirs)


@pytest.mark.parametrize("width", [1280, 390])
def test_tokens_by_layer_from_the_top_on_one_scale(
    page: Page, open_report: OpenReport, run: dict[str, Any], tmp_path: Path, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    open_report(run, tmp_path)
    see(page, "layer-states")
    first = shown(page, "layer-states")
    places = {entry["model"]: entry["file"][7] for entry in run["arrays"] if entry["name"] == "layers"}
    assert np.allclose(first["values"], _states(1e-4 * int(places[FIRST])), rtol=1e-5)
    _choose(page, "layer-states", "IQ3_XS")
    last = shown(page, "layer-states")
    assert np.allclose(last["values"], _states(1e-4 * int(places[LAST])), rtol=1e-5)
    assert first["domain"] == last["domain"] == pytest.approx([1e-4, 0.0001 * 5 * 30 * 7])
    tiles = _boxes(page, "#layer-states svg rect")
    assert len(tiles) == LAYERS * len(TOKENS)
    # Rows come in the order of layers, downwards, and tiles are no stripes.
    assert tiles[0]["y"] < tiles[-1]["y"]
    assert 0.4 < tiles[0]["width"] / (tiles[0]["height"] / 0.6) < 4
    rows = page.locator("#layer-states svg g text").all_text_contents()
    assert rows.index("0") < rows.index("28")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_lens_shows_tokens_as_text_and_marks_others(
    page: Page, open_report: OpenReport, run: dict[str, Any], tmp_path: Path
) -> None:
    open_report(run, tmp_path)
    see(page, "logit-lens")
    assert shown(page, "logit-lens")["marked"] is None
    _choose(page, "logit-lens", "IQ3_XS")
    drawn = shown(page, "logit-lens")
    assert drawn["cells"][0][:4] == [visible(HOSTILE).replace(" ", "·"), "<b>bold</b>", "&amp;", "·the"]
    assert drawn["cells"][29][5] == "</script>"
    assert np.argwhere(drawn["marked"]).tolist() == [[4, 2], [29, 5]]
    assert drawn["domain"] == [0, 1]
    assert page.locator("#logit-lens svg g[fill=none] > rect").count() == 2
    texts = page.locator("#logit-lens svg text").all_text_contents()
    assert "&amp;" in texts
    assert "·the" in texts
    assert page.locator("#layers img, #layers b").count() == 0


def test_the_structure_by_type_size_and_error(
    page: Page, open_report: OpenReport, run: dict[str, Any], tmp_path: Path
) -> None:
    open_report(run, tmp_path)
    see(page, "structure")
    reference = shown(page, "structure")
    assert reference["colour"] == "type"
    assert {(tensor["type"], tensor["value"]) for tensor in reference["tensors"]} == {("F16", 16), ("F32", 32)}
    page.locator("#structure .view .tabs button", has_text="error").press("Enter")
    assert {tensor["value"] for tensor in shown(page, "structure")["tensors"]} == {None}
    assert "This is the reference" in page.inner_text("#structure .view")
    _choose(page, "structure", "IQ3_XS")
    # What the colours say stays chosen.
    drawn = shown(page, "structure")
    assert drawn["colour"] == "error"
    place = next(
        entry["file"][8] for entry in run["arrays"] if (entry["name"], entry["model"]) == ("weight_errors", LAST)
    )
    stored = _weights_of(int(place))
    assert [tensor["name"] for tensor in drawn["tensors"]] == stored["tensor"].tolist()
    assert np.allclose([tensor["value"] for tensor in drawn["tensors"]], stored["relative_rmse"])
    assert np.allclose([tensor["bytes"] for tensor in drawn["tensors"]], stored["weights"] * stored["bits"] / 8)
    assert len({tensor["color"] for tensor in drawn["tensors"]}) > 5
    assert page.locator("#structure svg g:not([fill=none]) > rect").count() == len(stored["tensor"])
    page.locator("#structure svg rect").nth(5).hover(force=True)
    assert "blk.1.attn_q.weight" in "".join(page.locator("#structure svg text").all_text_contents())


def test_weights_and_drift_are_the_stored_numbers(
    page: Page, open_report: OpenReport, run: dict[str, Any], tmp_path: Path
) -> None:
    open_report(run, tmp_path)
    see(page, "drift")
    lines = {(line["name"], line["group"]): line["points"] for line in shown(page, "drift")["lines"]}
    assert len(lines) == 10
    for group, metric in (
        ("weights of the layer", "weight_relative_rmse"),
        ("the stream after it", "resid_relative_error"),
    ):
        assert [point[:3] for point in lines[LAST, group]] == _stored(run, metric, LAST)
    assert shown(page, "drift")["log"] is True
    see(page, "weights")
    drawn = shown(page, "weights")
    place = next(
        entry["file"][8] for entry in run["arrays"] if (entry["name"], entry["model"]) == ("weight_errors", FIRST)
    )
    errors = _weights_of(int(place))["relative_rmse"]
    assert np.allclose(np.array(drawn["values"][:LAYERS])[:, :3].astype(float), errors[1:].reshape(LAYERS, 4)[:, 1:])
    assert drawn["values"][LAYERS] == [None, None, None, pytest.approx(errors[0])]
    assert drawn["domain"] == pytest.approx([0.001, 0.045])
