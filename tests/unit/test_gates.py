"""Gates decide by bounds; malformed files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import GateError
from harness.gates import Gate, decide, load_gates
from harness.records import Estimate


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
        ("[kld_mean", "not valid TOML"),
        ("[kld_men]\nlimit = 1", "Did you mean 'kld_mean'"),
        ("[kld_mean]\nlimt = 1", "Expected `limit`"),
        ("[kld_mean]\nlimit = 'low'", "expected a finite number"),
        ("[kld_mean]\nlimit = nan", "expected a finite number"),
        ("[kld_mean]\nlimit = true", "expected a finite number"),
        ("[kld_mean]\nlimit = 1\nconfidence = 95", "between 0.5 and 1"),
        ("[delta_p_median]\nlimit = 1", "neither direction is better"),
        ("kld_mean = 3", "Expected `limit`"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "gates.toml"
    file.write_text(text)
    with pytest.raises(GateError, match=message):
        load_gates(file)
