"""Charts of the layers suite: from the stored run alone, hostile tokens and names are text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.report.charts.layers_charts import layers_charts
from gguf_harness.report.data import RunView
from gguf_harness.store.arrays import save_arrays

TOKENS = ["<b>", "&amp;", "%{text}", "</script>", "\x1b[2J", "a very long token", " the", "\\n"]
LAYERS = 3


def _row(model: str, metric: str, layer: int | None, **more: Any) -> dict[str, Any]:
    row = {"model": model, "metric": metric, "layer": layer, "value": 0.1 * (layer or 0) + 0.1, "se": 0.01, "n": 8}
    return row | {"prompt": None, "head": None, "detail": "<i>where</i>"} | more


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    models = [
        {"name": name, "bytes": size, "reference": not place, "order": place}
        for place, (name, size) in enumerate((("m-<b>F16", 200), ("m-<i>Q4", 100)))
    ]
    estimates = []
    arrays = []
    for model in models:
        text = np.array(TOKENS)
        values = np.linspace(0, 1, LAYERS * len(TOKENS), dtype=np.float32).reshape(LAYERS, -1)
        file = f"arrays/{model['order']}.npz"
        cells = np.tile(text, (LAYERS, 1))
        drawn: dict[str, Any] = {"text": text, "norm": values, "lens_p": values, "lens_text": cells}
        if model["order"]:
            drawn["error_resid_post"] = values
        save_arrays(tmp_path / file, drawn)
        arrays.append({"model": model["name"], "name": "layers", "file": file, "description": ""})
        for metric in ("attn_share", "mlp_share", "direct_attn", "direct_mlp", "layer_importance", "resid_cka"):
            # Not in order, one without an error, and rows that are of something else.
            estimates += [_row(str(model["name"]), metric, layer) for layer in (2, 0)]
            estimates.append(_row(str(model["name"]), metric, 1, se=None))
            estimates.append(_row(str(model["name"]), metric, 1, prompt="p", value=77))
            estimates.append(_row(str(model["name"]), metric, None, value=77))
    return {"models": models, "estimates": estimates, "arrays": arrays}


def test_charts_of_a_stored_run(run: dict[str, Any], tmp_path: Path) -> None:
    charts = {chart["id"]: chart for chart in layers_charts(RunView(run), tmp_path)}
    assert list(charts) == ["layer-errors", "layer-patching", "layer-contributions", "layer-states", "logit-lens"]
    (curve, _) = charts["layer-errors"]["figures"][0]["traces"]
    assert curve["x"] == [0, 1, 2]
    assert curve["y"] == pytest.approx([0.1, 0.2, 0.3])
    assert curve["error_y"]["array"] == [0.01, 0, 0.01]
    assert [figure["name"] for figure in charts["layer-states"]["figures"]] == [
        "<i>Q4: error",
        "<b>F16: norm",
        "<i>Q4: norm",
    ]
    assert len(charts["layer-contributions"]["figures"]) == 4
    (lens, _) = charts["logit-lens"]["figures"]
    assert np.shape(lens["traces"][0]["z"]) == (LAYERS, len(TOKENS))
    assert lens["traces"][0]["text"][0][5:] == ["a·very·l…", "·the", "\\n"]


def test_nothing_that_plotly_draws_is_markup(run: dict[str, Any], tmp_path: Path) -> None:
    """Names of figures are buttons of the page, which escapes them; all else goes to Plotly."""
    for chart in layers_charts(RunView(run), tmp_path):
        drawn = json.dumps([[figure["traces"], figure["layout"]] for figure in chart["figures"]])
        plain = drawn.replace("<b>m", "").replace("<extra></extra>", "").replace("<br>", "")
        # Our own: a bold name, line breaks.
        plain = plain.replace('"<b>', '"').replace("</b>,", ",")
        assert "<" not in plain, plain[plain.index("<") - 40 :][:80]
        assert "\x1b" not in json.loads(json.dumps(drawn))
    lens = layers_charts(RunView(run), tmp_path)[-1]["figures"][0]["traces"][0]
    assert lens["text"][0][:5] == ["&lt;b&gt;", "&amp;amp;", "%{text}", "&lt;/script&gt;", "\\x1b[2J"]


def test_a_run_without_layers_has_no_such_charts(run: dict[str, Any], tmp_path: Path) -> None:
    assert layers_charts(RunView(run | {"estimates": [], "arrays": []}), tmp_path) == []
    # Arrays that are gone are no error.
    gone = [entry | {"file": "arrays/none.npz"} for entry in run["arrays"]]
    charts = layers_charts(RunView(run | {"arrays": gone}), tmp_path)
    assert [chart["id"] for chart in charts] == ["layer-errors", "layer-patching", "layer-contributions"]
