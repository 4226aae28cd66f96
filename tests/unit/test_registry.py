"""The registry of metrics: one entry each, and no list of metrics anywhere else."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.cli import main
from gguf_harness.errors import GateError
from gguf_harness.metrics.registry import (
    ESTIMATED,
    METRICS,
    Column,
    GatedBy,
    Metric,
    Registry,
    metrics_of_run,
    possible_values,
)

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "harness" / "gguf_harness"

TOY = Metric(
    name="toy_score",
    title="toy score",
    unit="fraction",
    better="higher",
    meaning="Share of toys.",
    definition="toys / all.",
    source="These tests.",
    estimated="once",
    column=Column("toy", rank=3, error=False, decimals=2),
    tables=frozenset({"html", "markdown"}),
    gate=GatedBy("toys", "test_toys"),
    parts=("prompt",),
)

# Where two names or more may stand together, and why: nothing there is a list that a new metric would have to be in.
FORMULAS = "the functions that compute these metrics name what they compute"
CHARTS = "a chart says which metrics it draws"
TESTS = "a suite's test records what it measures"
ARRAYS = "names of arrays of a measurement, which are called as the metrics made of them"
ALLOWED = {
    "metrics/*.py": FORMULAS,
    "measure/*.py": ARRAYS,
    "report/charts/*.py": CHARTS,
    "suites/*/test_*.py": TESTS,
}
STRICT = {"metrics/windows.py", "metrics/records.py"}
"""These decide by what the entries say."""


def _lists_of_metrics(source: str) -> Iterator[tuple[int, list[str]]]:
    """(line, names) of each collection in which two metrics or more are named."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.expr):
            continue
        parts: list[Any] = []
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            parts = node.elts
        elif isinstance(node, ast.Dict):
            parts = node.keys
        elif isinstance(node, ast.Call):
            parts = node.args
        # A table of rows that begin with a name is such a list, too.
        firsts = [part.elts[0] if isinstance(part, ast.Tuple) and part.elts else part for part in parts]
        names = [part.value for part in firsts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        found = [name for name in names if name in METRICS]
        if len(found) > 1:
            yield node.lineno, found


def _sources() -> Iterator[tuple[str, str]]:
    """(path, text) of what is ours but for the registry itself."""
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        if not path.startswith(("metrics/registry/", "suites/", "fixtures/")):
            yield path, file.read_text(encoding="utf-8")
    for folder in ("suites", "fixtures"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")


def test_no_other_list_of_metrics_is_kept() -> None:
    found = {path: lists for path, source in _sources() if (lists := list(_lists_of_metrics(source)))}
    excused = {path: next((form for form in ALLOWED if fnmatch(path, form)), None) for path in set(found) - STRICT}
    assert {path: lists for path, lists in found.items() if excused.get(path) is None} == {}
    assert set(excused.values()) == set(ALLOWED), "an exception is needed no more"


@pytest.mark.parametrize(
    "source",
    [
        "A = ('ppl', 'kld_mean')",
        "A = {'ppl': 1, 'kld_mean': 2}",
        "A = (('ppl', 1), ('kld_mean', 2))",
        "A = frozenset(['ppl', 'kld_mean'])",
        "f('ppl', 'kld_mean')",
    ],
)
def test_lists_are_found_in_every_form(source: str) -> None:
    assert [names for _, names in _lists_of_metrics(source)] == [["ppl", "kld_mean"]]


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_entries_are_complete(metric: Metric) -> None:
    replace(metric, early=None, window_means=None, ratio="", loss=0).check()
    assert metric.meaning.endswith(".")
    assert metric.definition.endswith(".")
    assert metric.source.endswith(".")
    assert metric.estimated in ESTIMATED
    assert not metric.ratio or METRICS[metric.ratio].gate is not None
    assert metric.early is None or metric.of_corpus
    assert metric.window_means is None or (metric.early is not None and metric.early.by != "quantile")
    assert metric.gate is None or not metric.gate.relative or metric.gate.any_model
    least, most = possible_values(metric.name)
    assert least < most
    assert metric.unit != "fraction" or (most, max(least, -1)) in {(1, 0), (1, -1), (math.inf, 0)}


def test_losses_are_in_an_order() -> None:
    places = sorted(metric.loss for metric in METRICS.values() if metric.loss)
    assert places == list(range(1, len(places) + 1))


def test_entries_survive_a_file() -> None:
    for metric in (TOY, replace(TOY, column=None, gate=None, values=(-math.inf, 3.0), tables=frozenset())):
        assert Metric.from_json(json.loads(json.dumps(metric.to_json()))) == metric
    run = {"metrics": [TOY.to_json(), TOY.to_json() | {"name": "ppl"}]}
    metrics = metrics_of_run(run)
    assert metrics["toy_score"] == TOY
    assert metrics["ppl"] == METRICS["ppl"], "a file does not redefine what is ours"
    assert "toy_score" not in METRICS


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "Toy Score"}, "name is 'Toy Score', expected 2 to 64 letters a-z, digits and _."),
        ({"name": 3}, "name is 3, expected"),
        ({"title": ""}, "title of toy_score is '', expected a text."),
        ({"title": "a\x1b[31mb"}, "expected a line of printable characters."),
        ({"meaning": "x" * 1001}, "meaning of toy_score has 1001 characters, expected a sentence."),
        ({"better": "up"}, "better of toy_score is 'up', expected one of higher, lower, neutral."),
        ({"estimated": "guess"}, "estimated of toy_score is 'guess', expected one of corpus, cache, floor,"),
        ({"values": (1.0, 0.0)}, "values of toy_score is (1.0, 0.0), expected (least, largest)."),
        ({"values": (math.nan, 1.0)}, "expected (least, largest)."),
        ({"parts": ("toys",)}, "parts of toy_score is ('toys',), expected some of"),
        ({"tables": frozenset({"xml"})}, "tables of toy_score is frozenset({'xml'}), expected some of"),
        ({"column": "toy"}, "column of toy_score is 'toy', expected a Column or None."),
        ({"column": Column(rank=-1)}, "rank of its column of toy_score is -1, expected a whole number from 0."),
        ({"column": Column(head="a\nb")}, "head of its column of toy_score is"),
        ({"decimals": 10**6}, "decimals of toy_score is 1000000, expected a whole number from 0"),
        ({"gate": "test"}, "gate of toy_score is 'test', expected a GatedBy or None."),
        ({"gate": GatedBy("", "test_toys")}, "suite of the gate of toy_score is ''"),
        ({"better": "neutral"}, "toy_score has a gate, but neither direction is better: better is 'neutral'."),
        ({"loss": 1}, "toy_score sets early, window_means, ratio or loss, which need"),
        ({"name": "ppl"}, "there is a metric 'ppl' already, of gguf-harness."),
        ({"gate": GatedBy("quant", "test_toys")}, "names the suite 'quant', which is one of gguf-harness."),
    ],
)
def test_entries_of_others_are_checked(change: dict[str, Any], problem: str) -> None:
    registry = Registry(METRICS.values())
    with pytest.raises(GateError) as caught:
        registry.add(replace(TOY, **change))
    assert problem in str(caught.value)


