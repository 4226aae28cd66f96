"""A run.json from elsewhere may hold anything: it is a message, never a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.cli import main
from gguf_harness.store.run_content import content_problem

RUN = json.loads((Path(__file__).parents[1] / "data" / "run-smollm2" / "run.json").read_text(encoding="utf-8"))
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
        (_changed("models", "large", "bytes"), "].bytes is a text, expected a number"),
        (_changed("tests", [{"id": "a::b", "outcome": "passed"}]), "tests[0] has no suite"),
        (_changed("corpus", {"name": "a", "sha256": "b", "windows": "all"}), "corpus has no n_ctx"),
        (_changed("cache", {"hits": None, "misses": 0}), "cache.hits is null, expected a number"),
        (_changed("warnings", ["a", 1]), "warnings holds something other than texts"),
        ({"schema_version": 1}, "it has no id or no estimates"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(
    run: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    for command in (["report", "--markdown"], ["badge"], ["compare", str(tmp_path)]):
        assert main([*command, str(tmp_path)]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", [None, 5, "x", True, {"a": 1}])
def test_lists_are_lists_of_tables(name: str, value: object) -> None:
    assert f"{name} is " in (content_problem(_changed(name, value)) or "")
    entry = content_problem(_changed(name, [value])) or ""
    assert entry.startswith(f"{name}[0]")
