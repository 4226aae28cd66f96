"""Needles: what a file of facts may contain, and estimates of their answers against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gguf_harness.errors import NoData, PromptError
from gguf_harness.inputs.needles import load_needles
from gguf_harness.metrics.needle_scores import compare_needles, depth_name, summarize_needles
from gguf_harness.metrics.records import Estimate

DEPTHS = (0.0, 0.5)
GOOD = '[[needle]]\nid = "a"\nstatement = "The code is"\nanswer = "7"\n'

logprobs = hnp.arrays(np.float64, (4, 2, 3), elements=st.floats(-60, 0, width=32))


def _by_place(estimates: list[Estimate]) -> dict[tuple[str, str | None], Estimate]:
    return {(estimate.metric, estimate.place.part): estimate for estimate in estimates}


@given(logprobs)
def test_the_lift_is_what_the_fact_adds_in_each_text(logprob: NDArray[np.float64]) -> None:
    rank = np.full(logprob.shape, 4)
    found = _by_place(summarize_needles({"logprob": logprob, "rank": rank}, DEPTHS))
    for column, depth in enumerate(DEPTHS, start=1):
        part = depth_name(depth)
        lifts = [logprob[n, h, column] - logprob[n, h, 0] for n in range(4) for h in range(2)]
        assert found["needle_lift", part].value == pytest.approx(math.fsum(lifts) / 8, abs=1e-9)
        by_needle = [(lifts[2 * n] + lifts[2 * n + 1]) / 2 for n in range(4)]
        assert found["needle_lift", part].se == pytest.approx(np.std(by_needle, ddof=1) / 2, rel=1e-6, abs=1e-9)
        assert found["needle_logprob", part].value == pytest.approx(logprob[..., column].mean())
        assert (found["needle_lift", part].n, found["needle_lift", part].clusters) == (8, 4)
    over_all = np.mean([found["needle_lift", depth_name(depth)].value for depth in DEPTHS])
    assert found["needle_lift", None].value == pytest.approx(over_all, abs=1e-9)
    assert found["needle_lift", None].n == 16
    assert found["needle_rank", None].value == pytest.approx(4)


def test_intervals_hold_only_what_is_possible() -> None:
    """Of three facts, one of which is not found, the plain interval reaches beyond certainty and before rank 1."""
    logprob, rank = np.full((3, 1, 3), -0.01), np.ones((3, 1, 3))
    logprob[2], rank[2] = -9.0, 800
    found = _by_place(summarize_needles({"logprob": logprob, "rank": rank}, DEPTHS))
    assert found["needle_logprob", None].high == 0
    assert found["needle_rank", None].low == 1


def test_the_rank_is_a_geometric_mean() -> None:
    rank = np.array([[[9, 1, 10]], [[9, 100, 1000]]])
    found = _by_place(summarize_needles({"logprob": -rank / 10, "rank": rank}, DEPTHS))
    assert found["needle_rank", "0 %"].value == pytest.approx(10)
    assert found["needle_rank", "50 %"].value == pytest.approx(100)
    assert found["needle_rank", None].value == pytest.approx((1 * 10 * 100 * 1000) ** 0.25)
    assert found["needle_rank", "0 %"].se == pytest.approx(10 * math.log(10))


@given(logprobs, st.floats(0, 5))
def test_a_change_is_paired_and_of_the_fact_alone(logprob: NDArray[np.float64], loss: float) -> None:
    """Where every answer loses the same, the change is that, without an error, whatever the texts are like."""
    worse = logprob - loss
    found = _by_place(compare_needles({"logprob": worse}, {"logprob": logprob}, DEPTHS))
    assert set(found) == {("needle_change", part) for part in (None, "0 %", "50 %")}
    for estimate in found.values():
        assert estimate.value == pytest.approx(-loss, abs=1e-6)
        assert estimate.se == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 2, 2), (4, 3), (0, 2, 3)])
def test_what_is_not_read_at_every_depth(shape: tuple[int, ...]) -> None:
    with pytest.raises(NoData):
        summarize_needles({"logprob": np.zeros(shape), "rank": np.ones(shape)}, DEPTHS)


def test_the_built_in_facts() -> None:
    found = load_needles()
    assert len(found.needles) >= 5
    assert len({needle.statement for needle in found.needles}) == len(found.needles)
    assert not any(needle.answer in needle.statement for needle in found.needles)


def test_layout_of_the_file_is_not_part_of_its_hash(tmp_path: Path) -> None:
    other = GOOD.replace('"a"', '"b"')
    for name, text in (("one", GOOD + other), ("two", f"# facts\n\n{GOOD}\n\n{other}"), ("three", other + GOOD)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    one, two, three = (load_needles(tmp_path / name) for name in ("one", "two", "three"))
    assert one.sha256 == two.sha256 != three.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD, r"has 1 \[\[needle\]\], expected at least 2"),
        ("", r"has no \[\[needle\]\]"),
        ("needle = 3", r"has no \[\[needle\]\]"),
        (GOOD + GOOD + "[other]", "and nothing else"),
        (GOOD + GOOD, "has the id 'a' twice"),
        (GOOD + '[[needle]]\nid = "b"\nstatement = "x"', r"needle\[1\] of 'facts.toml' is malformed"),
        (GOOD + '[[needle]]\nid = "b"\nstatement = "x"\nanswer = " "', r"needle\[1\] of 'facts.toml' is malformed"),
        (GOOD + '[[needle]]\nid = "b"\nstatement = "x"\nanswer = 7', r"needle\[1\] of 'facts.toml' is malformed"),
        ("[[needle", "is not TOML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "facts.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=message):
        load_needles(file)
