"""The plan holds what suites can decide: no more, no less."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from gguf_harness.engine.settings import KVTypes
from gguf_harness.inputs.ladder import Ladder, PlannedModel, PlannedSubject
from gguf_harness.judge.gates import Gate, load_gates
from gguf_harness.judge.plan import gated_metrics, homeless, plan_comparisons, plan_gates, suite_of
from gguf_harness.metrics.registry import METRICS

SUITES = Path(__file__).parent.parent.parent / "suites"
A, B, REFERENCE = (PlannedSubject(PlannedModel(name)) for name in ("a", "b", "reference"))


def _gated_tests() -> dict[tuple[str, str], set[str]]:
    """By suite and name: the arguments of each test that has the fixture `gate`."""
    found = {}
    for file in SUITES.glob("*/test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "gate" in (names := {each.arg for each in node.args.args}):
                found[file.parent.name, node.name] = names
    return found


def test_each_planned_test_exists_and_runs_for_the_models_that_the_plan_says() -> None:
    tests = _gated_tests()
    planned = gated_metrics()
    for metric, gate in planned.items():
        assert ("model" in tests[gate.suite, gate.test]) == gate.any_model
        of = {"candidate", "any_candidate"} if gate.of == "candidate" else {gate.of}
        assert gate.any_model or tests[gate.suite, gate.test] & of
        assert METRICS[metric].better != "neutral"
    assert planned == {metric: gate for suite in SUITES.iterdir() for metric, gate in gated_metrics(suite.name).items()}


def test_each_built_in_gate_has_a_test() -> None:
    assert set(load_gates(None)) <= set(gated_metrics())
    assert homeless(load_gates(None), []) == []
    assert homeless({"floor_kld_mean": None, "ppl": None}, []) == ["floor_kld_mean"]
    assert homeless({"floor_kld_mean": None, "ppl": None}, ["floor_kld_mean"]) == []


def test_gates_are_planned_for_each_candidate_of_a_suite_that_takes_part() -> None:
    ladder = Ladder(REFERENCE, (A, B), "")
    planned = plan_gates({"quant"}, ladder, load_gates(None))
    assert {(gate["model"], gate["metric"]) for gate in planned} == {
        (model, metric) for model in "ab" for metric in ("kld_mean", "same_top", "ppl_ratio", "delta_p_rms")
    }
    assert {gate["suite"] for gate in planned} == {"quant"}
    both = plan_gates({"quant", "attention"}, ladder, load_gates(None))
    assert len(both) - len(planned) == 2 * 2
    assert plan_gates({"heads", "layers", "embeddings"}, ladder, load_gates(None)) == []
    assert plan_gates(set(), ladder, load_gates(None)) == []
    caches = replace(ladder, cached=(PlannedSubject(A.model, KVTypes("q8_0", "q8_0")),))
    assert [(gate["model"], gate["metric"]) for gate in plan_gates({"kv"}, caches, load_gates(None))] == [
        ("a [kv=q8_0/q8_0]", "kv_kld")
    ]


def test_a_single_model_is_held_against_absolute_limits_of_its_own() -> None:
    gates = {
        "ppl": Gate("ppl", 10),
        "file_bytes": Gate("file_bytes", limit_relative=0.1),
        "kld_mean": Gate("kld_mean", 1),
    }
    planned = plan_gates({"quant"}, Ladder(REFERENCE, (), ""), gates)
    assert [(gate["model"], gate["metric"]) for gate in planned] == [("reference", "ppl")]
    assert len(plan_gates({"quant"}, Ladder(REFERENCE, (A,), ""), gates)) == 3
    assert plan_gates({"quant"}, Ladder(None, (), ""), gates) == []


def test_comparisons_are_planned_where_the_quant_suite_takes_part() -> None:
    ladder = Ladder(REFERENCE, (A, B), "")
    assert plan_comparisons({"layers"}, ladder) == []
    assert {entry["model"] for entry in plan_comparisons({"quant"}, ladder)} == {"a", "b"}


@pytest.mark.parametrize(
    ("path", "suite"),
    [
        (SUITES / "quant" / "test_file.py", "quant"),
        (SUITES / "heads", "heads"),
        (SUITES, None),
        (Path(__file__), None),
        (Path("/elsewhere/suites/quant/test_file.py"), None),
    ],
)
def test_suites_are_those_that_come_along(path: Path, suite: str | None) -> None:
    assert suite_of(path) == suite
