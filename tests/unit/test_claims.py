"""Claims on runs made by hand, one for each outcome, and on a stored real run."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gguf_harness.judge.claims import CLAIMS, ClaimFinding, judge_claims, speed_ratio
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.report.prices import price_list
from gguf_harness.report.terminal import render_terminal
from tests.unit.test_report import HOSTILE, STORED

Q5, Q4, IQ3, FASTER = range(len(CLAIMS))
WINDOWS = 16


def _model(name: str, quantization: str, size: int, *, reference: bool = False, **facts: Any) -> dict[str, Any]:
    base = {"bits_per_weight": size / 10, "architecture": "llama", "n_layer": 2, "fallbacks": [], "order": 0}
    return base | {"name": name, "quantization": quantization, "bytes": size, "reference": reference} | facts


def _row(model: str, metric: str, value: float, se: float | None, clusters: int | None = WINDOWS) -> dict[str, Any]:
    unit = {"se_iid": se, "n": clusters or 1, "prompt": None, "layer": None, "head": None}
    return {"model": model, "metric": metric, "value": value, "se": se, "clusters": clusters} | unit


def _run(*models: dict[str, Any], **rows: tuple[float, float | None]) -> dict[str, Any]:
    """`Q8_0=(percent, se in percent)`: how far a type's perplexity is above the reference's."""
    found = [
        _row(model["name"], "ln_ppl_ratio", math.log1p(rows[name][0] / 100), None if se is None else se / 100)
        for model in models
        if (name := model["quantization"]) in rows
        for se in [rows[name][1]]
    ]
    return {"models": list(models), "estimates": found}


F16 = _model("m-F16", "F16", 160, reference=True)
LADDER = (F16, _model("m-8", "Q8_0", 85), _model("m-5", "Q5_K_M", 57), _model("m-4", "Q4_K_M", 49))


def _judge(run: dict[str, Any], claim: int) -> ClaimFinding:
    (finding,) = (finding for finding in judge_claims(run) if finding.claim is CLAIMS[claim])
    return finding


@pytest.mark.parametrize(
    ("q8", "q5", "size", "verdict"),
    [
        ((0.1, 0.01), (0.5, 0.1), 57, "held"),
        ((0.1, 0.01), (-3.0, 0.1), 57, "held"),  # better is not behind
        ((0.1, 0.01), (2.0, 0.1), 57, "not held"),
        ((0.1, 0.01), (0.5, 0.1), 65, "not held"),  # only a quarter smaller
        ((0.1, 0.01), (0.5, 0.5), 57, "undecided"),
        ((0.1, 0.01), (0.5, 0.5), 65, "not held"),  # the part that is known decides
        ((0.1, 0.4), (0.5, 0.1), 57, "undecided"),  # Q8_0's error counts as well
        ((0.1, None), (0.5, None), 57, "undecided"),
    ],
)
def test_q5_k_m_against_q8_0(q8: tuple[float, float], q5: tuple[float, float], size: int, verdict: str) -> None:
    models = [F16, LADDER[1], _model("m-5", "Q5_K_M", size)]
    assert _judge(_run(*models, Q8_0=q8, Q5_K_M=q5), Q5).verdict == verdict


def test_a_reference_of_q8_0_is_compared_with_its_paired_error() -> None:
    models = [_model("m-8", "Q8_0", 85, reference=True), LADDER[2]]
    finding = _judge(_run(*models, Q5_K_M=(0.5, 0.1)), Q5)
    margin = float(stats.t.ppf(0.95, WINDOWS - 1)) * 0.001
    low, high = (100 * math.expm1(math.log(1.005) + side * margin) for side in (-1, 1))
    assert finding.verdict == "held"
    assert finding.numbers == "+0.5 %, 33 % smaller"
    assert finding.detail == f"m-5: perplexity 0.5 % above m-8's ({low:+.1f} % to {high:+.1f} %), file 33 % smaller."


@given(st.floats(-5, 5), st.floats(0, 2), st.floats(-5, 5), st.floats(0, 2), st.floats(-1, 1))
def test_the_bound_of_a_difference_holds_for_every_correlation(
    one: float, se_one: float, two: float, se_two: float, correlation: float
) -> None:
    """With the true error of the difference, a verdict could only be more certain, never another."""
    se = math.sqrt(max(0.0, se_one**2 + se_two**2 - 2 * correlation * se_one * se_two))
    models = [F16, LADDER[1], LADDER[2]]
    bounded = _run(*models, Q8_0=(0, 1), Q5_K_M=(0, 1))
    exact = copy.deepcopy(bounded)
    for run, errors in ((bounded, (se_two, se_one)), (exact, (0.0, se))):
        for row, value, error in zip(run["estimates"], (two, one), errors, strict=True):
            row |= {"value": value / 100, "se": error / 100}
    verdict, true_verdict = _judge(bounded, Q5).verdict, _judge(exact, Q5).verdict
    assert verdict in (true_verdict, "undecided")


@pytest.mark.parametrize(
    ("claim", "kind", "loss", "verdict"),
    [
        (Q4, "Q4_K_M", (2.0, 0.1), "held"),
        (Q4, "Q4_K_M", (2.9, 0.1), "undecided"),
        (Q4, "Q4_K_M", (4.0, 0.1), "not held"),
        (IQ3, "IQ3_XS", (7.0, 0.5), "held"),
        (IQ3, "IQ3_XS", (5.5, 0.5), "undecided"),
        (IQ3, "IQ3_XS", (2.0, 0.5), "not held"),
        (IQ3, "IQ3_XS", (14.0, 0.5), "not held"),
        (IQ3, "IQ3_XS", (7.0, None), "undecided"),
    ],
)
def test_how_far_a_type_is_behind_the_reference(
    claim: int, kind: str, loss: tuple[float, float | None], verdict: str
) -> None:
    # The name says another type: what the file says of itself counts.
    models = [F16, _model("m-Q6_K", kind, 45)]
    assert _judge(_run(*models, **{kind: loss}), claim).verdict == verdict


def _speeds(*speeds: float, se: float | None = 0.1, sizes: tuple[int, ...] = (85, 57, 49)) -> dict[str, Any]:
    """Candidates whose speeds over the reference's are `speeds`, in percent, each with the same error."""
    models = [_model(f"m-{size}", f"T{size}", size) for size in sizes]
    clusters = None if se is None else 10
    rows = [_row("m-F16", "tg_tokens_per_s", 50, 0.1, 10)]
    for model, speed in zip(models, speeds, strict=True):
        # What a model does by itself was measured at another time: no claim depends on it.
        rows.append(_row(model["name"], "tg_tokens_per_s", 7, 0.1, 10))
        error = None if se is None else se / 100
        rows.append(_row(model["name"], "tg_speed_ratio", speed / 100, error, clusters))
    return {"models": [F16, *models], "estimates": rows}


