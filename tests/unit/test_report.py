"""Reports of a stored real run, and of runs that are empty, broken or hostile."""

from __future__ import annotations

import copy
import html
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import StoreError
from gguf_harness.inputs.options import Options
from gguf_harness.metrics.registry import METRICS
from gguf_harness.report import compare
from gguf_harness.report.compare import compare_runs, render_comparison
from gguf_harness.report.data import MOST_ESTIMATES, RunView, describe_windows, visible
from gguf_harness.report.html import write_html
from gguf_harness.report.markdown import render_markdown
from gguf_harness.report.numbers import format_bytes, format_estimate, format_percent, format_value
from gguf_harness.report.prices import price_list
from gguf_harness.report.tables import numbers_tables
from gguf_harness.report.terminal import render_terminal, verdict_line
from gguf_harness.store.migrations import migrate
from gguf_harness.store.run_content import content_problem

STORED = Path(__file__).parent.parent / "data" / "run-smollm2"
HOSTILE = "</script><img src=x onerror=alert(1)>[bold]|`*\x1b[2J"


@pytest.fixture
def run() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return content


def _rename(run: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    encoded = json.dumps(new)[1:-1]
    renamed: dict[str, Any] = json.loads(json.dumps(run).replace(old, encoded))
    return renamed


@pytest.mark.parametrize(
    ("value", "se", "expected"),
    [
        (12.3288, 0.5179, "12.33 ± 0.52"),
        (0.004095, 0.0000969, "0.004095 ± 0.000097"),
        (123.4, 9.96, "123 ± 10"),
        (1234.5, 99.7, "1230 ± 100"),
        (0.5, 0.0, "0.5"),  # an error of zero is not known
        (0.001419, 3.3e-05, "0.001419 ± 0.000033"),
        (30.33, 1.4462, "30.3 ± 1.4"),
        (2.5, None, "2.5"),
        (2.5, 5e-324, "2.5"),
    ],
)
def test_values_have_the_digits_that_their_error_allows(value: float, se: float | None, expected: str) -> None:
    assert format_estimate(value, se) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e5))
def test_rounding_loses_less_than_a_tenth_of_the_error(value: float, se: float) -> None:
    shown, error = (float(part) for part in format_estimate(value, se).split(" ± "))
    assert abs(shown - value) <= 0.051 * se * 1.01
    assert error == pytest.approx(se, rel=0.051)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (12, "12 B"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (105_454_144, "105 MB"),
        (93_510_208, "93.5 MB"),
        (1.5e10, "15.0 GB"),
    ],
)
def test_bytes_are_decimal(count: float, expected: str) -> None:
    assert format_bytes(count) == expected


def test_other_numbers() -> None:
    assert format_percent(0.86446, 0.0067) == "86.45 ± 0.67 %"
    assert format_percent(1.0, 0.0) == "100 %"
    assert (format_value(3.0), format_value(0.00001234), format_value(123456.0)) == ("3", "1.23e-05", "123456")


def test_the_smallest_that_passes_is_recommended(run: dict[str, Any]) -> None:
    view = RunView(run)
    assert view.recommended is not None
    assert view.recommended.name == "smollm2-135m-Q4_K_M"
    assert view.headline() == (
        "Smallest candidate that passes every gate: smollm2-135m-Q4_K_M, 105 MB (39 % of smollm2-135m-F16)"
    )
    verdicts = {model.name.rsplit("-", 1)[1]: model.verdict for model in view.models}
    assert verdicts == {
        "F16": "reference", "Q8_0": "pass", "Q5_K_M": "pass", "Q4_K_M": "pass", "Q3_K_M": "fail", "IQ3_XS": "fail",
    }  # fmt: skip
    dominated = {model.name: model.dominated_by for model in view.models if model.dominated_by}
    assert dominated == {"smollm2-135m-Q5_K_M": "smollm2-135m-Q4_K_M"}


