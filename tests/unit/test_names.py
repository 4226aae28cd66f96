"""Five hundred names of files: each is a model, and each result of it can be stored and shown."""

from __future__ import annotations

import copy
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.errors import is_utf8, visible
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import expand, expand_all
from gguf_harness.pytest_plugin.junit import readable
from gguf_harness.pytest_plugin.state import GATE_PROPERTY
from gguf_harness.report.badge import render_badge
from gguf_harness.report.compare import compare_runs, render_comparison
from gguf_harness.report.github import annotation_lines
from gguf_harness.report.html import write_html
from gguf_harness.report.inspect import render_info
from gguf_harness.report.markdown import render_markdown
from gguf_harness.report.terminal import render_terminal
from gguf_harness.store.file_hashes import hash_files
from gguf_harness.store.migrations import migrate
from gguf_harness.store.paths import file_name
from gguf_harness.store.runs import load_run, write_json
from tests.nasty_names import nasty_names
from tests.random_llama import write_random_llama

NAMES = nasty_names(500)
STORED = Path(__file__).parent.parent / "data" / "run-smollm2" / "run.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model under all names, a file for each: another link to a file would be the same model."""
    folder = tmp_path_factory.mktemp("names")
    file = write_random_llama(folder / "model.bin", width=32, n_layer=1)
    for name in NAMES:
        shutil.copyfile(file, folder / f"{name}.gguf")
    return folder


def test_every_file_is_a_model_of_its_own(folder: Path, tmp_path: Path) -> None:
    models: dict[str, Any] = {}
    for name in NAMES:
        (source,) = expand(str(folder / f"{name}.gguf"))
        assert source.files == (folder / f"{name}.gguf",)
        assert source.name == visible(name)
        info = load_info(source)
        assert render_info(info, color=False).replace("\n", "").isprintable()
        models[info.name] = info.to_json() | {"origin": visible(source.spec)}
        (tmp_path / f"{file_name(source.name)}.server.log").write_text("log")
    run = {"schema_version": 1, "id": "a", "models": [*models.values()], "estimates": []}
    write_json(tmp_path / "run.json", run)
    assert load_run(tmp_path / "run.json") == migrate(run)
    assert set(models) == {visible(name) for name in NAMES}
    assert len(list(tmp_path.glob("*.log"))) == len(NAMES)


def test_a_folder_of_them_has_names_of_their_own(folder: Path) -> None:
    sources = expand_all([str(folder)])
    names = [source.name for source in sources]
    assert len(set(names)) == len(names) > 450
    assert all(name.isprintable() and is_utf8(name) for name in names)


def test_hashes_are_remembered_under_any_name(folder: Path, tmp_path: Path) -> None:
    digests = {hash_files([folder / f"{name}.gguf"], tmp_path) for name in NAMES[:50]}
    assert digests == {hash_files([folder / f"{name}.gguf"], tmp_path) for name in NAMES[:50]}
    assert len(digests) == 1


def _run_of(names: list[str]) -> dict[str, Any]:
    """A stored run with a candidate of each name, its rows and its gates."""
    run: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    old = "smollm2-135m-Q4_K_M"
    (model,) = [model for model in run["models"] if model["name"] == old]
    for name in names:
        run["models"].append(copy.deepcopy(model) | {"name": name, "path": f"{name}.gguf"})
        for kind in ("estimates", "gates", "tests"):
            rows = [row for row in run[kind] if row["model"] == old and row.get("metric", "ppl") in {"ppl", "kld_mean"}]
            changed = {"model": name, "detail": name} if kind != "tests" else {"model": name, "message": name}
            run[kind] += [row | changed for row in rows]
    return run | {"arrays": [], "warnings": [f"{name}: a warning" for name in names], "command": ["pytest", *names]}


@pytest.mark.parametrize("first", range(0, len(NAMES), 50))
def test_every_report_can_be_written(tmp_path: Path, first: int) -> None:
    """Runs keep names visible; what another version stored may be as it was."""
    names = NAMES[first : first + 50]
    run = _run_of([visible(name) for name in names[:25]] + names[25:])
    write_json(tmp_path / "run.json", run)
    stored = load_run(tmp_path / "run.json")
    assert stored == migrate(run)
    write_html(stored, tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b></td>" not in page
    assert page.count("tiny-\\xff") > 2 or first > 0
    texts = [render_markdown(stored), render_terminal(stored, width=100, color=False), *annotation_lines(stored)]
    texts += [render_comparison(compare_runs(stored, stored), width=100, color=False)]
    for text in texts:
        assert is_utf8(text)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\u2028]", text)
    ET.fromstring(render_badge(stored))  # noqa: S314 - ours


def test_junit_has_no_character_that_xml_does_not_know() -> None:
    for name in NAMES:
        gate = json.dumps({"metric": "ppl", "verdict": "fail", "detail": name})
        for key, value in readable([(GATE_PROPERTY, gate)], name):
            assert f"{key}{value}".isprintable()