@pytest.mark.parametrize(
    ("run", "verdict", "numbers"),
    [
        (_speeds(100, 115, 130), "held", "in 2 of 2 steps; +15.0 %, +13.0 %"),
        (_speeds(100, 115, 116), "not held", "in 1 of 2 steps; +15.0 %, +0.9 %"),
        (_speeds(100, 150, 170), "not held", "in 1 of 2 steps; +50.0 %, +13.3 %"),
        (_speeds(100, 115, 130, se=5), "undecided", "in 0 of 2 steps; +15.0 %, +13.0 %"),
        (_speeds(100, 115, 130, se=None), "not tested", ""),
        # Two files of one size are no step.
        (_speeds(100, 500, 115, sizes=(85, 85, 57)), "held", "in 1 of 1 steps; +15.0 %"),
    ],
)
def test_smaller_is_faster(run: dict[str, Any], verdict: str, numbers: str) -> None:
    finding = _judge(run, FASTER)
    assert (finding.verdict, finding.numbers) == (verdict, numbers)
    # F16 is no quantization: its step to Q8_0 is not among them.
    assert "F16" not in finding.detail


def test_speeds_of_different_times_make_no_claim() -> None:
    """Without ratios that were timed in turns there are speeds, and nothing is said of them."""
    run = _speeds(100, 115, 130)
    run["estimates"] = [row for row in run["estimates"] if row["metric"] == "tg_tokens_per_s"]
    finding = _judge(run, FASTER)
    assert finding.verdict == "not tested"
    assert finding.detail == (
        "m-57: its generation was not timed in turns with the reference's;"
        " m-49: its generation was not timed in turns with the reference's."
    )
    assert speed_ratio(run, "m-57") is None


