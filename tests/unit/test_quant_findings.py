"""Titles of the charts of the quant suite: what they say is in the run, and no more than its intervals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gguf_harness.report.charts import quant_findings as findings
from gguf_harness.report.data import RunView
from tests.unit.test_report import STORED

REFERENCE, FIRST, TAKEN = "smollm2-135m-F16", "smollm2-135m-Q8_0", "smollm2-135m-Q4_K_M"


@pytest.fixture
def run() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return content


def _with(run: dict[str, Any], metric: str, **rows: dict[str, Any]) -> RunView:
    """The run with these rows of a metric, and no others of it."""
    base = run["estimates"][0] | {"metric": metric, "se": None, "low": None, "high": None, "doubt": None}
    kept = [row for row in run["estimates"] if row["metric"] != metric]
    own = [base | {"model": f"smollm2-135m-{kind}"} | row for kind, row in rows.items()]
    return RunView(run | {"estimates": [*kept, *own]})


def test_the_tail_of_the_worst_and_the_best(run: dict[str, Any]) -> None:
    curves = {FIRST: [(0.5, 0.1), (0.99, 0.25), (1.0, 9.0)], TAKEN: [(0.98, 1.0), (0.995, 2.5), (1.0, 5.0)]}
    told = findings.tail_finding(RunView(run), curves)
    assert told == "The worst 1 % of tokens are off by 2.5 nats or more in Q4_K_M, by 0.25 in Q8_0"
    alone = findings.tail_finding(RunView(run), {TAKEN: curves[TAKEN]})
    assert alone == "The worst 1 % of tokens are off by 2.5 nats or more in Q4_K_M"
    assert findings.tail_finding(RunView(run), {TAKEN: [(0.5, 1.0)]}).startswith("Where texts go wrong")


def test_texts(run: dict[str, Any]) -> None:
    view = _with(run, "edit_similarity", Q8_0={"value": 0.85, "se": 0.02}, Q4_K_M={"value": 0.47, "se": 0.05})
    told = "Q4_K_M's texts are 47.0 ± 5.0 % like the reference's, Q8_0's 85.0 ± 2.0 % (edit similarity)"
    assert findings.texts_finding(view) == told
    same = _with(run, "edit_similarity", Q8_0={"value": 1.0}, Q4_K_M={"value": 1.0})
    assert findings.texts_finding(same) == "Every candidate continues every prompt as the reference does"


@pytest.mark.parametrize(
    ("row", "title"),
    [
        (
            # Student's t with 4 degrees of freedom, on the logarithm: exp(ln 1.38 ± 2.776 0.0138 / 1.38).
            {"value": 1.38, "se": 0.0138, "clusters": 5},
            "Q4_K_M writes 1.38 times as fast as the reference (95 % interval 1.34 to 1.42)",
        ),
        (
            {"value": 1.01, "se": 0.0138, "clusters": 5},
            "Q4_K_M writes neither faster nor slower than the reference, as far as this shows (0.972 to 1.05 times)",
        ),
        ({"value": 1.38, "doubt": "other processes"}, "Speed on this machine"),
    ],
)
def test_speed_is_told_with_its_interval_or_not_at_all(run: dict[str, Any], row: dict[str, Any], title: str) -> None:
    view = _with(run, "tg_speed_ratio", Q4_K_M=row)
    assert view.recommended is not None
    assert view.recommended.name == TAKEN
    assert findings.speed_finding(view) == title


def test_memory_and_types_of_the_file_to_take(run: dict[str, Any]) -> None:
    view = _with(run, "peak_memory_bytes", F16={"value": 308e6}, Q8_0={"value": 1.0}, Q4_K_M={"value": 148e6})
    assert findings.memory_finding(view) == "Q4_K_M takes 148 MB of memory at its peak, the reference 308 MB"
    types = view.recommended.facts["tensor_types"] if view.recommended else {}
    total = sum(row["bytes"] for row in types.values())
    kind = max(types, key=lambda name: types[name]["bytes"])
    told = findings.files_finding(view)
    assert told.startswith(f"Q4_K_M is {100 * types[kind]['bytes'] / total:.0f} % {kind}, ")
    assert (
        findings.files_finding(RunView(run | {"models": [], "gates": [], "tests": []})) == "What the files are made of"
    )
