"""Records refuse what is no result."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gguf_harness.engine.tap_names import TAPS, graph_nodes
from gguf_harness.errors import GateError, HarnessError, NoData
from gguf_harness.gguf.types import DEFAULT_QUANTS, FTYPES, NEEDS_IMATRIX, ftype_label, parse_quants
from gguf_harness.metrics.records import WHOLE, Estimate, Place, Row, each_estimate
from gguf_harness.metrics.registry import METRICS, metric_info


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_estimates_are_finite(bad: float) -> None:
    with pytest.raises(NoData):
        Estimate("ppl", bad, 10)
    with pytest.raises(NoData):
        Estimate("ppl", 1.0, 10, se=bad)


def test_estimates_have_samples() -> None:
    with pytest.raises(NoData, match="Missing data is reported as missing, never as 0"):
        Estimate("ppl", 1.0, 0)


def test_unknown_metrics_are_refused_with_a_suggestion() -> None:
    with pytest.raises(GateError, match="Did you mean 'kld_mean'"):
        metric_info("kld_maen")


def test_numpy_numbers_become_python_numbers() -> None:
    """A numpy scalar would not survive xdist."""
    estimate = Estimate("ppl", np.float64(3.5), np.int64(7), np.float32(0.25))  # type: ignore[arg-type]
    assert (type(estimate.value), type(estimate.n), type(estimate.se)) == (float, int, float)
    row = Row.of(estimate, suite="s", test="t", model="m")
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["value"] == 3.5


def test_a_row_has_the_place_and_the_details_of_its_estimate() -> None:
    estimate = Estimate("attn_cosine", 0.9, 24, place=Place(2, 7), detail="six prompts", doubt="the machine was busy")
    row = Row.of(estimate.of_prompt("fox"), suite="s", test="t", model="m", detail="on a GPU")
    assert row.place == Place(2, 7, prompt="fox")
    assert row.detail == "six prompts; on a GPU; in doubt: the machine was busy"
    assert estimate.of_prompt(None).place == estimate.place
    assert estimate.of_prompt("fox").of_prompt("dog").place.prompt == "fox"
    worst = Estimate("attn_cosine_worst_head", 0.9, 24, extreme_at=Place(2, 7))
    row = Row.of(worst, suite="s", test="t", model="m")
    assert (row.place, row.detail) == (WHOLE, "layer 2, head 7")
    assert worst.of_prompt("fox").found_at == Place(2, 7, prompt="fox")


def test_estimates_come_alone_in_lists_and_in_dictionaries() -> None:
    a, b, c, d = (Estimate("ppl", value, 1) for value in (1.0, 2.0, 3.0, 4.0))
    assert each_estimate(a, [b, (c,)], {"x": d}, [], {}) == [a, b, c, d]
    assert each_estimate() == []


@pytest.mark.parametrize("wrong", [None, 3.5, "ppl", [None]])
def test_what_is_no_estimate_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="Expected estimates"):
        each_estimate(wrong)  # type: ignore[arg-type]


def test_an_iterator_is_refused() -> None:
    """`record` would use it up, and `gate` would have nothing to decide on."""
    with pytest.raises(TypeError, match="not <generator"):
        each_estimate(Estimate("ppl", value, 1) for value in (1.0, 2.0))  # type: ignore[arg-type]


def test_every_metric_says_what_it_is() -> None:
    assert all(info.title and info.meaning.endswith(".") for info in METRICS.values())


def test_quants_are_parsed_in_order_and_once() -> None:
    assert parse_quants("q8_0, Q4_K,Q4_K_M") == ("Q8_0", "Q4_K_M")
    assert parse_quants("default") == DEFAULT_QUANTS
    assert set(DEFAULT_QUANTS) | NEEDS_IMATRIX <= set(FTYPES)


@pytest.mark.parametrize(("text", "hint"), [("Q4_KM", "Did you mean Q4_K_M"), (",", "is empty"), ("F8", "Known types")])
def test_unknown_quants_are_refused(text: str, hint: str) -> None:
    with pytest.raises(HarnessError, match=hint):
        parse_quants(text)


def test_file_types_have_names() -> None:
    assert ftype_label(15) == "Q4_K_M"
    assert ftype_label(15 | 1024) == "Q4_K_M"
    assert ftype_label(999) is None


def test_taps_map_to_graph_names() -> None:
    def only(tap: str, architecture: str) -> tuple[str, frozenset[str]]:
        (node,) = graph_nodes(tap, architecture, 12)
        return node.name, node.operations

    assert only("blocks.3.attn.pattern", "llama") == ("kq_soft_max-3", frozenset())
    assert only("blocks.0.attn.q", "llama") == ("Qcur-0", frozenset({"ROPE"}))
    assert only("blocks.0.attn.q", "gpt2") == ("Qcur-0", frozenset({"RESHAPE", "VIEW"}))
    assert only("logits", "llama") == ("result_output", frozenset())
    assert {"embed", "logits"} <= set(TAPS)


@pytest.mark.parametrize(
    ("tap", "hint"), [("blocks.3.attn.patern", "Did you mean 'blocks.0.attn.pattern'"), ("blocks.30.attn.q", "0 to 29")]
)
def test_unknown_taps_are_refused(tap: str, hint: str) -> None:
    with pytest.raises(HarnessError, match=hint):
        graph_nodes(tap, "llama", 30)