def test_a_busy_machine_is_the_reason() -> None:
    busy = "other processes took 1.7 of 2 cores during 5 of 6 repetitions"
    run = _speeds(100, 115, 130)
    run["estimates"] = [row for row in run["estimates"] if (row["model"], row["metric"]) != ("m-57", "tg_speed_ratio")]
    next(row for row in run["estimates"] if row["model"] == "m-57")["doubt"] = busy
    finding = _judge(run, FASTER)
    assert (finding.verdict, finding.detail) == ("not tested", f"m-57: {busy}.")
    # The other steps do not become those of a shorter ladder, and one of them can still break the claim.
    longer = _speeds(100, 115, 130, 131, sizes=(85, 57, 49, 40))
    longer["estimates"] = [row for row in longer["estimates"] if row["model"] != "m-85" or row["metric"][3:4] != "s"]
    assert _judge(longer, FASTER).verdict == "not held"
    longer["estimates"] = [row | {"value": 1.47} if row["value"] == 1.31 else row for row in longer["estimates"]]
    finding = _judge(longer, FASTER)
    assert (finding.verdict, finding.numbers) == ("undecided", "in 2 of 3 steps; +13.0 %, +13.1 %")
    assert finding.detail.endswith("; not measured: m-85: its generation was not timed in turns with the reference's.")


def test_a_served_stream_that_contradicts_leaves_no_claim() -> None:
    run = _speeds(100, 115, 130)
    rows = run["estimates"]
    assert speed_ratio(run, "m-57") is not None
    rows.append(_row("m-57", "served_single_tokens_per_s", 6.5, 0.1, 3))
    assert _judge(run, FASTER).verdict == "held"
    rows[-1]["value"] = 70
    finding = _judge(run, FASTER)
    assert finding.verdict == "not tested"
    assert finding.detail == "m-57: the speed for a server's only client differs from that of plain generation."
    assert speed_ratio(run, "m-57") is None


def test_the_interval_of_a_ratio_has_both_sides() -> None:
    ratio = speed_ratio(_speeds(115, sizes=(57,), se=2), "m-57")
    assert ratio is not None
    margin = float(stats.t.ppf(0.975, 9)) * 0.02 / 1.15
    assert (ratio.low, ratio.high) == pytest.approx((1.15 * math.exp(-margin), 1.15 * math.exp(margin)))


