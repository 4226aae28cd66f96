"""Gates decide by bounds; malformed files are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import GateError, NoData
from gguf_harness.judge.gates import Gate, early_limits, load_gates
from gguf_harness.judge.verdicts import Verdict, adjust, decide
from gguf_harness.metrics.divergence import (
    summarize_delta_p,
    summarize_divergence,
    summarize_same_top,
    summarize_top5,
)
from gguf_harness.metrics.number_format import format_estimate
from gguf_harness.metrics.perplexity import compare_perplexity, perplexity
from gguf_harness.metrics.records import WHOLE, Estimate, Place
from gguf_harness.metrics.registry import METRICS
from gguf_harness.metrics.sequential import EarlyDecision
from gguf_harness.metrics.windows import WindowLimit


@pytest.mark.parametrize(
    ("value", "se", "expected"),
    [(0.05, 0.001, "pass"), (0.2, 0.001, "fail"), (0.099, 0.01, "inconclusive"), (0.101, 0.01, "inconclusive")],
)
def test_lower_is_better(value: float, se: float, expected: str) -> None:
    verdict = decide(Gate("kld_mean", 0.1), Estimate("kld_mean", value, 1000, se, se, 16), "m")
    assert verdict.verdict == expected
    assert f"{value:.4g}" in verdict.detail
    assert "at most 0.1 nats" in verdict.detail


@pytest.mark.parametrize(("value", "expected"), [(0.9, "pass"), (0.7, "fail"), (0.801, "inconclusive")])
def test_higher_is_better(value: float, expected: str) -> None:
    verdict = decide(Gate("same_top", 0.8), Estimate("same_top", value, 1000, 0.01, 0.01, 16), "m")
    assert verdict.verdict == expected
    assert "at least 80 %" in verdict.detail


def test_a_verdict_says_where() -> None:
    def verdict(place: Place = WHOLE, extreme_at: Place | None = None, detail: str | None = None) -> Verdict:
        estimate = Estimate("resid_cka", 0.5, 100, 0.001, None, 16, place=place, extreme_at=extreme_at, detail=detail)
        return decide(Gate("resid_cka", 0.9), estimate, "m")

    assert "CKA (layer 3) is 0.5000 ± 0.0010; the limit is at least 0.9." in verdict(Place(3)).detail
    assert Place.of(verdict(Place(3)).to_json()) == Place(3)
    assert "CKA (layer 3, head 1) is" in verdict(Place(3, 1)).detail
    assert "CKA (attn_q) is" in verdict(Place(part="attn_q"), detail="more").detail
    assert "CKA (layer 3, fox) is" in verdict(Place(3, prompt="fox")).detail
    assert Place.of(verdict(Place(3, prompt="fox")).to_json()) == Place(3, prompt="fox")
    assert "CKA (mean of 4 layers) is" in verdict(detail="mean of 4 layers").detail
    assert "CKA is" in verdict().detail
    # An extreme is of the whole, and was found somewhere.
    assert "CKA (layer 2, head 7) is" in verdict(extreme_at=Place(2, 7)).detail
    assert Place.of(verdict(extreme_at=Place(2, 7)).to_json()) == Place(2, 7)
    assert "CKA (layer 2, head 7, fox) is" in verdict(Place(prompt="fox"), Place(2, 7)).detail


def test_without_an_error_the_value_decides() -> None:
    gate = Gate("file_bytes", 1000)
    assert decide(gate, Estimate("file_bytes", 1000, 1), "m").verdict == "pass"
    assert decide(gate, Estimate("file_bytes", 1001, 1), "m").verdict == "fail"


def test_one_cluster_cannot_decide() -> None:
    verdict = decide(Gate("kld_mean", 0.1), Estimate("kld_mean", 0.01, 100, 0.001, 0.001, 1), "m")
    assert verdict.verdict == "inconclusive"
    assert verdict.bound is None


@given(st.floats(0, 1), st.floats(0.001, 0.5), st.floats(0.01, 1), st.integers(2, 40))
def test_more_confidence_never_turns_a_verdict_around(value: float, se: float, limit: float, clusters: int) -> None:
    estimate = Estimate("kld_mean", value, 100, se, se, clusters)
    verdicts = [decide(Gate("kld_mean", limit, c), estimate, "m").verdict for c in (0.6, 0.9, 0.99)]
    decided = [verdict for verdict in verdicts if verdict != "inconclusive"]
    assert len(set(decided)) <= 1
    assert verdicts == decided + ["inconclusive"] * (len(verdicts) - len(decided))


def test_a_file_replaces_built_in_limits(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    file.write_text("[kld_mean]\nlimit = 0.02\nconfidence = 0.99\n")
    gates = load_gates(file)
    assert gates["kld_mean"] == Gate("kld_mean", 0.02, 0.99)
    assert gates["same_top"] == load_gates(None)["same_top"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kld_mean", "is not TOML"),
        ("[kld_men]\nlimit = 1", "Did you mean 'kld_mean'"),
        ("[kld_mean]\nlimt = 1", "Expected `limit`"),
        ("[kld_mean]\nlimit = 'low'", "expected a finite number"),
        ("[kld_mean]\nlimit = nan", "expected a finite number"),
        ("[kld_mean]\nlimit = true", "expected a finite number"),
        ("[kld_mean]\nlimit = 1\nconfidence = 95", "between 0.5 and 1"),
        ("[delta_p_median]\nlimit = 1", "neither direction is better"),
        ("kld_mean = 3", "Expected `limit`"),
        ("[ppl]\nlimit = 20\nlimit_relative = 0.1", "one of them"),
        ("[ppl]\nlimit_relative = 'some'", "expected a finite number"),
        ("[kld_mean]\nlimit_relative = 0.1", "no value to relate to: the reference itself has no kld_mean"),
        ("[floor_kld_mean]\nlimit_relative = 0.1", "no value to relate to"),
        ("[ppl]\nlimit_relative = -1", "a limit that no candidate can keep"),
        ("[tg_tokens_per_s]\nlimit_relative = 1", "a limit that every candidate keeps"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "gates.toml"
    file.write_text(text)
    with pytest.raises(GateError, match=message):
        load_gates(file)


def _speed(value: float, se: float | None = 1.0, n: int = 5) -> Estimate:
    return Estimate("tg_tokens_per_s", value, n, se, se, n if se is not None else None)


@pytest.mark.parametrize(("value", "expected"), [(120, "pass"), (60, "fail"), (96, "inconclusive")])
def test_relative_limits_of_independent_samples(value: float, expected: str) -> None:
    """At least 95 % of the reference's speed, with the error of a ratio by the delta method."""
    gate = Gate("tg_tokens_per_s", limit_relative=0.05)
    verdict = decide(gate, _speed(value, 2.0), "m", reference=_speed(100))
    assert verdict.verdict == expected
    assert verdict.limit == pytest.approx(95)
    error = ((2.0**2 + (value / 100) ** 2 * 1.0**2) ** 0.5) / 100
    t = 2.131846786  # 95 % quantile of t with 4 degrees of freedom
    side = 1 if expected == "fail" else -1
    assert verdict.bound == pytest.approx(value + side * t * error * 100)
    assert f"{format_estimate(value / 100, error)} times the reference's 100 tokens/s" in verdict.detail
    assert "the limit is at least 0.95 times the reference's" in verdict.detail


