"""Another project's suite: a metric with test, gate, column and chart, through hooks alone."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from gguf_harness.cli import main
from gguf_harness.metrics.registry import METRICS
from tests.plugin.conftest import ReadRun
from tests.random_llama import write_random_llama

PLUGIN = '''
"""What a person would write: a metric of the bytes of a file."""

from gguf_harness.metrics.registry import Column, GatedBy, Metric
from gguf_harness.report.charts.base import make_chart


def pytest_gguf_metrics():
    yield Metric(
        name="byte_entropy_gap",
        title="byte <entropy> gap",
        unit="bits",
        better="lower",
        meaning="How much less random the bytes of the file are than the reference's.",
        definition="Mean over pieces of the file of |entropy of its bytes - that of the reference's piece|.",
        source="Shannon (1948), A Mathematical Theory of Communication.",
        estimated="file",
        column=Column("[bytes] gap", rank=1),
        tables=frozenset({"html", "markdown", "comparison"}),
        gate=GatedBy("bytes", "test_bytes"),
    )


def _chart(view, folder):
    rows = [(model.name, view.row(model.name, "byte_entropy_gap")) for model in view.candidates]
    values = {name: row["value"] for name, row in rows if row}
    if not values:
        return
    assert (folder / "run.json").is_file()
    trace = {"type": "bar", "x": list(values), "y": list(values.values())}
    figure = {"name": "gap", "meaning": "Of <each> file.", "traces": [trace], "layout": {}}
    yield make_chart("bytes", "Bytes <of> files", "Lower is better.", [figure], str(values))


def pytest_gguf_charts(config):
    return [_chart]
'''

SUITE = """
import math

import numpy as np
import pytest

from gguf_harness.metrics.records import Estimate


def _entropies(model):
    content = np.frombuffer(b"".join(file.read_bytes() for file in model.files), dtype=np.uint8)
    for piece in np.array_split(content, 8):
        share = np.bincount(piece, minlength=256) / len(piece)
        yield -float(np.sum(share[share > 0] * np.log2(share[share > 0])))


@pytest.mark.metric("byte_entropy_gap")
def test_bytes(candidate, reference, record, gate):
    gaps = np.abs(np.subtract(list(_entropies(candidate)), list(_entropies(reference))))
    estimate = Estimate("byte_entropy_gap", gaps.mean(), 8, gaps.std(ddof=1) / math.sqrt(8), clusters=8)
    record(estimate)
    gate(estimate)


def test_another(candidate):
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, llama_file: Path) -> list[str]:
    """A project with the plugin and its suite; the arguments for a session of it."""
    pytester.makepyfile(byte_plugin=PLUGIN)
    pytester.makeconftest('pytest_plugins = ["byte_plugin"]')
    folder = pytester.mkdir("bytes")
    (folder / "test_bytes.py").write_text(SUITE, encoding="utf-8")
    candidate = write_random_llama(pytester.path / "mine.gguf", noise=0.05)
    return [
        "bytes",
        f"--models={llama_file},{candidate}",
        f"--reference={llama_file}",
        "--gguf-quants=Q8_0",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
    ]


def _limit(pytester: pytest.Pytester, limit: float) -> str:
    file = pytester.path / "limits.toml"
    file.write_text(f"[byte_entropy_gap]\nlimit = {limit}\n", encoding="utf-8")
    return f"--gguf-gates={file}"


def _run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    pytester.syspathinsert()
    return pytester.runpytest_subprocess(*arguments, timeout=120)


@pytest.mark.model
@pytest.mark.parametrize("processes", [0, 2])
def test_a_metric_of_another_project_is_gated_and_shown(
    pytester: pytest.Pytester,
    project: list[str],
    read_run: ReadRun,
    processes: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*project, "-n", str(processes), "--junitxml=junit.xml"]
    result = _run(pytester, *arguments, _limit(pytester, 0.1))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    run = read_run()
    verdicts = {gate["model"]: gate["verdict"] for gate in run["gates"]}
    assert verdicts == {"mine": "pass", "random-Q8_0": "fail"}
    assert {(gate["suite"], gate["test"], gate["metric"]) for gate in run["planned"]} == {
        ("bytes", "test_bytes", "byte_entropy_gap")
    }
    assert [entry["name"] for entry in run["metrics"]] == ["byte_entropy_gap"]
    told = str(result.stdout)
    assert "[bytes] gap" in told
    assert "random-Q8_0: fail; byte <entropy> gap " in told
    properties = {
        (case.get("name"), each.get("name")): each.get("value")
        for case in ET.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314 - ours
        for each in case.iter("property")
    }
    assert str(properties["test_bytes[mine]", "gguf.estimate.byte_entropy_gap"]).endswith(" bits (n = 8)")
    assert properties["test_bytes[random-Q8_0]", "gguf.gate.byte_entropy_gap"] == "fail"

    # Later, and without the plugin: the run has what it takes.
    assert "byte_entropy_gap" not in METRICS
    (folder,) = pytester.path.glob("results/runs/*")
    page = (folder / "report.html").read_text(encoding="utf-8")
    for words in (
        "byte &lt;entropy&gt; gap</button>",
        'data-picture="plugin-bytes"',
        "Bytes &lt;of&gt; files",
        "Shannon (1948)",
    ):
        assert words in page
    assert "<entropy>" not in page
    (folder / "report.html").unlink()
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["report", str(folder)]) == 0
    assert "[bytes] gap" in capsys.readouterr().out
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    assert main(["report", str(folder), "--markdown"]) == 0
    assert "| byte &lt;entropy&gt; gap |" in capsys.readouterr().out
    assert main(["compare", str(folder), str(folder)]) == 0
    assert "byte <entropy> gap" in capsys.readouterr().out

    result = _run(pytester, *arguments, _limit(pytester, 7.5))
    assert result.ret == 0
    assert {gate["verdict"] for gate in read_run()["gates"]} == {"pass"}


