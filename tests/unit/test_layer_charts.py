"""Charts of the layers suite: from the stored run alone, what titles say is in the data, hostile tokens are text."""

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
MODELS = ("m-<b>F16", "m-<i>Q8", "m-<i>Q4")
BY_LAYER = (
    "attn_share", "mlp_share", "direct_attn", "direct_mlp", "layer_importance", "layer_kl_left", "resid_cka",
    "attn_norm_gain", "mlp_norm_gain", "resid_norm", "lens_agreement",
)  # fmt: skip


def _row(model: str, metric: str, layer: int | None, **more: Any) -> dict[str, Any]:
    row = {"model": model, "metric": metric, "layer": layer, "value": 0.1 * (layer or 0) + 0.1, "se": 0.01, "n": 8}
    return row | {"prompt": None, "head": None, "detail": "<i>where</i>"} | more


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    models = [
        {"name": name, "bytes": 300 - place, "reference": not place, "order": place}
        for place, name in enumerate(MODELS)
    ]
    estimates: list[dict[str, Any]] = []
    arrays = []
    for model in models:
        place, name = int(str(model["order"])), str(model["name"])
        text = np.array(TOKENS)
        values = np.linspace(0.001, 1, LAYERS * len(TOKENS), dtype=np.float32).reshape(LAYERS, -1)
        file = f"arrays/{place}.npz"
        cells = np.tile(text, (LAYERS, 1))
        if place == 2:
            cells[2, 3], cells[2, 6], cells[0, 1] = "other", "other", "other"
        drawn: dict[str, Any] = {"text": text, "norm": values * 100, "lens_p": values, "lens_text": cells}
        if place:
            drawn["error_resid_post"] = values * place / 10
        save_arrays(tmp_path / file, drawn)
        arrays.append({"model": name, "name": "layers", "file": file, "description": "States of prompt '<i>'."})
        for metric in BY_LAYER:
            # Not in order, one without an error, and rows that are of something else.
            estimates += [_row(name, metric, layer) for layer in (2, 0)]
            estimates.append(_row(name, metric, 1, se=None))
            estimates.append(_row(name, metric, 1, prompt="p", value=77))
            estimates.append(_row(name, metric, 1, head=3, value=77))
            estimates.append(_row(name, metric, None, value=77))
    return {"models": models, "estimates": estimates, "arrays": arrays, "reference": MODELS[0]}


