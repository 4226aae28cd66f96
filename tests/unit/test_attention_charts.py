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
from gguf_harness.report.charts.attention_charts import attention_charts
from gguf_harness.report.data import RunView, visible
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


def _decoded(model: dict[str, Any]) -> NDArray[np.float64]:
    """[head, pos, key] of the bytes of a model."""
    heads, side = len(model["heads"]), model["side"]
    codes = np.frombuffer(base64.b64decode(model["weights"]), np.uint8).reshape(heads, -1)
    pattern = np.zeros((heads, side, side))
    rows, columns = np.tril_indices(side)
    pattern[:, rows, columns] = (codes / 255) ** 2
    return pattern


def test_stored_bytes_are_the_patterns(tmp_path: Path) -> None:
    chart = _charts(run_with_attention(tmp_path, 2, 3), tmp_path)["attention-patterns"]
    (panel,) = chart["figures"]
    assert "all of its 8 tokens" in panel["meaning"]
    models = panel["data"]["models"]
    assert [(model["name"], model["role"]) for model in models] == [
        (MODELS[0], "reference"),
        (MODELS[1], "candidate"),
        (MODELS[2], "candidate"),
    ]
    for number, model in enumerate(models):
        assert model["heads"] == [[layer, head] for layer in range(2) for head in range(3)]
        pattern = make_pattern(6, len(TOKENS), number).astype(np.float64)
        # A byte of a square root: half a step of it at most.
        np.testing.assert_allclose(_decoded(model), pattern, atol=1.01 / 255)
        assert np.abs(np.sqrt(_decoded(model)) - np.sqrt(pattern)).max() < 0.51 / 255
        np.testing.assert_allclose(model["first"], pattern[:, 1:, 0].mean(axis=1), atol=5e-4)


def test_the_title_says_how_much_attention_moved(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 2, 3)
    patterns = [make_pattern(6, len(TOKENS), number).astype(np.float64) for number in range(3)]
    moved = [np.abs(patterns[0] - other).sum(axis=2).mean() / 2 for other in patterns[1:]]
    title = _charts(run, tmp_path)["attention-patterns"]["title"]
    worst = ("Q8_0", "Q4_K_M")[int(np.argmax(moved))]
    assert title == f"{worst} moves {100 * max(moved):.2g} % of the attention to other tokens"


def test_the_title_tells_a_sink(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 1, 2, models=MODELS[:1])
    sink = np.zeros((2, 8, 8), dtype=np.float16)
    sink[:, :, 0] = 1
    _save(tmp_path / "0.npz", [(0, 0), (0, 1)], sink, list(TOKENS))
    assert _charts(run, tmp_path)["attention-patterns"]["title"] == "The first token takes 100 % of the attention"


def _save(path: Path, places: list[tuple[int, int]], pattern: NDArray[np.float16], tokens: list[bytes]) -> None:
    arrays = {"kept": np.array(places), "kept_prompts": np.array(["p"]), "pattern_0": pattern}
    save_arrays(path, arrays | {"pieces_0": np.array(tokens, dtype=np.bytes_)})


def test_kept_heads_alone_are_shown(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 2, 2, models=MODELS[:1])
    _save(tmp_path / "0.npz", [(3, 1), (3, 7)], make_pattern(2, 9), [b"a"] * 9)
    (panel,) = _charts(run, tmp_path)["attention-patterns"]["figures"]
    assert panel["data"]["models"][0]["heads"] == [[3, 1], [3, 7]]


def test_other_tokens_of_a_model_are_its_own(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 1, 2, models=MODELS[:2])
    _save(tmp_path / "1.npz", [(0, 0), (0, 1)], make_pattern(2, 5), [b"v"] * 5)
    chart = _charts(run, tmp_path)["attention-patterns"]
    first, second = chart["figures"][0]["data"]["models"]
    assert "tokens" not in first
    assert (second["tokens"], second["side"]) == (["v"] * 5, 5)
    # They cannot be subtracted.
    assert "moves" not in chart["title"]


def test_a_second_prompt_is_shown_if_it_fits(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 1, 2, models=MODELS[:1])
    pieces = {f"pieces_{number}": np.array([b"t"] * 30) for number in range(2)}

    def save(places: list[tuple[int, int]]) -> None:
        patterns = {f"pattern_{number}": make_pattern(len(places), 30, number) for number in range(2)}
        save_arrays(
            tmp_path / "0.npz",
            {"kept": np.array(places), "kept_prompts": np.array(["p", "q"]), **patterns, **pieces},
        )

    save([(0, 0), (0, 1)])
    assert [panel["name"] for panel in _charts(run, tmp_path)["attention-patterns"]["figures"]] == ["p", "q"]
    save([(layer, head) for layer in range(30) for head in range(32)])
    (panel,) = _charts(run, tmp_path)["attention-patterns"]["figures"]
    assert panel["data"]["models"][0]["side"] == 30