def test_relative_limits_of_shared_samples_use_the_paired_error() -> None:
    """Two perplexities of 12 ± 2 say nothing of each other; paired by token their ratio is known to a percent."""
    ppl, base = (Estimate("ppl", value, 1600, 2.0, 2.0, 16) for value in (12.3, 12.0))
    ratio = Estimate("ppl_ratio", 12.3 / 12.0, 1600, 0.005, 0.005, 16)
    gate = Gate("ppl", limit_relative=0.05)
    assert decide(gate, ppl, "m", reference=base).verdict == "inconclusive"
    verdict = decide(gate, ppl, "m", reference=base, ratio=ratio)
    assert verdict.verdict == "pass"
    assert "paired times the reference's 12" in verdict.detail
    absolute = decide(Gate("ppl_ratio", 1.05), ratio, "m")
    assert verdict.p_value == pytest.approx(absolute.p_value)
    assert verdict.bound is not None
    assert absolute.bound is not None
    assert verdict.bound == pytest.approx(12.0 * absolute.bound)


def test_relative_limits_of_plain_facts() -> None:
    gate = Gate("file_bytes", limit_relative=-0.5)
    reference = Estimate("file_bytes", 1000, 1)
    assert decide(gate, Estimate("file_bytes", 500, 1), "m", reference=reference).verdict == "pass"
    assert decide(gate, Estimate("file_bytes", 501, 1), "m", reference=reference).verdict == "fail"


