"""A run as large as eight candidates measured by five suites: a value for each metric, wherever it is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf_harness.metrics.registry import METRICS, depth, kv, kv_cache, lora
from tests.unit.test_attention_charts import run_with_attention
from tests.unit.test_report import STORED

__all__ = ["large_run"]

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")
_LAYERS, _HEADS, _PROMPTS, _TESTS = 5, 8, 24, 120

_OF_OTHERS = {metric.name for family in (kv_cache, depth, kv, lora) for metric in family.METRICS}
"""Of suites/kv and suites/lora, which are about other subjects than candidates."""


def large_run(folder: Path) -> dict[str, Any]:
    """Rows, arrays, gates, tests and texts of a reference and eight candidates with 40 heads; arrays go to a folder."""
    stored: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    reference = next(model for model in stored["models"] if model["reference"])
    others = [model for model in stored["models"] if not model["reference"]]
    candidates = [
        others[place % len(others)] | {"name": f"large-{kind}", "bytes": 9_000_000 - 700_000 * place, "order": place}
        for place, kind in enumerate(TYPES)
    ]
    models = [reference | {"name": "large-F16", "bytes": 18_000_000}, *candidates]
    names = [model["name"] for model in models]
    tokens = tuple(f" token{place}".encode() for place in range(48))
    attention = run_with_attention(folder, _LAYERS, _HEADS, tokens, tuple(names))
    run = stored | {"models": models, "reference": names[0], "arrays": attention["arrays"], "heads": attention["heads"]}
    run["estimates"] = [row for place, name in enumerate(names) for row in _rows(name, place)]
    run["gates"] = [
        stored["gates"][0] | {"model": name, "metric": metric}
        for name in names[1:]
        for metric in ("kld_mean", "same_top", "ppl_ratio", "attn_cosine", "delta_p_rms", "kld_p99", "tg_tokens_per_s")
    ]
    run["tests"] = [
        stored["tests"][0] | {"id": f"suites/quant/test_x.py::test_x[{name}-{number}]", "model": name}
        for name in names
        for number in range(_TESTS)
    ]
    text = {"given": "Once", "text": "there was a file. " * 6, "tokens": 32, "templated": None, "problem": None}
    run["texts"] = [text | {"model": name, "prompt": f"prompt-{n}"} for n in range(_PROMPTS) for name in names]
    return run


def _rows(model: str, place: int) -> list[dict[str, Any]]:
    rows = []
    for metric in METRICS.values():
        if metric.name in _OF_OTHERS:
            continue
        low, high = (end if abs(end) < 1e6 else None for end in metric.values)
        middle = 0.5 if low is None or high is None else (low + high) / 2
        row = {
            "suite": "quant", "test": "t", "model": model, "reference": "large-F16", "metric": metric.name,
            "value": middle * (1 - place / 20), "se": 0.01, "se_iid": 0.008, "clusters": 16, "n": 4080,
            "unit": metric.unit, "better": metric.better, "prompt": None, "layer": None, "head": None, "part": None,
            "detail": None, "low": None, "high": None, "doubt": None,
        }  # fmt: skip
        rows.append(row)
        if "layer" in metric.parts:
            rows += [row | {"layer": layer} for layer in range(_LAYERS)]
        if "head" in metric.parts:
            rows += [row | {"layer": layer, "head": head} for layer in range(_LAYERS) for head in range(_HEADS)]
        if "prompt" in metric.parts:
            rows += [row | {"prompt": f"prompt-{number}"} for number in range(_PROMPTS)]
    return rows