def test_tokens_are_text(tmp_path: Path) -> None:
    charts = _charts(run_with_attention(tmp_path, 1, 1), tmp_path)
    tokens = charts["attention-patterns"]["figures"][0]["data"]["tokens"]
    assert len(tokens) == len(TOKENS)
    assert not any(set("\x1b\n") & set(token) for token in tokens)
    assert tokens[2] == visible(HOSTILE)
    run = run_with_attention(tmp_path, 1, 1)
    write_html(run, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert HOSTILE[:9] + "<img" not in page


@pytest.mark.parametrize(
    ("models", "layers", "heads", "tokens", "least"),
    [(9, 5, 8, 39, 39), (3, 30, 9, 39, 39), (3, 32, 32, 64, 20)],
    ids=["eight candidates", "270 heads", "1024 heads"],
)
def test_the_grid_stays_in_its_budget(
    tmp_path: Path, models: int, layers: int, heads: int, tokens: int, least: int
) -> None:
    run = run_with_attention(tmp_path, layers, heads, tuple(b"t%d" % i for i in range(tokens)))
    for number in range(3, models):
        name = f"{MODELS[0]}-{number}"
        run["models"].append(run["models"][1] | {"name": name, "reference": False})
        run["arrays"].append({"model": name, "name": "attention", "file": f"{number % 3}.npz", "description": ""})
    chart = attention_charts(RunView(run), tmp_path)[0]
    (panel,) = chart["figures"]
    assert len(panel["data"]["models"]) == models
    assert len(json.dumps(chart)) < 1.2e6
    side = panel["data"]["models"][0]["side"]
    assert side == len(panel["data"]["tokens"]) >= least
    assert (f"its first {side} tokens of {tokens}" if side < tokens else "all of its") in panel["meaning"]


def test_changes_of_heads_share_a_scale(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 2, 3)
    for row in run["estimates"]:
        if row["metric"] == "attn_cosine" and row["model"] == MODELS[1]:
            row["value"] = 1 - (1 - row["value"]) / 1000
    chart = _charts(run, tmp_path)["attention-moved"]
    near, far = chart["figures"]
    assert (near["name"], far["name"], far["opens"]) == ("Q8_0", "Q4_K_M", True)
    assert near["data"]["scale"] == far["data"]["scale"]
    assert far["data"]["scale"]["domain"] == pytest.approx([0, 6 / 7])
    assert np.array(far["data"]["values"]) == pytest.approx(1 - np.arange(1, 7).reshape(2, 3) / 7)
    assert np.array(near["data"]["values"]) == pytest.approx((1 - np.arange(1, 7).reshape(2, 3) / 7) / 1000)
    assert chart["title"] == "Head 0.0 of Q4_K_M changed most: cosine 0.143 ± 0.010"


def test_layers_are_lines_with_their_errors(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 2, 2)
    base: dict[str, Any] = {"suite": "attention", "test": "t", "reference": MODELS[0], "prompt": None, "head": None}
    base |= {"se_iid": None} | {
        "metric": "attn_k_error",
        "clusters": 3,
        "n": 30,
        "unit": "",
        "better": "lower",
        "detail": None,
    }
    for model, values in ((MODELS[1], (0.01, 0.02)), (MODELS[2], (0.3, 0.1))):
        run["estimates"] += [base | {"model": model, "layer": k, "value": v, "se": 0.004} for k, v in enumerate(values)]
    chart = _charts(run, tmp_path)["attention-layers"]
    assert chart["title"] == "The keys of layer 0 of Q4_K_M are furthest off: by 30 %"
    errors, cosine = (panel["data"] for panel in chart["figures"])
    assert errors["lines"][1]["points"] == [[0, 0.3, 0.004, None], [1, 0.1, 0.004, None]]
    # Means over heads have no error: heads are not independent.
    assert cosine["lines"][0]["points"][0] == [0, pytest.approx(0.3), None, None]


def test_profiles_give_copying_a_scale_of_its_own(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 2, 2, models=MODELS[:1])
    base = next(row for row in run["estimates"] if row["metric"] == "head_induction")
    run["estimates"] += [
        base | {"metric": "head_copy_score", "layer": k, "head": h, "value": k - 0.5 - 0.1 * h, "se": None}
        for k in range(2)
        for h in range(2)
    ]
    charts = _charts(run, tmp_path)
    data = charts["head-profiles"]["figures"][0]["data"]
    assert data["y"]["names"] == ["0.0 other", "0.1 other", "1.0 other", "1.1 other"]
    assert data["x"]["names"] == ["previous token", "induction", "copying"]
    assert [row[2] for row in data["values"]] == pytest.approx([-0.5, -0.6, 0.5, 0.4])
    assert data["scale"]["domain"] == [0, 1]
    assert data["scales"] == [{"kind": "signed", "domain": [-1, 1], "title": "copying", "columns": [2]}]
    assert charts["head-profiles"]["title"] == "What heads do: 4 other"
    lines = charts["head-evolution"]["figures"][0]["data"]["lines"]
    assert [line["name"] for line in lines] == data["x"]["names"]
    assert [point[1] for point in lines[2]["points"]] == pytest.approx([-0.55, 0.45])
    assert charts["head-evolution"]["title"] == "Layer 1 stands out: copying 0.45, mean over its heads"


def test_missing_arrays_and_rows_leave_charts_out(tmp_path: Path) -> None:
    run = run_with_attention(tmp_path, 1, 2)
    (tmp_path / "1.npz").unlink()
    assert len(_charts(run, tmp_path)["attention-patterns"]["figures"][0]["data"]["models"]) == 2
    for number in (0, 2):
        (tmp_path / f"{number}.npz").unlink()
    assert "attention-patterns" not in _charts(run, tmp_path)
    run["estimates"] = []
    assert not {"attention-moved", "attention-layers", "head-profiles"} & set(_charts(run, tmp_path))