def test_names_are_taken_once_and_given_back() -> None:
    registry = Registry(METRICS.values())
    registry.add(TOY)
    assert list(registry)[-1] == "toy_score"
    assert not registry.is_built_in("toy_score")
    with pytest.raises(GateError, match="'toy_score' already, of another plugin"):
        registry.add(TOY)
    registry.remove(["toy_score", "ppl"])
    assert set(registry) == set(METRICS)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        TOY.to_json() | {"column": {"head": "x", "evil": 1}},
        TOY.to_json() | {"values": [0, "1"]},
        TOY.to_json() | {"values": 3},
        TOY.to_json() | {"tables": [[]]},
        TOY.to_json() | {"gate": {"suite": 1, "test": "t"}},
        TOY.to_json() | {"title": None},
    ],
)
def test_entries_of_a_file_are_checked(entry: object) -> None:
    with pytest.raises(GateError):
        Metric.from_json(entry)


def test_the_command_prints_the_glossary(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["metrics"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{told}" for name in METRICS)
    assert main(["metrics", "kld_mean"]) == 0
    told = capsys.readouterr().out
    for words in (
        METRICS["kld_mean"].definition,
        "Kullback and Leibler (1951)",
        "at least 0",
        "yes, with --gguf-until",
    ):
        assert words in told
    assert "test_distribution_stays_close_to_reference of quant decides on it, for candidates" in told
    assert main(["metrics", "--markdown"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) == len(METRICS) + 2
    assert all(len(line.replace(r"\|", "").split("|")) == 8 for line in told.splitlines())
    assert main(["metrics", "kld_maen"]) == 2
    assert "There is no metric 'kld_maen'. Did you mean 'kld_mean'?" in capsys.readouterr().err.replace("\n  ", " ")


def test_the_command_prints_what_a_run_has(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = json.loads((ROOT / "tests" / "data" / "run-smollm2" / "run.json").read_text(encoding="utf-8"))
    run["metrics"] = [TOY.to_json()]
    run["estimates"].append(run["estimates"][0] | {"metric": "toy_score"})
    file = tmp_path / "run.json"
    file.write_text(json.dumps(run), encoding="utf-8")
    assert main(["metrics", "--run", str(file), "toy_score"]) == 0
    assert "toy score" in capsys.readouterr().out
    assert main(["metrics", "--run", str(file), "attn_cosine"]) == 2
    file.write_text(json.dumps(run | {"metrics": [{"name": "x"}]}), encoding="utf-8")
    assert main(["metrics", "--run", str(file)]) == 2
    assert "metrics[0]: 'x' is not an entry of a metric" in capsys.readouterr().err