def _charts(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    charts = {chart["id"]: chart for chart in layers_charts(RunView(run), folder)}
    json.dumps(charts, allow_nan=False)
    return charts


def _values(run: dict[str, Any], model: str, metric: str, values: list[float]) -> None:
    """Replace the rows of a model's metric."""
    run["estimates"] = [row for row in run["estimates"] if (row["model"], row["metric"]) != (model, metric)]
    run["estimates"] += [_row(model, metric, layer, value=value) for layer, value in enumerate(values)]


def test_lines_are_the_stored_rows_in_order(run: dict[str, Any], tmp_path: Path) -> None:
    charts = _charts(run, tmp_path)
    assert list(charts) == [
        "layer-errors", "layer-patching", "layer-contributions", "layer-states", "layer-token-norms", "logit-lens",
        "lens-by-layer", "layer-norm-gains", "layer-stream",
    ]  # fmt: skip
    (panel,) = charts["layer-errors"]["figures"]
    assert panel["name"] == "CKA"
    for line in panel["data"]["lines"]:
        assert [point[0] for point in line["points"]] == [0, 1, 2]
        assert [point[1] for point in line["points"]] == pytest.approx([0.1, 0.2, 0.3])
        assert [point[2] for point in line["points"]] == [0.01, None, 0.01]
        assert line["points"][0][3] == "<i>where</i>; n = 8"


def test_no_two_models_look_alike(run: dict[str, Any], tmp_path: Path) -> None:
    """In every panel of lines: a role and a place in the order of candidates, of which no two are the same."""
    for chart in _charts(run, tmp_path).values():
        for panel in chart["figures"]:
            if chart["view"] == "lines":
                models = panel["data"]["models"]
                looks = [(model["role"], model["series"]) for model in models]
                assert len(set(looks)) == len(looks) == len({line["model"] for line in panel["data"]["lines"]})


def test_the_title_says_where_the_error_grows(run: dict[str, Any], tmp_path: Path) -> None:
    _values(run, MODELS[1], "resid_relative_error", [0.01, 0.02, 0.03])
    _values(run, MODELS[2], "resid_relative_error", [0.1, 0.2, 0.234])
    _values(run, MODELS[2], "error_amplification", [9.0, 2.0, 1.17])
    chart = _charts(run, tmp_path)["layer-errors"]
    assert chart["title"] == "<i>Q4's error reaches 23 % after layer 2; it doubles in layer 1"
    assert chart["table"][1] == [["m-<i>Q8", "3.0 %", ""], ["m-<i>Q4", "23 %", "2 times in layer 1"]]
    _values(run, MODELS[2], "error_amplification", [9.0, 1.1, 1.17])
    title = _charts(run, tmp_path)["layer-errors"]["title"]
    assert title.endswith("; it grows most in layer 2, 1.17-fold")


def test_logarithms_only_of_what_is_positive(run: dict[str, Any], tmp_path: Path) -> None:
    _values(run, MODELS[1], "resid_relative_error", [0.01, 0.02, 0.03])
    (panel, _) = _charts(run, tmp_path)["layer-errors"]["figures"]
    assert panel["data"]["y"] == {"label": "resid error", "log": True, "percent": True}
    _values(run, MODELS[2], "resid_relative_error", [0.0, 0.02, 0.03])
    (panel, _) = _charts(run, tmp_path)["layer-errors"]["figures"]
    assert panel["data"]["y"] == {"label": "resid error", "percent": True}


def test_patching_says_what_causes_the_loss(run: dict[str, Any], tmp_path: Path) -> None:
    _values(run, MODELS[2], "layer_kl_left", [0.7, 0.2, 0.1])
    chart = _charts(run, tmp_path)["layer-patching"]
    assert chart["title"] == "Layer 1 causes 50 % of <i>Q4's divergence; skipping layer 2 costs most, 0.3 nats"
    run["estimates"].append(_row(MODELS[2], "embed_kl_left", None, value=0.2))
    _values(run, MODELS[2], "layer_kl_left", [0.15, 0.1, 0.1])
    chart = _charts(run, tmp_path)["layer-patching"]
    assert chart["title"].startswith("The embeddings cause 80 % of <i>Q4's divergence")
    panel = chart["figures"][0]["data"]
    line = next(line for line in panel["lines"] if line["name"] == MODELS[2])
    assert [point[:2] for point in line["points"]] == [[-1, 0.2], [0, 0.15], [1, 0.1], [2, 0.1]]
    assert panel["x"]["ticks"] == [[-1, "embed"], [0, "0"], [1, "1"], [2, "2"]]


def test_layers_that_were_left_out_are_no_cause(run: dict[str, Any], tmp_path: Path) -> None:
    """With --gguf-layers=0,2 the drop at layer 2 is that of two layers."""
    _values(run, MODELS[1], "layer_kl_left", [0.7, 0.2, 0.1])
    _values(run, MODELS[2], "layer_kl_left", [0.7, 0.2, 0.1])
    run["estimates"] = [row for row in run["estimates"] if row["layer"] != 1]
    chart = _charts(run, tmp_path)["layer-patching"]
    assert chart["title"] == "Skipping layer 2 costs most, 0.3 nats"
    # No cause is listed; what stands in for it are the numbers of the picture.
    assert chart["table"][0][0] == "layer"


def test_the_stream_jumps(run: dict[str, Any], tmp_path: Path) -> None:
    _values(run, MODELS[0], "resid_norm", [49.0, 55.0, 22_712.5])
    assert _charts(run, tmp_path)["layer-stream"]["title"] == (
        "The stream's norm grows from 49 to 22,700 between layers 0 and 2"
    )
    _values(run, MODELS[0], "resid_growth", [46.0, 1.1, 413.0])
    title = _charts(run, tmp_path)["layer-stream"]["title"]
    assert title.endswith("; layer 2 makes it 413 times as long")


def test_forty_layers_have_few_ticks(run: dict[str, Any], tmp_path: Path) -> None:
    _values(run, MODELS[2], "layer_kl_left", [1 - layer / 50 for layer in range(40)])
    ticks = _charts(run, tmp_path)["layer-patching"]["figures"][0]["data"]["x"]["ticks"]
    assert ticks[:3] == [[-1, "embed"], [5, "5"], [10, "10"]]
    assert len(ticks) <= 10


def test_attention_and_mlp_side_by_side_with_the_reference(run: dict[str, Any], tmp_path: Path) -> None:
    _values(run, MODELS[2], "direct_mlp", [0.1, 0.2, 0.05])
    chart = _charts(run, tmp_path)["layer-contributions"]
    panels = {panel["name"]: panel["data"] for panel in chart["figures"]}
    assert list(panels) == ["logits", "logits: change", "size", "size: change"]
    lines = panels["logits"]["lines"]
    assert [(line["name"], line["group"]) for line in lines] == [
        (model, group) for group in ("attention", "MLP") for model in MODELS
    ]
    change = next(
        line for line in panels["logits: change"]["lines"] if (line["name"], line["group"]) == (MODELS[2], "MLP")
    )
    assert [point[1] for point in change["points"]] == pytest.approx([0, 0, -0.25])
    assert change["points"][2][3] == "0.05, the reference 0.3"
    ratios = [point[1] for line in panels["size: change"]["lines"] for point in line["points"]]
    assert ratios == [1.0] * 12
    assert "changes most in layer 2's MLP, by −0.25" in chart["title"]


def test_gains_of_norms(run: dict[str, Any], tmp_path: Path) -> None:
    run["estimates"] += [_row(model, "final_norm_gain", None, value=0.042) for model in MODELS]
    _values(run, MODELS[0], "attn_norm_gain", [5.5, 0.11, 0.08])
    _values(run, MODELS[2], "attn_norm_gain", [5.5, 0.121, 0.08])
    chart = _charts(run, tmp_path)["layer-norm-gains"]
    gains = {(line["name"], line["group"]): line["points"] for line in chart["figures"][0]["data"]["lines"]}
    assert [point[1] for point in gains[MODELS[0], "before attention"]] == [5.5, 0.11, 0.08]
    assert "by 5.5 before attention in layer 0, by 0.08 before attention in layer 2" in chart["title"]
    assert "After the last layer the final norm scales by 0.042." in chart["figures"][0]["meaning"]
    assert [row[1] for row in chart["table"][1]] == ["0.042 ± 0.010"] * 3


def test_tokens_by_layer_on_one_scale(run: dict[str, Any], tmp_path: Path) -> None:
    charts = _charts(run, tmp_path)
    errors, norms = charts["layer-states"], charts["layer-token-norms"]
    assert [panel["name"] for panel in errors["figures"]] == ["<i>Q8", "<i>Q4"]
    assert [panel["name"] for panel in norms["figures"]] == ["<b>F16", "<i>Q8", "<i>Q4"]
    for chart in (errors, norms):
        panels = [panel["data"] for panel in chart["figures"]]
        assert all(panel["scale"] == panels[0]["scale"] for panel in panels)
        values = np.array([panel["values"] for panel in panels])
        assert panels[0]["scale"]["domain"] == [values.min(), values.max()]
        # The first layer is the first row, which the view draws at the top.
        assert panels[0]["y"]["names"] == ["0", "1", "2"]
        assert (values[:, 0] < values[:, 2]).all()
    assert errors["title"] == "<i>Q4 is furthest off at token 7, “\\n”, after layer 2: 20 %"
    assert errors["figures"][0]["data"]["x"]["names"][5:7] == ["a·very·long…", "·the"]
    assert "States of prompt '<i>'." in errors["meaning"]


def test_the_lens_marks_what_differs(run: dict[str, Any], tmp_path: Path) -> None:
    chart = _charts(run, tmp_path)["logit-lens"]
    assert chart["title"] == (
        "<i>Q4 predicts another token than the reference at 2 of 8 places, and in 1 of 16 cells before"
    )
    reference, same, other = (panel["data"] for panel in chart["figures"])
    assert "marked" not in reference
    assert not np.any(same["marked"])
    assert np.argwhere(other["marked"]).tolist() == [[0, 1], [2, 3], [2, 6]]
    assert other["notes"][2][6] == "token “other”, the reference “ the”"
    assert {tuple(panel["scale"]["domain"]) for panel in (reference, same, other)} == {(0, 1)}
    assert np.allclose(reference["values"], np.linspace(0.001, 1, 24).reshape(3, 8), rtol=1e-5)


def test_other_tokens_are_not_compared(run: dict[str, Any], tmp_path: Path) -> None:
    """A model with another tokenizer has other places."""
    from gguf_harness.store.arrays import load_arrays

    arrays = load_arrays(tmp_path / "arrays/2.npz")
    save_arrays(tmp_path / "arrays/2.npz", arrays | {"text": np.array([*TOKENS[:-1], "?"])})
    chart = _charts(run, tmp_path)["logit-lens"]
    assert ["marked" in panel["data"] for panel in chart["figures"]] == [False, True, False]
    assert chart["title"] == "All candidates predict the reference's token at all 8 places"


def test_hostile_tokens_are_text(run: dict[str, Any], tmp_path: Path) -> None:
    """Views put strings in as text; what a terminal or a reader would take for something else is made visible."""
    charts = _charts(run, tmp_path)
    assert "\\u001b" not in json.dumps(charts)
    cells = charts["logit-lens"]["figures"][0]["data"]["cells"]
    assert cells[0] == ["<b>", "&amp;", "%{text}", "</script>", "\\x1b[2J", "a·very·long·token", "·the", "\\n"]


def test_a_run_without_layers_has_no_such_charts(run: dict[str, Any], tmp_path: Path) -> None:
    assert layers_charts(RunView(run | {"estimates": [], "arrays": []}), tmp_path) == []
    # Arrays that are gone are no error.
    gone = [entry | {"file": "arrays/none.npz"} for entry in run["arrays"]]
    charts = _charts(run | {"arrays": gone}, tmp_path)
    assert not {"layer-states", "layer-token-norms", "logit-lens"} & set(charts)
    assert "layer-errors" in charts


def test_a_single_model_has_its_own_charts(run: dict[str, Any], tmp_path: Path) -> None:
    """Without a reference nothing is compared, and what is its own is drawn."""
    alone = run | {
        "models": run["models"][:1],
        "estimates": [row for row in run["estimates"] if row["model"] == MODELS[0]],
        "arrays": run["arrays"][:1],
    }
    charts = _charts(alone, tmp_path)
    assert [panel["name"] for panel in charts["layer-contributions"]["figures"]] == ["logits", "size"]
    assert [panel["name"] for panel in charts["layer-norm-gains"]["figures"]] == ["gain"]
    assert "layer-states" not in charts
