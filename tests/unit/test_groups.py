"""Files, KV caches and adapters have tables of their own: in the report, on the terminal, in markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.report.answer import answer_of
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.report.markdown import render_markdown
from gguf_harness.report.model_groups import groups_of
from gguf_harness.report.tables import numbers_tables
from gguf_harness.report.terminal import render_terminal
from tests.unit.test_report import STORED

FILE = "smollm2-135m-Q8_0"
CACHE, ADAPTED = f"{FILE} [kv=q4_0/q4_0]", f"{FILE} [lora=style]"


@pytest.fixture
def run() -> dict[str, Any]:
    """Of files, with a cache and an adapter that only their own suites measured."""
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    facts = next(model for model in content["models"] if model["name"] == FILE)
    row = content["estimates"][0] | {"value": 0.25, "se": 0.01}
    gate = content["gates"][0] | {"value": 0.25, "detail": "KL of the cache is 0.25 nats", "verdict": "fail"}
    content["models"] += [
        facts | {"name": CACHE, "file": FILE, "variant": "kv=q4_0/q4_0"},
        facts | {"name": ADAPTED, "file": FILE, "variant": "lora=style", "adapters": [{"name": "style"}]},
    ]
    content["estimates"] += [
        row | {"model": CACHE, "suite": "kv", "metric": "kv_kld"},
        row | {"model": ADAPTED, "suite": "lora", "metric": "lora_effect_retained"},
    ]
    content["gates"].append(gate | {"model": CACHE, "suite": "kv", "metric": "kv_kld"})
    return content


def test_what_other_suites_measured_stands_apart(run: dict[str, Any]) -> None:
    files, caches, adapters = groups_of(RunView(run))
    assert [model.name for model in caches.models] == [CACHE]
    assert [model.name for model in adapters.models] == [ADAPTED]
    assert len(files.models) == len(run["models"]) - 2
    assert [metric.name for metric in caches.columns(RunView(run), "html")] == ["kv_kld"]
    assert "kv_kld" not in {metric.name for metric in files.columns(RunView(run), "html")}


def test_a_cache_that_other_suites_measured_too_is_a_candidate(run: dict[str, Any]) -> None:
    row = next(row for row in run["estimates"] if row["model"] == FILE and row["metric"] == "kld_mean")
    run["estimates"].append(row | {"model": CACHE})
    assert [group.section for group in groups_of(RunView(run))] == ["decide", "adapters"]


def test_where_only_caches_were_measured_nothing_stands_apart(run: dict[str, Any]) -> None:
    run["estimates"] = [row for row in run["estimates"] if row.get("suite") == "kv"]
    run["gates"] = [gate for gate in run["gates"] if gate.get("suite") == "kv"]
    (only,) = groups_of(RunView(run))
    assert (only.section, len(only.models)) == ("decide", len(run["models"]))
    assert groups_of(RunView({"models": [], "tests": [], "estimates": [], "gates": []})) == []


def test_every_page_has_a_table_for_each(run: dict[str, Any], tmp_path: Path) -> None:
    write_html(run, STORED, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tables = dict(re.findall(r'<table class="sortable wide" id="([a-z-]+)">(.*?)</table>', page, re.DOTALL))
    assert tables.keys() == {"models", "models-cache", "models-adapters"}
    assert ["kv=q4_0/q4_0]" in body for body in tables.values()] == [False, True, False]
    assert "no data" not in tables["models-cache"]
    # What judges a cache is in its section, and leads there.
    cache = page[page.index('id="cache"') : page.index('id="adapters"')]
    assert "KL of the cache is 0.25 nats" in cache
    assert '<a href="#cache">KV cache</a>' in page
    terminal = render_terminal(run, width=100, color=False)
    heads = [line.split("  ")[0] for line in terminal.splitlines() if " verdict" in line and "size" in line]
    assert heads == ["model", "KV cache", "adapter"]
    # Files keep the columns that decide, however many caches there are.
    assert "KL mean" in next(line for line in terminal.splitlines() if line.startswith("model "))
    markdown = render_markdown(run)
    assert re.findall(r"^\| (model|KV cache|adapter) \|", markdown, re.MULTILINE) == ["model", "KV cache", "adapter"]


def test_numbers_of_adapters_are_in_their_section(run: dict[str, Any]) -> None:
    table = numbers_tables(RunView(run))["adapters"]
    assert table["heads"] == ["metric", ADAPTED]


def test_texts_with_an_adapter_do_not_differ_by_quantization(run: dict[str, Any]) -> None:
    base = {"prompt": "p", "given": "g", "tokens": 3, "templated": None, "problem": None}
    run["texts"] = [
        base | {"model": model, "text": text}
        for model, text in (("smollm2-135m-F16", "x"), (FILE, "x"), (ADAPTED, "y"))
    ]
    (said,) = [fact.says for fact in answer_of(RunView(run)) if fact.asks == "Texts"]
    assert said.endswith("(median): Q8_0 none of 1.")