def test_a_cache_is_not_weighed_against_the_size_of_its_file(run: dict[str, Any]) -> None:
    """It loses more than the plain file, and what it saves is elsewhere."""
    name = "smollm2-135m-Q4_K_M"
    plain = next(model for model in run["models"] if model["name"] == name)
    run["models"].append(plain | {"name": f"{name} [kv=q4_0/q4_0]", "variant": "kv=q4_0/q4_0", "file": name})
    run["estimates"] += [
        row | {"model": f"{name} [kv=q4_0/q4_0]", "value": 1.1 * row["value"]}
        for row in run["estimates"]
        if row["model"] == name
    ]
    view = RunView(run)
    assert {model.name for model in view.models if model.dominated_by} == {"smollm2-135m-Q5_K_M"}
    prices = price_list(view)
    assert prices is not None
    assert not [price.model for price in prices.prices if "kv=" in price.model]


def test_a_model_that_keeps_all_limits_is_not_said_to_miss_one(run: dict[str, Any]) -> None:
    """What fails it is a test of the person's own."""
    names = [model["name"] for model in run["models"] if not model["reference"]]
    own = [
        {"id": f"t[{name}]", "suite": "own", "model": name, "outcome": "failed", "message": "no", "kind": "assertion"}
        for name in names
    ]
    assert RunView(run | {"tests": own}).headline() == f"No candidate passes ({len(names)} tested)"
    beyond = [gate | {"verdict": "fail"} for gate in run["gates"]]
    assert RunView(run | {"gates": beyond}).headline() == f"No candidate passes every gate ({len(names)} tested)"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_table_fits_the_terminal(run: dict[str, Any], width: int) -> None:
    text = render_terminal(run, width=width, color=False)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "0.0575 ± 0.0022" in text
    assert "smollm2-135m-IQ3_XS: fail; KL mean is 0.7887" in text
    assert "\x1b" not in text
    assert "\x1b[32m" in render_terminal(run, width=width, color=True)


def test_the_terminal_shows_all_columns_where_there_is_room(run: dict[str, Any]) -> None:
    head = render_terminal(run, width=140, color=False).splitlines()[0]
    assert re.findall(r"bits/w|PPL|KL mean|same top|prompt t/s|gen\. t/s", head) == [
        "bits/w", "PPL", "KL mean", "same top", "prompt t/s", "gen. t/s",
    ]  # fmt: skip
    narrow = render_terminal(run, width=60, color=False).splitlines()[0]
    assert ("KL mean" in narrow, "verdict" in narrow, "gen. t/s" in narrow) == (True, True, False)