def test_relative_limits_need_a_reference_above_zero() -> None:
    gate = Gate("tg_tokens_per_s", limit_relative=0.05)
    with pytest.raises(GateError, match="there is no estimate of the reference"):
        decide(gate, _speed(1), "m")
    with pytest.raises(NoData, match="expected more than zero"):
        decide(gate, _speed(1), "m", reference=_speed(0))


@given(st.floats(0.5, 2), st.floats(0.01, 0.5), st.floats(-0.5, 0.5), st.integers(2, 30))
def test_a_relative_limit_is_an_absolute_one_when_the_reference_is_exact(
    value: float, se: float, relative: float, n: int
) -> None:
    reference = _speed(1.0, None, 1)
    relative_verdict = decide(
        Gate("tg_tokens_per_s", limit_relative=relative), _speed(value, se, n), "m", reference=reference
    )
    absolute = decide(Gate("tg_tokens_per_s", 1 - relative), _speed(value, se, n), "m")
    assert relative_verdict.verdict == absolute.verdict
    assert relative_verdict.p_value == pytest.approx(absolute.p_value)


def test_an_inconclusive_verdict_says_what_would_decide() -> None:
    estimate = Estimate("kld_mean", 0.095, 16 * 255, 0.004, 0.004, 16)
    verdict = decide(Gate("kld_mean", 0.1), estimate, "m")
    # t(0.95, 29 - 1) * 0.004 * sqrt(16 / 29) is just below 0.005, of 28 just above.
    more = verdict.more_clusters
    assert more is not None
    assert f"about {more} more windows ({more * 255} more scored tokens, --gguf-chunks={16 + more})" in verdict.detail
    repetitions = decide(Gate("tg_tokens_per_s", 100), _speed(101), "m")
    assert "more repetitions (--gguf-repetitions=" in repetitions.detail
    at_the_limit = decide(Gate("kld_mean", 0.095), estimate, "m")
    assert at_the_limit.more_clusters is None
    assert "cannot estimate how much more data is needed" in at_the_limit.detail


@pytest.mark.parametrize(("value", "se"), [(0.05, 0.001), (0.2, 0.001), (0.099, 0.01), (0.11, 0.01)])
def test_p_values_say_the_same_as_the_verdict(value: float, se: float) -> None:
    verdict = decide(Gate("kld_mean", 0.1), Estimate("kld_mean", value, 1000, se, se, 16), "m")
    assert verdict.p_value is not None
    assert (verdict.p_value <= 0.05) == (verdict.verdict != "inconclusive")


def _verdicts(*values: float) -> list[dict[str, object]]:
    gate = Gate("kld_mean", 0.1)
    return [
        decide(gate, Estimate("kld_mean", value, 1000, 0.01, 0.01, 16), f"m{index}").to_json()
        for index, value in enumerate(values)
    ]


def test_many_gates_need_stronger_evidence() -> None:
    """A failure at p = 0.03 stands alone, but not among ten."""
    weak, strong = 0.1 + 2.05 * 0.01, 0.1 + 6 * 0.01
    assert [v["verdict_adjusted"] for v in adjust(_verdicts(weak), enforce=False)] == ["fail"]
    adjusted = adjust(_verdicts(weak, strong, *[0.1] * 8), enforce=False)
    assert [v["verdict"] for v in adjusted[:2]] == ["fail", "fail"]
    assert [v["verdict_adjusted"] for v in adjusted[:2]] == ["inconclusive", "fail"]
    assert adjusted[0]["p_adjusted"] == pytest.approx(9 * adjusted[0]["p_value"])
    assert adjusted[1]["p_adjusted"] == pytest.approx(10 * adjusted[1]["p_value"])
    enforced = adjust(_verdicts(weak, strong, *[0.1] * 8), enforce=True)
    assert [v["verdict"] for v in enforced[:2]] == ["inconclusive", "fail"]
    assert "Holm's correction over 10 gates makes it inconclusive" in enforced[0]["detail"]


def test_facts_do_not_count_as_tests() -> None:
    fact = decide(Gate("file_bytes", 1000), Estimate("file_bytes", 2000, 1), "m").to_json()
    weak, *others = adjust([*_verdicts(0.1 + 2.05 * 0.01), *[fact] * 20], enforce=True)
    assert weak["verdict"] == "fail"
    assert {(v["verdict"], v["p_adjusted"]) for v in others} == {("fail", None)}


