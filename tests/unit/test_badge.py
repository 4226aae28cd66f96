"""The badge: what it says, that it is XML whatever names say, and that its text can be read."""

from __future__ import annotations

import copy
import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.report.badge import COLORS, badge_message, render_badge
from gguf_harness.report.data import RunView
from tests.unit.test_report import HOSTILE, STORED, _broken_runs

SVG = "{http://www.w3.org/2000/svg}"
RUN: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))


def _only(*kinds: str, **changes: object) -> dict[str, Any]:
    """The stored run with these candidates alone, and no failed test but theirs."""
    run = copy.deepcopy(RUN) | changes
    names = {model["name"] for model in run["models"] if model["reference"] or model["quantization"] in kinds}
    for part, key in (("models", "name"), ("tests", "model"), ("gates", "model"), ("estimates", "model")):
        run[part] = [row for row in run[part] if row[key] in names]
    return run


def _message(run: dict[str, Any]) -> tuple[str, str]:
    return badge_message(RunView(run))


def test_it_says_who_passes() -> None:
    assert _message(RUN) == ("3 of 5 pass", "some")
    assert _message(_only("Q4_K_M")) == ("Q4_K_M passes", "pass")
    assert _message(_only("Q8_0", "Q4_K_M")) == ("all 2 pass", "pass")
    assert _message(_only("IQ3_XS")) == ("IQ3_XS fails", "fail")
    assert _message(_only("IQ3_XS", "Q3_K_M")) == ("fail", "fail")
    assert _message(_only("Q4_K_M", finished=False)) == ("interrupted", "none")


def test_undecided_is_no_pass_and_no_fail() -> None:
    run = _only("Q8_0", "Q4_K_M")
    run["gates"] = [gate | {"verdict": "inconclusive"} for gate in run["gates"]]
    assert _message(run) == ("undecided", "some")
    run = _only("Q8_0")
    run["gates"] = [gate | {"verdict": "inconclusive"} for gate in run["gates"]]
    assert _message(run) == ("Q8_0 is undecided", "some")


def test_without_candidates_the_gates_of_the_one_model_count() -> None:
    broken = _broken_runs()
    assert _message(broken["empty"]) == ("no verdict", "none")
    assert _message(broken["reference only"]) == ("not gated", "none")
    run = broken["reference only"]
    gate = RUN["gates"][0] | {"model": run["models"][0]["name"]}
    assert _message(run | {"gates": [gate]}) == ("pass", "pass")
    assert _message(run | {"gates": [gate, gate | {"verdict": "fail"}]}) == ("fail", "fail")


def test_it_is_never_green_where_a_test_failed() -> None:
    run = _only("Q4_K_M")
    run["tests"].append(run["tests"][0] | {"model": None, "outcome": "failed", "message": "mine"})
    assert _message(run) == ("Q4_K_M passes, other tests fail", "fail")
    run = _only("Q4_K_M")
    next(test for test in run["tests"] if test["model"].endswith("Q4_K_M"))["outcome"] = "error"
    assert _message(run) == ("Q4_K_M not measured", "fail")


def _parse(run: dict[str, Any]) -> ET.Element:
    text = render_badge(run)
    assert text == render_badge(copy.deepcopy(run))
    return ET.fromstring(text.encode())  # noqa: S314 - our own


@given(st.text(min_size=1) | st.just(HOSTILE) | st.just("\"'&<]]>\x00\ufffe\udc80"))
def test_it_is_xml_whatever_the_name(name: str) -> None:
    run = _only("Q4_K_M")
    text = json.dumps(run).replace("smollm2-135m-Q4_K_M", json.dumps(name)[1:-1])
    root = _parse(json.loads(text))
    assert {element.tag for element in root.iter()} == {
        SVG + tag for tag in ("svg", "title", "rect", "path", "g", "text")
    }
    label, message = (element.text or "" for element in root.iter(f"{SVG}text"))
    assert label == "gguf-harness"
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}title") == f"gguf-harness: {message}"
    lengths = [int(element.attrib["textLength"]) for element in root.iter(f"{SVG}text")]
    assert int(root.attrib["width"]) == sum(lengths) + 4 * 6


def test_its_width_follows_its_text() -> None:
    short, long = (int(_parse(run).attrib["width"]) for run in (_only("Q8_0"), _only("Q4_K_M")))
    assert 10 < long - short < 20
    run = json.loads(json.dumps(_only("Q4_K_M")).replace("smollm2-135m-Q4_K_M", "W" * 500))
    assert int(_parse(run).attrib["width"]) < 700


@pytest.mark.parametrize("color", COLORS.values())
def test_white_text_can_be_read_on_it(color: str) -> None:
    """WCAG 2: relative luminance and contrast."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 4.5
