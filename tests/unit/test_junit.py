"""Properties of test cases: JSON of ours in words, everything of others as it was."""

from __future__ import annotations

import json

from gguf_harness.metrics.records import Estimate, Row
from gguf_harness.pytest_plugin.junit import readable
from gguf_harness.pytest_plugin.state import BASELINE_PROPERTY, ESTIMATE_PROPERTY, GATE_PROPERTY


def _row(estimate: Estimate, **places: object) -> tuple[str, str]:
    row = Row.of(estimate, suite="s", test="t", model="m", reference="r").to_json() | places
    return ESTIMATE_PROPERTY, json.dumps(row)


def test_estimates_are_values_with_error_unit_and_n() -> None:
    properties = readable(
        [
            _row(Estimate("kld_mean", 0.05751234, 4080, 0.0022)),
            _row(Estimate("ppl", 12.5, 10, 0.25), detail="all\nof it"),
            _row(Estimate("file_bytes", 105_454_144, 1)),
            _row(Estimate("kld_mean", 0.5, 3), layer=3, head=1),
            _row(Estimate("bleu", 40.5, 3), prompt="fox"),
            ("mine", {"a": 1}),
        ],
        "m",
    )
    assert properties == [
        ("gguf.model", "m"),
        ("gguf.reference", "r"),
        ("gguf.estimate.kld_mean", "0.0575123 ± 0.0022 nats (n = 4080)"),
        ("gguf.estimate.ppl", "12.5 ± 0.25 (n = 10): all\\x0aof it"),
        ("gguf.estimate.file_bytes", "105454144 bytes (n = 1)"),
        ("gguf.estimate.kld_mean", "0.5 nats (n = 3) [layer=3 head=1]"),
        ("gguf.estimate.bleu", "40.5 0-100 (n = 3) [prompt=fox]"),
        ("mine", {"a": 1}),
    ]


def test_gates_and_baselines_are_sentences() -> None:
    gate = json.dumps({"metric": "kld_mean", "verdict": "fail", "detail": "It is too much."})
    comparison = json.dumps({"metric": "same_top", "detail": "It is worse."})
    properties = [(GATE_PROPERTY, gate), (BASELINE_PROPERTY, comparison)]
    assert readable(properties, None) == [
        ("gguf.gate.kld_mean", "fail"),
        ("gguf.gate.kld_mean.detail", "It is too much."),
        ("gguf.baseline.same_top", "It is worse."),
    ]
    assert readable(properties, None, together=True)[0] == ("gguf.gate.kld_mean.alone", "fail")


def test_a_gate_of_a_part_says_which() -> None:
    gate = {"metric": "resid_cka", "verdict": "pass", "detail": "Fine.", "layer": 3, "head": None, "part": None}
    role = {"metric": "tensor_group_kld", "verdict": "fail", "detail": "Much.", "part": "attn_q"}
    assert readable([(GATE_PROPERTY, json.dumps(each)) for each in (gate, role)], None) == [
        ("gguf.gate.resid_cka[layer=3]", "pass"),
        ("gguf.gate.resid_cka[layer=3].detail", "Fine."),
        ("gguf.gate.tensor_group_kld[part=attn_q]", "fail"),
        ("gguf.gate.tensor_group_kld[part=attn_q].detail", "Much."),
    ]


def test_thousands_of_heads_do_not_fill_the_file() -> None:
    heads = [_row(Estimate("kld_mean", 1.0, 1), layer=layer, head=0) for layer in range(250)]
    properties = readable([*heads, _row(Estimate("ppl", 2.0, 1))], "m")
    assert sum(name == "gguf.estimate.kld_mean" for name, _ in properties) == 100
    assert properties[-2:] == [("gguf.estimate.ppl", "2 (n = 1)"), ("gguf.estimates.left_out", 150)]