@given(st.lists(st.floats(0.05, 0.15), min_size=1, max_size=12))
def test_the_correction_only_ever_weakens(values: list[float]) -> None:
    raw = _verdicts(*values)
    for before, after in zip(raw, adjust(raw, enforce=False), strict=True):
        assert after["p_adjusted"] >= before["p_value"]
        assert after["verdict_adjusted"] in {before["verdict"], "inconclusive"}
    assert all("p_adjusted" not in verdict for verdict in raw)


def test_built_in_gates_name_their_source() -> None:
    assert all(gate.source for gate in load_gates(None).values())


def test_an_early_decision_stands_whatever_the_bound_says() -> None:
    estimate = Estimate("kld_mean", 0.2, 1000, 0.01, 0.01, 16)
    early = EarlyDecision("pass", 9, 0.01)
    verdict = decide(Gate("kld_mean", 0.1), estimate, "m", watched=True, early=early)
    assert (verdict.verdict, verdict.bound, verdict.p_value) == ("pass", None, 0.02)
    assert "the limit is at most 0.1 nats. Decided after 9 windows" in verdict.detail


def test_a_watched_gate_that_stayed_open_has_half_of_its_error_left() -> None:
    gate = Gate("kld_mean", 0.1)
    for value in (0.05, 0.08, 0.085, 0.12, 0.118):
        estimate = Estimate("kld_mean", value, 1000, 0.01, 0.01, 16)
        watched, halved = decide(gate, estimate, "m", watched=True), decide(Gate("kld_mean", 0.1, 0.975), estimate, "m")
        assert watched.verdict == halved.verdict
        assert watched.bound == halved.bound
        assert watched.confidence == 0.95
        assert watched.p_value is not None
        assert (watched.p_value <= 0.05) == (watched.verdict != "inconclusive")


def test_gates_of_a_pass_are_limits_on_its_windows() -> None:
    gates = [
        Gate("kld_mean", 0.1),
        Gate("ppl", limit_relative=0.05),
        Gate("file_bytes", 1000),
        Gate("tg_tokens_per_s", limit_relative=0.05, confidence=0.9),
    ]
    confidence = 1 - (1 - 0.95) / 2
    assert early_limits(gates) == (
        WindowLimit("kld_mean", 0.1, confidence, "kld_mean"),
        WindowLimit("ppl_ratio", 1.05, confidence, "ppl"),
    )
    assert early_limits([*gates, Gate("kld_max", 3)]) == ()


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_no_gate_of_a_pass_is_left_undecided_by_stopping(metric: str) -> None:
    """Whatever has a gate: a pass stops when that is decided, or not at all, or it is nothing that a pass feeds."""
    if METRICS[metric].better == "neutral":
        return
    limits = early_limits([Gate("kld_mean", 0.1), Gate(metric, 0.5)])
    if not METRICS[metric].of_corpus:
        assert [limit.gate for limit in limits] == ["kld_mean"]
    elif METRICS[metric].early is not None:
        assert metric in {limit.gate for limit in limits}
    else:
        assert limits == ()


def test_what_a_pass_measures_is_a_metric_of_the_corpus() -> None:
    nll = np.random.default_rng(0).random((4, 40))
    estimates = [perplexity(nll), *compare_perplexity(nll, nll[::-1]), summarize_same_top(nll > 0.5, nll > 0.6)]
    estimates += [*summarize_divergence(nll, nll), *summarize_delta_p(nll, nll[::-1]), summarize_top5(nll > 0.1)]
    assert {estimate.metric for estimate in estimates} == {name for name, metric in METRICS.items() if metric.of_corpus}


@pytest.mark.parametrize(
    ("metric", "limit"), [("kld_min", 0.1), ("kld_max", 1.0), ("ppl_difference", 1.0), ("ln_ppl_correlation", 0.9)]
)
def test_gates_that_need_all_windows_keep_a_pass_from_stopping(metric: str, limit: float) -> None:
    assert early_limits([Gate("kld_mean", 0.1), Gate(metric, limit)]) == ()
    assert early_limits([Gate("kld_mean", 0.1), Gate("load_s", limit)]) != ()


