"""A run.json from elsewhere may hold anything: it is a message, never a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.cli import main
from gguf_harness.store.migrations import migrate
from gguf_harness.store.run_content import content_problem

RUN = migrate(json.loads((Path(__file__).parents[1] / "data" / "run-smollm2" / "run.json").read_text(encoding="utf-8")))
LISTS = ("models", "tests", "estimates", "gates", "arrays")


def _changed(name: str, value: object, key: str | None = None) -> dict[str, Any]:
    run = copy.deepcopy(RUN)
    if key is None:
        run[name] = value
    else:
        run[name][-1][key] = value
    return dict(run)


def test_what_a_run_has_written_can_be_read() -> None:
    assert content_problem(RUN) is None


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (_changed("models", None), "models is null, expected a list"),
        (_changed("models", [1]), "models[0] is a number, expected a table"),
        (_changed("estimates", "x"), "estimates is a text, expected a list"),
        (_changed("gates", [{}]), "gates[0] has no model"),
        (_changed("settings", []), "settings is a list, expected a table or null"),
        (_changed("arrays", ["/etc/passwd"]), "arrays[0] is a text, expected a table"),
        (_changed("arrays", None, "file"), f"arrays[{len(RUN['arrays']) - 1}].file is null, expected a text"),
        (_changed("estimates", True, "value"), "].value is true or false, expected a number"),
        (_changed("models", "large", "bytes"), "].bytes is a text, expected a whole number"),
        (_changed("tests", [{"id": "a::b", "outcome": "passed"}]), "tests[0] has no suite"),
        (_changed("corpus", {"name": "a", "sha256": "b", "windows": "all"}), "corpus has no n_ctx"),
        (_changed("cache", {"hits": None, "misses": 0}), "cache.hits is null, expected a number"),
        (_changed("models", None, "file"), "].file is null, expected a text"),
        (_changed("models", 4, "variant"), "].variant is a number, expected a text or null"),
        (_changed("models", [], "context"), "].context is a list, expected a table or null"),
        (_changed("models", None, "adapters"), "].adapters is null, expected a list"),
        (_changed("models", ["lora"], "adapters"), "].adapters[0] is a text, expected a table"),
        (_changed("models", [{"name": "a", "sha256": "b"}], "adapters"), "].adapters[0] has no scale"),
        (
            _changed("models", [{"name": "a", "sha256": "b", "scale": "1"}], "adapters"),
            "].adapters[0].scale is a text, expected a number",
        ),
        (_changed("models", [{"name": "a", "bytes": 1}]), "models[0] has no file"),
        (
            _changed("gates", [{"model": "a", "metric": "ppl", "verdict": "pass", "detail": ""}]),
            "gates[0] has no layer",
        ),
        (_changed("gates", "high", "p_value"), "].p_value is a text, expected a number or null"),
        (_changed("estimates", 1.5, "layer"), "].layer is a number, expected a whole number or null"),
        (_changed("estimates", 2**63, "n"), "].n is a number beyond 9.2e+18"),
        (_changed("estimates", 10**400, "value"), "].value is a number beyond 1.8e+308"),
        (_changed("baseline", {"name": "a"}), "baseline has no comparisons"),
        (_changed("baseline", {"comparisons": [{"model": "a"}]}), "baseline.comparisons[0] has no layer"),
        (_changed("planned", [{"model": "a"}]), "planned[0] has no suite"),
        (_changed("texts", {}), "texts is a table, expected a list or null"),
        (_changed("started", "yesterday"), "started is 'yesterday', expected a time with its zone"),
        (_changed("started", "2026-11-24T12:30:21"), "started is '2026-11-24T12:30:21', expected a time with its zone"),
        (_changed("warnings", ["a", 1]), "warnings contains values that are not strings"),
        ({"schema_version": 1}, "it has no id or no estimates"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(
    run: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    for command in (["report", "--markdown"], ["badge"], ["compare", str(tmp_path)], ["export"]):
        assert main([*command, str(tmp_path)]) == 2
        assert problem in capsys.readouterr().err


def test_damage_of_an_older_schema_is_said_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"schema_version": 1, "id": "a", "estimates": [], "models": [{"name": 3, "bytes": 1}, None]}
    for models, problem in ((old["models"], "models[0].name is a number"), ([None], "models[0] is null")):
        (tmp_path / "run.json").write_text(json.dumps(old | {"models": models}), encoding="utf-8")
        assert main(["report", "--markdown", str(tmp_path)]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", [None, 5, "x", True, {"a": 1}])
def test_lists_are_lists_of_tables(name: str, value: object) -> None:
    assert f"{name} is " in (content_problem(_changed(name, value)) or "")
    entry = content_problem(_changed(name, [value])) or ""
    assert entry.startswith(f"{name}[0]")
