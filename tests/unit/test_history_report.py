"""What a history shows: in the terminal, as rows, and on a page without a browser."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_harness
from gguf_harness.cli import main
from gguf_harness.errors import StoreError
from gguf_harness.judge.history import History, build_history, read_history
from gguf_harness.judge.history.families import StoredContent
from gguf_harness.report.history import COLUMNS, history_csv, history_json, history_rows, render_history, write_history
from gguf_harness.report.history.charts import metric_chart
from gguf_harness.report.history.sentences import findings, headline, verdict
from gguf_harness.report.history.terminal import sparkline
from gguf_harness.report.html import embed_json
from gguf_harness.store.run_content import content_problem
from tests.history_runs import Measured, content, row, write_run_of
from tests.stored_runs import any_run
from tests.unit.test_report import HOSTILE

TEXT = np.random.default_rng(1).gamma(9.0, 0.03 / 9, 16)
COMMITS = ("3f2a91c", "a81be02", "77c0d3e", "19fe2aa", "c4d5e6f")


def commit(number: int) -> str:
    return COMMITS[number] + "0" * 33


def write_regression(results: Path, **changed: Any) -> Path:
    """Q4_K_M becomes worse in the fourth run, Q8_0 stays as it is and is not measured in the third."""
    rng = np.random.default_rng(2)
    for number, level in enumerate((0, 0, 0, 0.013, 0.013)):
        noisy = TEXT + level + rng.normal(0, 0.0003, 16)
        candidates = [Measured(noisy, sha256=f"{number:064x}")]
        if number != 2:
            candidates.append(Measured(TEXT / 10, quantization="Q8_0", sha256="8" * 64, extra={"bytes": 800}))
        limit = {"metric": "kld_mean", "limit": 0.1, "prompt": None, "layer": None, "head": None, "part": None}
        gates = [limit | {"model": "toy-Q4_K_M", "verdict": "pass", "detail": "within"}]
        write_run_of(results, number, candidates, commit=commit(number), gates=gates, **changed)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_regression(tmp_path_factory.mktemp("results"))


@pytest.fixture
def history(results: Path) -> History:
    return read_history(results)


def test_the_headline_is_the_finding(history: History) -> None:
    (family,) = history
    assert re.fullmatch(r"Q4_K_M got worse at 19fe2aa: KL mean 0\.0\d+ → 0\.0\d+ nats", headline(family))
    assert [one.says for one in findings(family)] == [headline(family)]


def test_a_regression_made_good_is_told_as_such(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for number, level in enumerate((0, 0.013, 0)):
        noisy = TEXT + level + rng.normal(0, 0.0003, 16)
        write_run_of(tmp_path, number, [Measured(noisy, sha256=f"{number:064x}")], commit=commit(number))
    (family,) = read_history(tmp_path)
    marks = [(one.point.mark, one.again) for one in findings(family)]
    assert marks == [("better", False), ("worse", True)]
    assert findings(family)[1].says.endswith("; most of it is undone since")


def test_verdicts_are_words(history: History) -> None:
    (family,) = history
    said = {series.role: verdict(series, family.moments) for series in family.series}
    assert said == {"Q8_0": "same file, same number", "Q4_K_M": "worse than at first"}


def test_the_table_has_a_line_of_blocks_for_each_series(history: History) -> None:
    text = render_history(history, width=120, color=False)
    assert "toy-F16 (ffffffffffff): 5 runs, 2026-11-01 to 2026-11-05" in text
    lines = {line.split()[0]: line for line in text.splitlines() if "KL mean, nats" in line}
    assert set(lines) == {"Q8_0", "Q4_K_M"}
    assert "▅▅ ▅▅" in lines["Q8_0"]
    assert re.search(r"▁▁▁█[▇█]", lines["Q4_K_M"])
    assert lines["Q4_K_M"].rstrip().endswith("worse than at first")
    assert "7 changes were tested together" in text
    assert "paired by window" in text


@pytest.mark.parametrize("width", [20, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_it_fits_any_terminal(history: History, width: int, encoding: str) -> None:
    text = render_history(history, width=width, color=False, encoding=encoding)
    text.encode(encoding)
    assert max(len(line) for line in text.splitlines()) <= max(60, width)
    if encoding == "ascii":
        assert "\\u" not in text
        assert "+/-" in text


def test_colours_are_only_given_where_wanted(history: History) -> None:
    assert "\x1b[" not in render_history(history, width=100, color=False)
    assert "\x1b[31m" in render_history(history, width=100, color=True)


def test_a_bar_parts_what_cannot_be_compared(tmp_path: Path) -> None:
    for number, windows in enumerate((16, 16, 8)):
        write_run_of(tmp_path, number, [Measured(TEXT[:windows], sha256=f"{number:064x}")], windows=windows)
    history = read_history(tmp_path)
    (family,) = history
    assert sparkline(family.series[0], 3).count("|") == 1
    text = " ".join(render_history(history, width=100, color=False).split())
    assert "new conditions at 2026-11-03 12:00: windows (16 drawn from 237 -> 8 drawn from 237)" in text
    assert verdict(family.series[0], family.moments) == "new conditions"


def test_a_history_of_one_run_says_so(tmp_path: Path) -> None:
    write_run_of(tmp_path, 0, [Measured(TEXT)])
    text = render_history(read_history(tmp_path), width=100, color=False)
    assert "One run so far: nothing to compare it with" in text
    assert "first value" in text


def test_rows_have_all_columns_and_the_numbers_of_the_runs(history: History, results: Path) -> None:
    rows = history_rows(history)
    assert len(rows) == 9
    assert all(list(row) == list(COLUMNS) for row in rows)
    (worse,) = [row for row in rows if row["mark"] == "worse"]
    assert (worse["role"], worse["commit"], worse["previous_how"]) == ("Q4_K_M", commit(3), "paired")
    assert (worse["limit"], worse["segment"], worse["previous_windows"]) == (0.1, 0, 16)
    stored = json.loads((results / "runs" / worse["run"] / "run.json").read_text())
    found = [one for one in stored["estimates"] if (one["model"], one["metric"]) == ("toy-Q4_K_M", "kld_mean")]
    value = found[0]["value"]
    assert worse["value"] == value
    same = next(row for row in rows if row["role"] == "Q8_0" and row["previous_run"])
    assert (same["previous_outcome"], same["previous_change"], same["previous_p"]) == ("same", 0.0, None)


def test_csv_and_json_say_the_same(history: History) -> None:
    rows = list(csv.DictReader(io.StringIO(history_csv(history))))
    told = json.loads(json.dumps(history_json(history), allow_nan=False))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in told["rows"]]
    assert {row["dirty"] for row in rows} == {"false"}
    assert {row["doubt"] for row in rows} == {""}
    (family,) = told["families"]
    assert family["finding"].startswith("Q4_K_M got worse at 19fe2aa")
    assert [run["commit"] for run in family["runs"]] == [commit(number) for number in range(5)]
    assert (told["tested"], told["left_out"]) == (7, [])


def test_the_api_gives_a_data_frame(results: Path) -> None:
    frame = gguf_harness.history(results)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["value"].dtype == "float64"
    assert frame["segment"].dtype == "Int64"
    assert str(frame["started"].dtype).endswith("UTC]")
    assert frame.query("mark == 'worse'")["commit"].tolist() == [commit(3)]
    assert frame.attrs["left_out"] == []
    one = gguf_harness.history(results, ["last"], models=["Q8_0"], metrics=["all"])
    assert one["previous_change"].isna().all()
    with pytest.raises(StoreError, match="There are no runs"):
        gguf_harness.history(results / "none")


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_a_page(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["history", f"--gguf-results={results}", f"--html={page}"]) == 0
    output = capsys.readouterr()
    assert "Q4_K_M got worse at 19fe2aa" in output.out
    assert output.out.endswith(f"page: {page}\n")
    assert output.err == ""
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_what_a_program_reads_is_alone_in_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_regression(tmp_path)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    assert main(["history", "--results", str(tmp_path), "--json", "--models=Q4*"]) == 0
    output = capsys.readouterr()
    assert {row["role"] for row in json.loads(output.out)["rows"]} == {"Q4_K_M"}
    assert output.err.startswith("left out: broken: ")
    assert main(["history", "--results", str(tmp_path), "--csv", "--metric=kld_mean,ppl", "20260004"]) == 0
    output = capsys.readouterr()
    assert {row["metric"] for row in csv.DictReader(io.StringIO(output.out))} == {"kld_mean", "ppl"}
    assert output.err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metric=kld"], "--metric=kld: unknown metric"),
        (["--models=Q2_K"], "--models=Q2_K: no run has a model of that name or type"),
        (["nowhere"], "There is no run 'nowhere'"),
        (["--gguf-results=/nowhere"], "There are no runs in /nowhere/runs"),
    ],
)
def test_mistakes_are_named(results: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", f"--gguf-results={results}", *arguments]) == 2
    assert says in capsys.readouterr().err


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_its_sentences_and_numbers_without_scripts(history: History, tmp_path: Path) -> None:
    write_history(history, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    (family,) = history
    assert f"<h1>{headline(family)}</h1>" in text
    assert "default-src 'none'" in text
    assert "not measured" in text
    assert "(worse)" in text
    assert not re.search(r"(?:src|href)=\"?https?:", text)


def test_points_lead_to_reports_that_are_there(tmp_path: Path) -> None:
    results = write_regression(tmp_path / "a folder: of#results?")
    first, *_ = sorted((results / "runs").iterdir())
    (first / "report.html").write_text("report")
    write_history(read_history(results), tmp_path / "pages" / "page.html")
    text = (tmp_path / "pages" / "page.html").read_text(encoding="utf-8")
    address = f"./../a%20folder%3A%20of%23results%3F/runs/{first.name}/report.html"
    assert text.count(f'<a href="{address}">') == 1
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', text)[0])
    runs = data["panels"][0]["data"]["runs"]
    assert [run.get("href") for run in runs] == [address, None, None, None, None]


def test_the_picture_has_gaps_marks_and_limits(history: History, tmp_path: Path) -> None:
    write_history(history, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', text)[0])
    assert found["view"] == "history"
    data = found["panels"][0]["data"]
    assert data["models"][0] | {"series": 0} == {"name": "Q8_0", "short": "Q8_0", "role": "candidate", "series": 0}
    lines = [(data["models"][line["model"]]["name"], [point[0] for point in line["points"]]) for line in data["lines"]]
    assert lines == [("Q8_0", [0, 1]), ("Q8_0", [3, 4]), ("Q4_K_M", [0, 1, 2, 3, 4])]
    assert [point[4] for point in data["lines"][2]["points"]] == [None, None, None, "worse", None]
    assert data["limits"] == [{"from": 0, "to": 4, "value": 0.1, "text": "limit: at most 0.1"}]
    assert [run["label"] for run in data["runs"]] == list(COMMITS)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    for number in range(2):
        candidate = Measured(TEXT + number, quantization=HOSTILE, name=HOSTILE, sha256=f"{number:064x}")
        file = write_run_of(tmp_path, number, [candidate], commit=HOSTILE)
        content = json.loads(file.read_text())
        content["corpus"]["name"], content["engine"]["llama_cpp"] = HOSTILE, f"{HOSTILE}{number}"
        file.write_text(json.dumps(content))
    history = read_history(tmp_path)
    text = render_history(history, width=100, color=False)
    assert "\x1b" not in text
    write_history(history, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script")
    history_csv(history).encode()
    json.dumps(history_json(history))


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.fixed_dictionaries(
    {
        "metric": st.sampled_from(["kld_mean", "same_top", "ppl_ratio", "file_bytes", "tg_tokens_per_s", "unknown"]),
        "value": NUMBERS,
        "se": st.none() | NUMBERS,
        "clusters": st.none() | st.integers(-(2**63) + 1, 2**63 - 1),
        "n": st.none() | st.integers(-(2**63) + 1, 2**63 - 1),
        "doubt": st.none() | st.text(max_size=5),
    }
)


@settings(max_examples=40)
@given(st.lists(st.lists(ROWS, max_size=3), min_size=1, max_size=4), st.lists(any_run(), max_size=1))
def test_whatever_runs_hold_is_shown(rows: list[list[dict[str, Any]]], others: list[dict[str, Any]]) -> None:
    """All that the check of a run's content lets through."""
    runs = [content(number, [Measured(None, sha256=f"{number:064x}")]) for number in range(len(rows))]
    for run, of_run in zip(runs, rows, strict=True):
        run["estimates"] = [row("toy-Q4_K_M", "kld_mean", 0, None) | one for one in of_run]
        assert content_problem(run) is None
    history = build_history(
        [StoredContent(Path(f"{place}/run.json"), run) for place, run in enumerate([*runs, *others])]
    )
    render_history(history, width=80, color=False, encoding="ascii").encode("ascii")
    json.dumps(history_json(history), allow_nan=False)
    history_csv(history).encode()
    for family in history:
        for metric in family.metrics:
            embed_json(metric_chart(family, metric, "chart", [None] * len(family.moments)))
