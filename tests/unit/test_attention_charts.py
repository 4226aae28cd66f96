"""Charts of attention, from a stored run: what they show, how large they get, and what tokens cannot do to them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.report.charts import build_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.store.arrays import save_arrays
from tests.unit.test_report import HOSTILE, STORED

MODELS = ("smollm2-135m-F16", "smollm2-135m-Q8_0", "smollm2-135m-Q4_K_M")
TOKENS = (b"<bos>", b" the", HOSTILE.encode(), b"\xf0\x9f", b"\n", b"%{x}<b>", b" the", b"&lt;")


def make_pattern(heads: int, n: int, seed: int = 0) -> NDArray[np.float16]:
    """[head, pos, key] of a causal model, random."""
    weights = np.tril(np.random.default_rng(seed).random((heads, n, n)))
    pattern: NDArray[np.float16] = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float16)
    return pattern


def run_with_attention(
    folder: Path, layers: int, heads: int, tokens: tuple[bytes, ...] = TOKENS, models: tuple[str, ...] = MODELS
) -> dict[str, Any]:
    """The stored run with attention of some of its models, of arrays in a folder."""
    run: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    run["arrays"], run["heads"] = [], []
    for number, model in enumerate(models):
        arrays = {
            "kept": np.array(places),
            "kept_prompts": np.array([HOSTILE]),
            "pattern_0": make_pattern(len(places), len(tokens), number),
            "pieces_0": np.array(tokens, dtype=np.bytes_),
        }
        save_arrays(folder / f"{number}.npz", arrays)
        run["arrays"].append({"model": model, "name": "attention", "file": f"{number}.npz", "description": ""})
        run["heads"] += [{"model": model, "layer": k, "head": h, "kind": "other", "reason": ""} for k, h in places]
        base = {"suite": "attention", "test": "t", "model": model, "reference": MODELS[0], "prompt": None}
        rest = {"se": 0.01, "se_iid": None, "clusters": 3, "n": 30, "unit": "", "better": "higher", "detail": None}
        for place, (layer, head) in enumerate(places):
            for metric in ("attn_cosine", "head_previous_token", "head_induction"):
                row = {"layer": layer, "head": head, "metric": metric, "value": (place + 1) / (len(places) + 1)}
                run["estimates"].append(base | row | rest)
    return run


def _charts(run: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    return {chart["id"]: chart for charts in build_charts(RunView(run), folder).values() for chart in charts}


def test_tiles_are_the_patterns(tmp_path: Path) -> None:
    charts = _charts(run_with_attention(tmp_path, 2, 3), tmp_path)
    figures = charts["attention"]["figures"]
    assert [figure["name"] for figure in figures] == list(MODELS)
    n, step = len(TOKENS), len(TOKENS) + 1
    for number, figure in enumerate(figures):
        assert (figure["zoom"]["layers"], figure["zoom"]["heads"], figure["zoom"]["side"]) == ([0, 1], [0, 1, 2], n)
        z = figure["traces"][0]["z"]
        rows, columns = (int(side) for side in z["shape"].split(","))
        tiles = np.frombuffer(base64.b64decode(z["bdata"]), np.uint8).reshape(rows, columns)
        assert (rows, columns) == (2 * step, 3 * step)
        pattern = make_pattern(6, n, number).astype(np.float64).reshape(2, 3, n, n)
        for layer, head in np.ndindex(2, 3):
            tile = tiles[layer * step : layer * step + n, head * step : head * step + n]
            # A byte of a square root: half a step of it at most.
            np.testing.assert_allclose((tile / 255) ** 2, pattern[layer, head], atol=1.01 / 255)
        assert not tiles[n::step].any()
        assert not tiles[:, n::step].any()
    moved = charts["attention-moved"]["figures"]
    assert [figure["name"] for figure in moved] == list(MODELS[1:])
    assert np.array(moved[0]["traces"][0]["z"]) == pytest.approx(np.arange(1, 7).reshape(2, 3) / 7)
    profiles = charts["head-profiles"]["figures"][0]["traces"][0]
    assert profiles["y"] == [f"{layer}.{head} other" for layer in range(2) for head in range(3)]
    assert profiles["x"] == ["previous token", "induction"]


def test_kept_heads_alone_are_shown(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 2, 2, models=MODELS[:1])
    save_arrays(
        tmp_path / "0.npz",
        {
            "kept": np.array([(3, 1), (3, 7)]),
            "kept_prompts": np.array(["p"]),
            "pattern_0": make_pattern(2, 9),
            "pieces_0": np.array([b"a"] * 9),
        },
    )
    (figure,) = _charts(run, tmp_path)["attention"]["figures"]
    assert (figure["zoom"]["layers"], figure["zoom"]["heads"]) == ([3], [1, 7])
    assert figure["layout"]["xaxis"]["ticktext"] == ["1", "7"]


def test_tokens_are_text(tmp_path: Path) -> None:
    charts = _charts(run_with_attention(tmp_path, 1, 1), tmp_path)
    tokens = charts["attention"]["figures"][0]["zoom"]["tokens"]
    assert len(tokens) == len(TOKENS)
    assert not any(set("<>\x1b\n") & set(token) for token in tokens)
    assert tokens[-1] == "&amp;lt;"
    run = run_with_attention(tmp_path, 1, 1)
    write_html(run, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page.replace("plotly", "")[page.index("<main") : page.index("<main") + 10**6]
    assert HOSTILE[:9] + "<img" not in page


def test_many_heads_stay_small(tmp_path: Path) -> None:
    """32 x 32 heads of three models, over 200 tokens."""
    run = run_with_attention(tmp_path, 32, 32, tuple(b"t%d" % i for i in range(200)))
    charts = _charts(run, tmp_path)
    sizes = {name: len(json.dumps(charts[name])) for name in ("attention", "attention-moved", "head-profiles")}
    assert sizes["attention"] < 6e6
    assert sizes["attention-moved"] < 1e6
    assert sizes["head-profiles"] < 1e6
    for name in sizes:
        assert all(figure["height"] <= 4000 for figure in charts[name]["figures"])
    assert charts["attention"]["figures"][0]["zoom"]["side"] == len(charts["attention"]["figures"][0]["zoom"]["tokens"])


def test_missing_arrays_and_rows_leave_charts_out(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 1, 2)
    (tmp_path / "1.npz").unlink()
    assert len(_charts(run, tmp_path)["attention"]["figures"]) == 2
    for number in (0, 2):
        (tmp_path / f"{number}.npz").unlink()
    assert "attention" not in _charts(run, tmp_path)
    run["estimates"] = []
    assert not {"attention-moved", "attention-layers", "head-profiles"} & set(_charts(run, tmp_path))