@pytest.mark.model
def test_a_limit_that_no_test_decided_is_no_pass(
    pytester: pytest.Pytester, project: list[str], read_run: ReadRun
) -> None:
    result = _run(pytester, *project, _limit(pytester, 7.5), "-k", "test_another")
    assert "mine: incomplete" in str(result.stdout)
    assert {gate["metric"] for gate in read_run()["planned"]} == {"byte_entropy_gap"}


@pytest.mark.model
def test_a_baseline_knows_a_metric_of_another_project(
    pytester: pytest.Pytester, project: list[str], read_run: ReadRun
) -> None:
    limit = _limit(pytester, 7.5)
    assert _run(pytester, *project, limit, "--gguf-save-baseline=main").ret == 0
    result = _run(pytester, *project, limit, "--gguf-baseline=main")
    assert result.ret == 0, str(result.stdout)
    compared = read_run()["baseline"]["comparisons"]
    assert {(one["metric"], one["outcome"]) for one in compared} == {("byte_entropy_gap", "same")}

    file = pytester.path / "results" / "baselines" / "main.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    for model in saved["models"].values():
        for row in model["estimates"].values():
            row["value"] *= 0.5
    file.write_text(json.dumps(saved), encoding="utf-8")
    result = _run(pytester, *project, limit, "--gguf-baseline=main")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "byte <entropy> gap is" in str(result.stdout)
    assert "in the baseline 'main' it was" in str(result.stdout)

    saved["metrics"][0]["better"] = "higher"
    file.write_text(json.dumps(saved), encoding="utf-8")
    result = _run(pytester, *project, limit, "--gguf-baseline=main")
    assert result.ret == pytest.ExitCode.TESTS_FAILED, "nothing was compared"
    assert "a metric of a plugin, which now has another definition: it is not compared" in " ".join(
        str(result.stdout).split()
    )


GOOD = 'name="toys", title="t", meaning="m.", definition="d.", source="s.", estimated="once"'


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (f"return [Metric({GOOD.replace('toys', 'ppl')})]", "there is a metric 'ppl' already, of gguf-harness."),
        (f"return [Metric({GOOD}), Metric({GOOD})]", "there is a metric 'toys' already, of another plugin."),
        (f"return [Metric({GOOD.replace('once', 'luck')})]", "estimated of toys is 'luck', expected one of corpus,"),
        ("return [3]", "it returned 3, expected entries of class Metric."),
        ("return 3", "it did not return a list: TypeError"),
        ("raise RuntimeError('no toys')", "it failed: RuntimeError: no toys"),
    ],
)
def test_entries_that_cannot_be_used_are_mistakes(
    pytester: pytest.Pytester, llama_file: Path, body: str, problem: str
) -> None:
    imports = "from gguf_harness.metrics.registry import Metric\n"
    pytester.makeconftest(f"{imports}\ndef pytest_gguf_metrics():\n    {body}\n")
    result = _run(pytester, f"--models={llama_file}", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = " ".join(result.stderr.str().split())
    assert "conftest.py and its hook pytest_gguf_metrics: " in told
    assert problem in told
    assert "Traceback" not in told


def test_another_projects_session_is_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_gguf_metrics():\n    raise RuntimeError('not asked for')\n")
    pytester.makepyfile("def test_mine(): pass")
    _run(pytester, "-p", "no:cacheprovider").assert_outcomes(passed=1)


@pytest.mark.model
def test_a_chart_that_fails_costs_itself_and_is_named(
    pytester: pytest.Pytester, project: list[str], read_run: ReadRun
) -> None:
    (pytester.path / "byte_plugin.py").write_text(
        PLUGIN.replace("return [_chart]", "return [lambda view, folder: 1 / 0]"), encoding="utf-8"
    )
    result = _run(pytester, *project, _limit(pytester, 7.5))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    told = " ".join(str(result.stdout).split())
    assert "The charts of the plugin byte_plugin could not be drawn: ZeroDivisionError: division by zero." in told
    assert {gate["verdict"] for gate in read_run()["gates"]} == {"pass"}
    assert list(pytester.path.glob("results/runs/*/report.html"))