def test_what_was_not_in_the_run_is_not_tested() -> None:
    reasons = {
        "no models": ({"models": [], "estimates": []}, "No such files were in this run."),
        "no perplexity": (_run(*LADDER), "The perplexity of m-5 was not compared in this run."),
        "no Q8_0": (_run(F16, LADDER[2], Q5_K_M=(1, 0.1)), "m-5 was in this run, but no Q8_0 of the same model."),
        "another model's Q8_0": (
            _run(F16, LADDER[1] | {"n_layer": 7}, LADDER[2], Q8_0=(0, 0), Q5_K_M=(1, 0.1)),
            "m-5 was in this run, but no Q8_0 of the same model.",
        ),
    }
    for name, (run, reason) in reasons.items():
        finding = _judge(run, Q5)
        assert (finding.verdict, finding.detail) == ("not tested", reason), name
    coarse = _model("m-ref", "Q6_K", 66, reference=True)
    finding = _judge(_run(coarse, LADDER[3], Q4_K_M=(2, 0.1)), Q4)
    assert finding.detail == "m-4 was in this run, but no reference of at least 8 bits per weight of the same model."
    assert _judge(_speeds(100, sizes=(85,)), FASTER).verdict == "not tested"
    # Rows of one prompt say nothing of the whole.
    run = _run(*LADDER, Q8_0=(0, 0.01), Q5_K_M=(0.1, 0.01))
    for row in run["estimates"]:
        row["prompt"] = "fox"
    assert {finding.verdict for finding in judge_claims(run)} == {"not tested"}


def test_every_file_of_a_type_gets_its_answer() -> None:
    other = _model("other-4", "Q4_K_M", 49, fallbacks=[{}, {}])
    findings = [f for f in judge_claims(_run(F16, LADDER[3], other, Q4_K_M=(2, 0.1))) if f.claim is CLAIMS[Q4]]
    assert [finding.detail.split(":")[0] for finding in findings] == ["m-4", "other-4"]
    assert findings[1].detail.endswith("; 2 of its tensors fell back to other types than the name says.")


@pytest.fixture
def stored() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return content


def test_a_real_run(stored: dict[str, Any]) -> None:
    findings = judge_claims(stored)
    assert [(finding.verdict, finding.numbers) for finding in findings] == [
        ("not held", "+8.4 %, 23 % smaller"),
        ("not held", "+8.3 %"),
        ("not held", "+146.0 %"),
        ("not tested", ""),  # its speeds were measured one after the other
    ]
    ppl = {row["model"]: row["value"] for row in stored["estimates"] if row["metric"] == "ppl"}
    assert ppl["smollm2-135m-Q5_K_M"] / ppl["smollm2-135m-Q8_0"] == pytest.approx(1.084, abs=0.0005)
    found = price_list(RunView(stored))
    assert found is not None
    prices = {price.model.rsplit("-", 1)[1]: price for price in found.prices}
    assert prices["Q8_0"].average == pytest.approx(0.0040955 / math.log2(270885952 / 144811072), rel=1e-3)
    assert {name for name, price in prices.items() if price.step is None} == {"Q5_K_M"}
    step = prices["Q4_K_M"].step
    assert step is not None
    assert step.price == pytest.approx((0.0574817 - 0.0040955) / math.log2(144811072 / 105454144), rel=1e-4)


def test_reports_show_prices_and_claims_as_text(stored: dict[str, Any], tmp_path: Path) -> None:
    run = json.loads(json.dumps(stored).replace("smollm2-135m-Q4_K_M", json.dumps(HOSTILE)[1:-1]))
    write_html(run, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    prices, claims = (re.split(r"<h3|</section>", page.split(f'id="h-{name}"')[1])[0] for name in ("prices", "claims"))
    for section in (prices, claims):
        assert "&lt;img src=x onerror=alert(1)&gt;" in section
        assert "<img" not in section
        assert "\x1b" not in section
    assert claims.count('class="chip fail">not held') == 3
    assert "dominated: not a useful step" in prices
    terminal = render_terminal(run, width=100, color=False)
    assert "\x1b[2J" not in terminal
    words = " ".join(terminal.split())
    assert "'Q4_K_M is about 2 % behind' not held (+8.3 %)" in words
    assert "smollm2-135m-Q8_0 0.0045" in words


def test_reports_without_claims_or_prices_have_no_room_for_them(stored: dict[str, Any], tmp_path: Path) -> None:
    run = stored | {"estimates": []}
    write_html(run, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="h-claims"' not in page
    assert 'id="h-prices"' not in page
    assert "claims, on" not in render_terminal(run, width=100, color=False)