def test_hostile_names_are_text_everywhere(run: dict[str, Any], tmp_path: Path) -> None:
    hostile = _rename(run, "smollm2-135m-Q4_K_M", HOSTILE)
    hostile["tests"][0]["message"] = HOSTILE
    terminal = render_terminal(hostile, width=200, color=False)
    assert "\x1b[2J" not in terminal
    assert "[bold]" in terminal
    write_html(hostile, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("</script>") == page.count("<script")
    markdown = render_markdown(hostile)
    assert "<img" not in markdown
    assert "\\|" in markdown


def test_the_nodes_that_have_measured_are_named(run: dict[str, Any], tmp_path: Path) -> None:
    nodes = [
        run["machine"] | {"node": name, "harness": "1.0", "calls": calls} for name, calls in (("a1", 7), ("b2", 5))
    ]
    write_html(run | {"nodes": nodes}, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    markdown = render_markdown(run | {"nodes": nodes})
    for node in nodes:
        assert f"<dt>Ray node {node['node']}</dt>" in page
        assert f"Ray node {node['node']}: {run['machine']['cpu']}" in markdown
        assert f"{node['calls']} calls of workers" in page
        assert f"{node['calls']} calls of workers" in markdown
    whole = migrate(run) | {"nodes": nodes}
    assert content_problem(whole) is None
    assert "nodes[1]" in str(content_problem(whole | {"nodes": [nodes[0], {"node": "b2"}]}))


def _texts(run: dict[str, Any]) -> dict[str, Any]:
    """The run with texts of two models to a hostile prompt, and a row of that prompt for each before the pooled one."""
    names = [model["name"] for model in run["models"]][:2]
    base = {"prompt": HOSTILE, "given": f"a\tb\n{HOSTILE}", "templated": False, "tokens": 3, "problem": None}
    row = next(row for row in run["estimates"] if row["metric"] == "same_top")
    rows = [
        row | {"model": name, "metric": "edit_similarity", "prompt": prompt, "value": value}
        for name in names
        for prompt, value in ((HOSTILE, 0.125), (None, 0.75))
    ]
    prompts = {"name": HOSTILE, "sha256": "0" * 64, "prompts": 1, "tokens": 3}
    texts = [
        base | {"model": names[1], "text": None, "problem": f"{names[1]}: too long"},
        base | {"model": names[0], "text": HOSTILE},
    ]
    return run | {"estimates": [*run["estimates"], *rows], "prompts": prompts, "texts": texts}


def test_texts_and_prompts_are_shown_as_text(run: dict[str, Any], tmp_path: Path) -> None:
    write_html(_texts(run), STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("</script>") == page.count("<script")
    # For the view as data, and for a page without scripts as a table.
    (data,) = re.findall(r'id="texts".*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    (panel,) = json.loads(data)["panels"]
    (prompt,) = panel["data"]["prompts"]
    shown = HOSTILE.replace("\x1b", "\\x1b")
    assert (prompt["name"], prompt["given"]) == (shown, f"a   b\n{shown}")
    assert prompt["reference"]["text"] == shown
    assert "too long" in prompt["pairs"][0]["problem"]
    assert "no chat template" in prompt["note"]
    (table,) = re.findall(r'id="texts".*?<noscript>(.*?)</noscript>', page, re.DOTALL)
    assert f"<td>{html.escape(shown)}</td>" in table
    assert f"<td>a   b ⏎ {html.escape(shown)}</td>" in table
    assert "too long" in table


def test_a_row_of_one_prompt_is_not_taken_for_all(run: dict[str, Any]) -> None:
    run = _texts(run)
    view = RunView(run)
    row = view.row(run["models"][0]["name"], "edit_similarity")
    assert row is not None
    assert row["value"] == 0.75
    assert [row["model"] for row in view.texts[HOSTILE]] == [view.reference, run["models"][1]["name"]]
    changed = _texts(run)
    changed["prompts"] = changed["prompts"] | {"sha256": "1" * 64}
    assert any("changed prompts" in change for change in compare_runs(run, changed).changes)


def _broken_runs() -> dict[str, dict[str, Any]]:
    full: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    empty = full | {
        "models": [],
        "estimates": [],
        "tests": [],
        "gates": [],
        "arrays": [],
        "corpus": None,
        "engine": None,
        "warnings": [],
    }
    speed_only = copy.deepcopy(full) | {"gates": [], "arrays": [], "corpus": None}
    speed_only["estimates"] = [row for row in full["estimates"] if row["metric"] == "tg_tokens_per_s"]
    speed_only["tests"] = [test for test in full["tests"] if "test_speed" in test["id"]]
    reference_only = copy.deepcopy(full)
    reference_only["models"] = [model for model in full["models"] if model["reference"]]
    reference_only |= {"gates": [], "arrays": [], "tests": [t for t in full["tests"] if t["model"].endswith("F16")]}
    reference_only["estimates"] = [row for row in full["estimates"] if row["model"].endswith("F16")]
    unloadable = copy.deepcopy(full)
    unloadable["models"] = [model for model in full["models"] if not model["name"].endswith("Q8_0")]
    for test in unloadable["tests"]:
        if test["model"].endswith("Q8_0"):
            test |= {"outcome": "error", "message": "Q8_0 is not a valid GGUF file: it is truncated."}
    unloadable["gates"] = [gate for gate in full["gates"] if not gate["model"].endswith("Q8_0")]
    unloadable["estimates"] = [row for row in full["estimates"] if not row["model"].endswith("Q8_0")]
    unloadable["arrays"] = [entry for entry in full["arrays"] if not entry["model"].endswith("Q8_0")]
    return {
        "empty": empty,
        "killed": full | {"finished": False},
        "speed only": speed_only,
        "reference only": reference_only,
        "unloadable": unloadable,
    }


@pytest.mark.parametrize("name", _broken_runs())
def test_every_run_renders(name: str, tmp_path: Path) -> None:
    run = _broken_runs()[name]
    text = render_terminal(run, width=100, color=False)
    write_html(run, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "NaN" not in page.split("<script>")[0]
    assert render_markdown(run).startswith("## ")
    expected = {
        "empty": ("No candidates", "No data: this run measured no models"),
        "killed": ("interrupted", "interrupted"),
        "speed only": ("Measured, not gated", "measured, not gated"),
        "reference only": ("No candidates", "No candidates"),
        "unloadable": ("Q8_0: could not be measured", "it is truncated"),
    }[name]
    assert expected[0] in text
    assert expected[1] in page


@pytest.mark.parametrize("name", ["../../x.npz", "/etc/passwd", None])
@pytest.mark.parametrize(
    "kind", ["kld_quantiles", "layers", "embedding_map", "attention", "weight_errors", "head_removal", "token_strip"]
)
def test_a_report_reads_nothing_outside_of_its_run(
    run: dict[str, Any], tmp_path: Path, name: object, kind: str
) -> None:
    run["arrays"] = [{"model": run["models"][0]["name"], "name": kind, "file": name, "description": ""}]
    with pytest.raises(StoreError, match="expected one in the folder of the run"):
        write_html(run, STORED, tmp_path / "report.html")


def test_a_comparison_says_that_a_run_was_interrupted_or_is_incomplete(run: dict[str, Any]) -> None:
    session = {"selected": 9, "ran": 3, "stopped": "KeyboardInterrupt", "exit_status": 2}
    short = run | {"finished": False, "session": session}
    assert compare_runs(run, short).changes == ("the new run was interrupted: 3 of 9 tests ran (KeyboardInterrupt)",)
    name = run["models"][1]["name"]
    planned = [{"model": name, "suite": "quant", "test": "test_x", "metric": "bleu"}]
    assert compare_runs(run | {"planned": planned}, run).changes[0] == (
        f"the old run was incomplete: not all planned gates were decided of {name}"
    )


def test_a_run_compared_with_itself_does_not_differ(run: dict[str, Any]) -> None:
    comparison = compare_runs(run, run)
    assert len(comparison.differences) == len(run["estimates"])
    assert all(difference.direction == "" for difference in comparison.differences)
    assert comparison.changes == ()
    for encoding, width in (("utf-8", 100), ("ascii", 60)):
        text = render_comparison(comparison, width=width, color=False, encoding=encoding)
        assert "the runs agree in files, texts, windows, settings, engine and machine" in " ".join(text.split())
        assert "no difference beyond the error in" in text
        assert not any(word in text for word in ("better", "worse"))
        assert max(map(len, text.splitlines())) <= width
        assert text.encode(encoding)


def _row(model: str, metric: str, value: float, **where: Any) -> dict[str, Any]:
    row = {"suite": "s", "model": model, "metric": metric, "value": value, "se": 0.1, "se_iid": None, "n": 5}
    row |= {"unit": "nats", "better": "lower", "detail": HOSTILE, "prompt": None, "layer": None, "head": None}
    return row | where


def _cells(page: str) -> list[list[str]]:
    """The texts of the table of estimates, which the page makes from data when it is opened."""
    (data,) = re.findall(
        r'data-filtered="estimates">.*?<script type="application/json">(.*?)</script>', page, re.DOTALL
    )
    return [[cell[0] if isinstance(cell, list) else cell for cell in row] for row in json.loads(data)["rows"]]


def test_estimates_say_of_which_layer_head_and_prompt(run: dict[str, Any], tmp_path: Path) -> None:
    model = run["models"][0]["name"]
    run["estimates"] = [
        _row(model, "kld_mean", 1.0),
        _row(model, "resid_cosine", 0.5, layer=2),
        _row(model, "head_importance", 0.5, layer=0, head=7),
        _row(model, "ppl", 0.5, prompt=HOSTILE),
    ]
    write_html(run, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = HOSTILE.replace("\x1b", "\\x1b")
    assert [row[2:4] for row in _cells(page)] == [["", ""], ["", "layer 2"], ["", "layer 0, head 7"], [shown, ""]]
    assert "are in run.json" not in page
    assert "<img src=x" not in page


def test_the_table_of_estimates_is_bounded(run: dict[str, Any], tmp_path: Path) -> None:
    """Heads come first in the run, and last in line; what is shown keeps its order."""
    model = run["models"][0]["name"]
    heads = [_row(model, "head_importance", 1.0, layer=h // 90, head=h % 90) for h in range(9000)]
    prompts = [_row(model, "ppl", 1.0, prompt=f"p{number}") for number in range(3000)]
    layers = [_row(model, "resid_cosine", 1.0, layer=layer) for layer in range(100)]
    whole = [_row(model, f"metric_{number}", 1.0) for number in range(50)]
    run["estimates"] = [*heads, *whole, *layers, *prompts]
    write_html(run, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    cells = _cells(page)
    assert len(cells) == MOST_ESTIMATES
    assert [row[1] for row in cells] == (
        ["head_importance"] * (MOST_ESTIMATES - 150) + [row["metric"] for row in whole] + ["resid_cosine"] * 100
    )
    assert "12150 estimates" in page
    assert "2,000 of them are shown" in page
    assert "The other 10,150, of single layers, heads and prompts, are in run.json." in page
    # Of whole models nothing is left out.
    run["estimates"] = [_row(model, f"metric_{number}", 1.0) for number in range(MOST_ESTIMATES + 5)] + layers
    assert len(RunView(run).shown_estimates()) == MOST_ESTIMATES + 5


def test_differences_say_of_what(run: dict[str, Any]) -> None:
    model = run["models"][0]["name"]
    assert " where " not in render_comparison(compare_runs(run, run), width=120, color=False)
    places: list[dict[str, Any]] = [{}, {"layer": 2}, {"layer": 2, "head": 7}, {"prompt": "a\x1bb"}]
    old, new = (
        run | {"estimates": [_row(model, "kld_mean", value + place, **where) for place, where in enumerate(places)]}
        for value in (1.0, 2.0)
    )
    comparison = compare_runs(old, new)
    assert [d.where for d in comparison.differences] == ["", "layer 2", "layer 2, head 7", "a\\x1bb"]
    assert [(d.old, d.new) for d in comparison.differences] == [(1.0 + p, 2.0 + p) for p in range(4)]
    told = comparison.to_json()["differences"][2]
    assert (told["layer"], told["head"], told["prompt"]) == (2, 7, None)
    text = render_comparison(comparison, width=120, color=False)
    for words in (" where ", "layer 2, head 7", "a\\x1bb"):
        assert words in text


def test_changes_between_runs_are_named(run: dict[str, Any]) -> None:
    new = copy.deepcopy(run)
    new["id"] = "new"
    new["corpus"]["sha256"] = "0" * 64
    new["models"][1]["sha256"] = "f" * 64
    new["models"] = new["models"][:-1]
    worse = next(row for row in new["estimates"] if row["metric"] == "kld_mean")
    worse["value"] += 1
    better = next(row for row in new["estimates"] if row["metric"] == "same_top")
    better["value"] += 0.02
    noise = next(row for row in new["estimates"] if row["metric"] == "kld_mean" and row is not worse)
    noise["value"] += 2 * noise["se"]  # 1.4 times the error of the difference
    unknown = next(row for row in new["estimates"] if row["metric"] == "peak_memory_bytes")
    unknown["value"] *= 2
    new["settings"]["threads"], new["machine"]["cpu"], new["engine"]["llama_cpp"] = 1, "Other", "1234567"
    comparison = compare_runs(run, new)
    directions = {(d.model, d.metric): d.direction for d in comparison.differences if d.direction}
    assert directions == {(worse["model"], "kld_mean"): "worse", (better["model"], "same_top"): "better"}
    z = next(d.z for d in comparison.differences if d.metric == "kld_mean" and d.direction)
    assert z == pytest.approx(1 / (2**0.5 * worse["se"]))
    verdicts = {(d.model, d.metric): d.verdict for d in comparison.differences if d.verdict != "same"}
    assert verdicts[noise["model"], "kld_mean"] == "within error"
    assert verdicts[unknown["model"], "peak_memory_bytes"] == "changed"
    text = " ".join(render_comparison(comparison, width=100, color=False).split())
    for words in (
        "changed corpus: pydoc (c140e36dee0a) -> pydoc (000000000000)",
        "changed engine: 0c1e570-dirty (ggml 0.25.3) -> 1234567",
        "changed machine: AMD EPYC -> Other",
        "changed setting threads: 2 -> 1",
        "changed file",
        "only in the old run",
        "1 better, 1 worse, 1 changed, of ",
        "within error: no difference beyond the error.",
    ):
        assert words in text
    assert json.dumps(comparison.to_json(), allow_nan=False)


def test_every_setting_that_may_change_numbers_is_told(run: dict[str, Any]) -> None:
    """Those of later suites too: what is not told is listed, and the list has no setting that is gone."""
    names = {field.name for field in fields(Options)}
    assert names >= compare._UNTOLD
    old, new = (run | {"settings": dict.fromkeys(names, value)} for value in ("one", "two"))
    told = {
        line.split()[2].rstrip(":") for line in compare_runs(old, new).changes if line.startswith("changed setting")
    }
    assert told == names - compare._UNTOLD
    assert {"haystacks", "depths", "kv_reference", "lora", "lora_corpus", "rope", "beyond_context"} <= told


def test_runs_with_versions_in_their_names_are_compared(run: dict[str, Any]) -> None:
    """By type and family, which is said; the references with each other."""
    new = json.loads(json.dumps(run).replace("smollm2-135m-", "smollm3-"))
    comparison = compare_runs(run, new)
    assert {(d.partner, d.model) for d in comparison.differences} >= {("smollm2-135m-Q4_K_M", "smollm3-Q4_K_M")}
    assert {d.direction for d in comparison.differences} == {""}
    text = render_comparison(comparison, width=120, color=False)
    assert "smollm3-Q4_K_M is compared with smollm2-135m-Q4_K_M: same type Q4_K_M, same family" in text
    assert "only in" not in text
    assert comparison.problem == ""


def test_runs_without_anything_in_common_are_a_problem(run: dict[str, Any]) -> None:
    new = json.loads(json.dumps(run).replace("smollm2-135m-", "smollm3-"))
    for model in new["models"]:
        model |= {"parameters": 1, "reference": False}
    comparison = compare_runs(run, new)
    assert comparison.differences == ()
    text = " ".join(render_comparison(comparison, width=120, color=False).split())
    for words in ("Nothing was compared", "Models of the old run: smollm2-", "Models of the new run: smollm3-"):
        assert words in text
    speeds = run | {"estimates": [row | {"metric": "load_s"} for row in run["estimates"] if row["metric"] == "ppl"]}
    files = run | {"estimates": [row for row in run["estimates"] if row["metric"] == "file_bytes"]}
    assert compare_runs(speeds, files).problem.startswith("Nothing was compared")


def test_roles_are_places(run: dict[str, Any]) -> None:
    """A row of a role is compared with that role's, and never stands for the whole."""
    model = run["models"][0]["name"]
    rows = [_row(model, "weight_cosine", value, part=part) for value, part in ((0.5, "attn_q"), (0.9, None))]
    changed = [row | {"value": row["value"] + 0.1} for row in rows]
    comparison = compare_runs(run | {"estimates": rows}, run | {"estimates": changed})
    assert [(d.where, d.old) for d in comparison.differences] == [("attn_q", 0.5), ("", 0.9)]
    found = RunView(run | {"estimates": rows}).row(model, "weight_cosine")
    assert found is not None
    assert found["value"] == 0.9


def test_a_model_that_was_compared_with_nothing_has_not_passed(run: dict[str, Any], tmp_path: Path) -> None:
    model = next(gate["model"] for gate in run["gates"] if gate["verdict"] == "pass")
    absent = {
        "model": model, "metric": "", "baseline": "main", "outcome": "missing", "detail": "nothing was compared: why",
        "changes": [],
    }  # fmt: skip
    run["baseline"] = {"name": "main", "comparisons": [absent], "notes": ["a was compared with b: same type"]}
    candidate = next(candidate for candidate in RunView(run).candidates if candidate.name == model)
    assert (candidate.verdict, candidate.reasons[-1]) == ("fail", "nothing was compared: why")
    write_html(run, STORED, tmp_path / "report.html")
    texts = (
        render_terminal(run, width=140, color=False),
        (tmp_path / "report.html").read_text(encoding="utf-8"),
        render_markdown(run).replace("\\", ""),
    )
    for text in (" ".join(text.split()) for text in texts):
        assert "baseline main: 0 comparisons, 0 worse, 0 better, 1 could not be made" in text
        assert "a was compared with b: same type" in text
        assert f"{model}: nothing was compared: why" in text


def test_verdict_lines_say_why(run: dict[str, Any]) -> None:
    view = RunView(run)
    lines = {model.name: verdict_line(view, model) for model in view.candidates}
    assert lines["smollm2-135m-Q4_K_M"].startswith("smollm2-135m-Q4_K_M: pass; KL 0.0575 ± 0.0022 nats; 39 % of")
    assert "dominated by smollm2-135m-Q4_K_M" in lines["smollm2-135m-Q5_K_M"]
    assert "the limit is at most 0.1" in lines["smollm2-135m-Q3_K_M"]


@given(st.text())
def test_visible_text_is_printable(text: str) -> None:
    assert visible(text).isprintable()


def test_notes_say_what_does_not_stand_what_was_spared_and_what_changed(run: dict[str, Any], tmp_path: Path) -> None:
    gate = run["gates"][0]
    gate |= {"p_value": 0.04, "p_adjusted": 0.6, "verdict_adjusted": "inconclusive"}
    model = gate["model"]
    run["early"] = [{"model": model, "windows": 9, "planned": 16, "tokens": 4608, "saved_tokens": 3584}]
    worse, better = (
        {
            "model": model,
            "metric": "kld_mean",
            "outcome": outcome,
            "detail": f"KL is {outcome}.",
            "changes": ["file (a -> b)"],
        }
        for outcome in ("worse", "better")
    )
    run["baseline"] = {"name": "main", "comparisons": [worse, better]}
    run["tests"].append(
        {
            "id": "t",
            "suite": "quant",
            "model": model,
            "outcome": "failed",
            "message": f"{model}: KL is worse.",
            "duration_s": 0,
        }
    )
    view = RunView(run)
    candidate = next(candidate for candidate in view.candidates if candidate.name == model)
    assert (candidate.verdict, candidate.reasons) == ("fail", ("KL is worse.",))
    write_html(run, STORED, tmp_path / "report.html")
    expected = [
        "after Holm's correction over the run's 1 gates",
        f"{gate['metric']} (p = 0.04 -> 0.6)",
        "decided after 9 of 16 windows; 3584 tokens were saved",
        "baseline main: 2 comparisons, 1 worse, 1 better; changed since:",
        "KL is better.",
    ]
    page = re.sub(r"&#39;", "'", (tmp_path / "report.html").read_text(encoding="utf-8"))
    texts = {
        "terminal": " ".join(render_terminal(run, width=140, color=False).split()),
        "page": page.replace("&gt;", ">"),
    }
    markdown = render_markdown(run).replace("\\", "").replace("&gt;", ">")
    for name, text in (texts | {"markdown": markdown}).items():
        assert [words for words in expected if words not in text] == [], name


@pytest.mark.parametrize(
    ("corpus", "sentence"),
    [
        (
            {"windows": 16, "available": 237, "order": "sampled"},
            "16 of 237 windows of 512 tokens, drawn from the whole text",
        ),
        ({"windows": 16, "available": 237, "order": "first"}, "the first 16 of 237 windows of 512 tokens"),
        ({"windows": 34, "available": 34, "order": "sampled"}, "all 34 windows of 512 tokens"),
        ({"windows": 16}, "the first 16 windows of 512 tokens"),
    ],
)
def test_windows_are_described_as_they_were_chosen(run: dict[str, Any], corpus: dict[str, Any], sentence: str) -> None:
    assert describe_windows({"n_ctx": 512} | corpus) == sentence
    described = run["corpus"] | {"n_ctx": 512, "available": None, "order": None} | corpus
    chosen = run | {"corpus": described}
    assert sentence in " ".join(render_terminal(chosen, width=200, color=False).split())
    assert sentence in render_markdown(chosen)
    other = run | {"corpus": described | {"windows": 20, "available": 300, "order": "sampled"}}
    assert f"changed windows: {sentence} -> 20 of 300 windows of 512 tokens" in " ".join(
        compare_runs(chosen, other).changes
    )


def test_only_ratios_timed_in_turns_compare_speeds(run: dict[str, Any], tmp_path: Path) -> None:
    """The stored run has speeds of every model, one after the other: none of them is over another."""
    assert " x its generation speed" not in render_terminal(run, width=140, color=False)
    (row,) = (r for r in run["estimates"] if (r["model"], r["metric"]) == ("smollm2-135m-Q8_0", "tg_tokens_per_s"))
    ratio = {"metric": "tg_speed_ratio", "value": 1.21, "se": 0.0121, "se_iid": 0.0121, "clusters": 5, "n": 5}
    timed = run | {"estimates": [*run["estimates"], row | ratio | {"unit": ""}]}
    text = " ".join(render_terminal(timed, width=140, color=False).split())
    # t of 4 degrees of freedom at 97.5 % is 2.776.
    assert "1.21 x its generation speed (1.18 to 1.24)" in text
    assert text.count(" x its generation speed") == 1
    write_html(timed, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(r">1\.210</span><small[^>]*> ± 0\.012</small>", page)


def test_what_is_in_doubt_is_marked(run: dict[str, Any], tmp_path: Path) -> None:
    doubt = "other processes took 1.7 of 2 cores during 5 of 6 repetitions"
    rows = [
        row | {"doubt": doubt} if row["metric"] in {"tg_tokens_per_s", "load_s"} else row for row in run["estimates"]
    ]
    busy = run | {"estimates": rows}
    table = render_terminal(busy, width=140, color=False).splitlines()[2:8]
    assert all(re.search(r"\d+\.\d \? ", line) for line in table)
    write_html(busy, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    # Generation and load of six models.
    assert len(re.findall(r"\d</span><small[^>]*>[^<]* \?</small></td>", page)) == 12
    assert len(re.findall(r"\d \? \|", render_markdown(busy))) == 6


def test_times_of_two_runs_are_not_compared(run: dict[str, Any]) -> None:
    faster = copy.deepcopy(run) | {"id": "faster"}
    for row in faster["estimates"]:
        if row["unit"] in {"tokens/s", "s"}:
            row["value"] *= 100
    differences = compare_runs(run, faster).differences
    timed = [difference for difference in differences if METRICS[difference.metric].unit in {"tokens/s", "s"}]
    assert {difference.metric for difference in timed} >= {"pp_tokens_per_s", "tg_tokens_per_s", "load_s"}
    assert {(difference.z, difference.direction) for difference in timed} == {(None, "")}
    text = " ".join(render_comparison(compare_runs(run, faster), width=140, color=False).split())
    assert "9900" not in text
    assert (
        "times and speeds are not compared, since they were measured at different times; ratios to the reference are"
        in text
    )


def test_what_is_measured_of_models_is_shown_with_its_suite(run: dict[str, Any]) -> None:
    """Every metric of whole models has its row where its suite is, with the value of every model that has it."""
    names = [model["name"] for model in run["models"]]
    suites = {"divergence": "quant", "attention": "attention", "texts": "quant"}
    run["estimates"] = [
        run["estimates"][0] | {"metric": metric, "model": name, "suite": suites.get(family, "layers"), "value": 0.25}
        for metric, family in (("kld_mean", "divergence"), ("bleu", "texts"), ("attn_jsd", "attention"))
        for name in names[:2]
    ]
    view = RunView(run)
    tables = numbers_tables(view)
    assert set(tables) == {"decide", "attention"}
    assert [row[0] for row in tables["decide"]["rows"]] == ["KL mean, nats", "BLEU, 0-100"]
    assert [row[0] for row in tables["attention"]["rows"]] == [METRICS["attn_jsd"].title + ", nats"]
    (row,) = tables["attention"]["rows"]
    assert [cell if isinstance(cell, str) else cell[1] for cell in row[1:]] == [0.25, 0.25]
