"""What stands behind the headline of a report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gguf_harness.report.answer import answer_of, noise_of
from gguf_harness.report.data import RunView
from tests.unit.test_report import STORED


@pytest.fixture
def run() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return content


def _says(run: dict[str, Any], asks: str) -> str:
    return next((fact.says for fact in answer_of(RunView(run)) if fact.asks == asks), "")


def _gate(model: str, metric: str, value: float, bound: float, limit: float, **more: Any) -> dict[str, Any]:
    better = more.pop("better", "lower")
    return {
        "test": "t", "suite": "quant", "model": model, "metric": metric, "value": value, "limit": limit,
        "better": better, "confidence": 0.95, "bound": bound, "verdict": "pass", "detail": f"{metric} is {value}",
        "layer": None, "head": None, "part": None, "prompt": None, "p_value": 0.0, "p_adjusted": 0.0,
        "verdict_adjusted": "pass",
    } | more  # fmt: skip


def test_the_tightest_margin_is_in_widths_of_the_error(run: dict[str, Any]) -> None:
    """KL is 10 widths from its limit, same top 2, though it is nearer in its own unit."""
    model = "smollm2-135m-Q4_K_M"
    run["gates"] = [
        _gate(model, "kld_mean", 0.02, 0.021, 0.03),
        _gate(model, "same_top", 0.90, 0.85, 0.80, better="higher"),
        _gate("smollm2-135m-Q8_0", "kld_mean", 0.0299, 0.02995, 0.03),
    ]
    assert RunView(run).recommended is not None
    assert _says(run, "Tightest margin") == (
        "same top 90 %, with 95 % confidence at least 85 %; the limit is at least 80 %."
    )


def test_where_nothing_passes_the_nearest_miss_is_named(run: dict[str, Any]) -> None:
    run["gates"] = [
        _gate("smollm2-135m-Q4_K_M", "kld_mean", 0.2, 0.19, 0.1, verdict="fail"),
        _gate("smollm2-135m-IQ3_XS", "kld_mean", 0.9, 0.89, 0.1, verdict="fail"),
    ]
    assert _says(run, "Tightest margin") == (
        "smollm2-135m-Q4_K_M: KL mean 0.2, with 95 % confidence more than 0.19; the limit is at most 0.1."
    )


def test_verdicts_that_do_not_hold_together_are_named(run: dict[str, Any]) -> None:
    model = "smollm2-135m-Q4_K_M"
    run["gates"] = [_gate(model, "kld_mean", 0.02, 0.021, 0.03), _gate(model, "ppl_ratio", 1.0, 1.1, 1.15)]
    assert _says(run, "Together").startswith("All 2 gates keep their verdicts")
    run["gates"][1]["verdict_adjusted"] = "inconclusive"
    assert _says(run, "Together") == (
        "1 of 2 verdicts does not hold when all gates are judged together (Holm's correction): PPL ratio of Q4_K_M."
        " --gguf-holm applies it."
    )


def test_texts_that_differ_are_counted(run: dict[str, Any]) -> None:
    reference = "smollm2-135m-F16"
    base = {"tokens": 3, "templated": None, "problem": None, "given": "g"}
    texts = {"a": ("x y z", "x y q"), "b": ("same", "same"), "c": ("k", "l"), "d": ("m", None)}
    run["texts"] = [
        base | {"model": model, "prompt": prompt, "text": pair[at]}
        for prompt, pair in texts.items()
        for at, model in enumerate((reference, "smollm2-135m-Q8_0"))
    ]
    row = run["estimates"][0] | {"model": "smollm2-135m-Q8_0", "metric": "exact_prefix_tokens"}
    run["estimates"] += [row | {"prompt": "a", "value": 2}, row | {"prompt": "c", "value": 0}]
    assert _says(run, "Texts").endswith("after how many tokens (median): Q8_0 2 of 3, after 1 token.")


def test_what_was_not_measured_is_said(run: dict[str, Any]) -> None:
    run["tests"] += [
        run["tests"][0] | {"id": f"t{number}", "outcome": "skipped", "message": f"Skipped: took {number} s; more"}
        for number in range(3)
    ]
    said = _says(run, "Not measured")
    assert said.startswith(
        "The suites kv, lora, attention, heads, layers, embeddings did not run; 3 tests of quant skipped: took 0 s"
    )
    assert _says(run | {"gates": [], "planned": []}, "Limits") == "None were set."


def test_noise_is_said(run: dict[str, Any]) -> None:
    reference = "smollm2-135m-F16"
    row = next(row for row in run["estimates"] if row["metric"] == "kld_mean")
    run["estimates"] = [
        row | {"model": reference, "metric": "floor_kld_mean", "value": -2e-9},
        row | {"value": 1e-4},
        row | {"model": reference, "metric": "tg_tokens_per_s", "value": 9.0},
    ]
    said = {fact.asks: fact.says for fact in noise_of(RunView(run))}
    assert said == {
        "Rounding": "The reference against itself, in other batches: KL mean 2.00e-09 nats. The candidate that differs"
        " least is 50,000 times further away.",
        "Other processes": "Nothing that was timed was disturbed.",
    }
    run["estimates"][2]["doubt"] = "other processes took 1.7 of 2 cores"
    assert noise_of(RunView(run))[1].says.startswith("1 estimate is in doubt (?)")