def test_each_side_has_its_own_error() -> None:
    """Skewed window means: the same value passes or not by how far its own side reaches."""
    gate = Gate("kld_mean", 0.1)
    near = Estimate("kld_mean", 0.09, 4080, 0.004, None, 16, low=0.07, high=0.099)
    far = Estimate("kld_mean", 0.09, 4080, 0.004, None, 16, low=0.089, high=0.12)
    assert decide(gate, near, "m").verdict == "pass"
    assert decide(gate, far, "m").verdict == "inconclusive"
    beyond = Estimate("kld_mean", 0.11, 4080, 0.004, None, 16, low=0.103, high=0.2)
    assert decide(gate, beyond, "m").verdict == "fail"
    for estimate in (near, far, beyond):
        verdict = decide(gate, estimate, "m")
        assert verdict.p_value is not None
        assert (verdict.p_value < 0.05) == (verdict.verdict != "inconclusive")


def test_a_percentile_that_the_samples_do_not_reach_is_not_passed() -> None:
    """Four windows of 31 tokens have one token beyond the 99th percentile: it bounds nothing."""
    kld = np.random.default_rng(0).random((4, 31))
    estimates = {estimate.metric: estimate for estimate in summarize_divergence(kld, kld)}
    verdict = decide(Gate("kld_p99", 5.0), estimates["kld_p99"], "m")
    assert verdict.verdict == "inconclusive"
    assert "124 samples are too few" in verdict.detail
    assert decide(Gate("kld_p99", 0.01), estimates["kld_p99"], "m").verdict == "fail"
    assert decide(Gate("kld_median", 5.0), estimates["kld_median"], "m").verdict == "pass"


def test_one_prompt_decides_nothing() -> None:
    assert decide(Gate("bleu", 20.0), Estimate("bleu", 90.0, 1, clusters=1), "m").verdict == "inconclusive"


def test_no_changed_token_is_not_certainty() -> None:
    """Of 120 tokens none changed: one time in forty that happens where 3 % change."""
    same = np.ones((4, 30), dtype=bool)
    estimate = summarize_same_top(same, same)
    assert (estimate.value, estimate.se) == (1.0, 0.0)
    assert decide(Gate("same_top", 0.9), estimate, "m").verdict == "pass"
    assert decide(Gate("same_top", 0.999), estimate, "m").verdict == "inconclusive"
    none = summarize_same_top(same, ~same)
    assert decide(Gate("same_top", 0.001), none, "m").verdict == "inconclusive"
    assert decide(Gate("same_top", 0.5), none, "m").verdict == "fail"


@pytest.mark.parametrize("value", [1.0, 99.0, 1000.0])
@pytest.mark.parametrize("gate", [Gate("tg_tokens_per_s", 100), Gate("tg_tokens_per_s", limit_relative=0.05)])
def test_what_is_in_doubt_decides_nothing(gate: Gate, value: float) -> None:
    """Whatever its value: neither pass nor fail, and no number in the sentence but the limit."""
    doubtful = replace(_speed(value, 0.1), doubt="other processes took 1.7 of 2 cores during 5 of 6 repetitions")
    relative = gate.limit is None
    verdict = decide(
        gate, doubtful, "m", reference=_speed(70) if relative else None, ratio=doubtful if relative else None
    )
    assert (verdict.verdict, verdict.value, verdict.bound, verdict.p_value) == ("inconclusive", None, None, None)
    limit = "0.95 times the reference's" if relative else "100 tokens/s"
    assert verdict.detail == (
        f"generation t/s was not checked against its limit, at least {limit}: other processes took 1.7 of 2 cores "
        "during 5 of 6 repetitions."
    )
    (adjusted,) = adjust([verdict.to_json()], enforce=True)
    assert adjusted["verdict"] == "inconclusive"


def test_a_paired_ratio_decides_though_each_side_is_in_doubt() -> None:
    """What is by itself in doubt is not what a relative limit is held against."""
    gate, busy = Gate("tg_tokens_per_s", limit_relative=0.05), replace(_speed(50), doubt="busy")
    ratio = Estimate("tg_tokens_per_s", 1.2, 3, 0.01, 0.01, 3)
    assert decide(gate, busy, "m", reference=busy, ratio=ratio).verdict == "pass"
    assert decide(gate, busy, "m", reference=_speed(70)).verdict == "inconclusive"
    assert decide(gate, _speed(50), "m", reference=busy).verdict == "inconclusive"
