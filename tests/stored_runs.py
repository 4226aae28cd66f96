"""Content of run.json files, for tests: the stored one, and any that a run could write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from gguf_harness.store.run_tables import LIST, NUMBER, TABLE, TABLES, TEXT, TRUTH, WHOLE

__all__ = ["STORED", "any_run", "stored_content", "write_run"]

STORED: Final = Path(__file__).parent / "data" / "run-smollm2"
"""The folder of a run of schema version 1."""

_TEXTS: Final = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["", "NA", "null", "nan", "1", "true", 'a "b", c', "two\r\nlines", "\r", "nul \0", "tiny-\udcff", "模型", "=1+1"]
)
_VALUES: Final[dict[tuple[type, ...], st.SearchStrategy[Any]]] = {
    TEXT.types: _TEXTS,
    WHOLE.types: st.integers(-(2**63) + 1, 2**63 - 1),
    NUMBER.types: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    TRUTH.types: st.booleans(),
    LIST.types: st.lists(_TEXTS, max_size=2),
    TABLE.types: st.dictionaries(_TEXTS, st.integers() | _TEXTS, max_size=2),
}
_ADAPTERS: Final = st.lists(st.fixed_dictionaries({"name": _TEXTS, "sha256": _TEXTS, "scale": st.floats(0, 2)}))


def stored_content() -> dict[str, Any]:
    """What the run.json of `STORED` holds."""
    content: dict[str, Any] = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    return content


def write_run(folder: Path, content: dict[str, Any]) -> Path:
    """A run.json of any content."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "run.json"


def any_run() -> st.SearchStrategy[dict[str, Any]]:
    """Runs of the current schema whose tables hold anything that their columns may."""
    tables = {name: st.lists(_row(name), max_size=2) for name in TABLES}
    return st.fixed_dictionaries(tables).map(
        lambda found: {
            "schema_version": 2,
            "id": "any",
            "baseline": {"comparisons": found.pop("comparisons")},
            **found,
        }
    )


def _row(table: str) -> st.SearchStrategy[dict[str, Any]]:
    columns = {}
    for name, kind in TABLES[table].items():
        nullable = type(None) in kind.types
        values = _VALUES[tuple(each for each in kind.types if each is not type(None))]
        columns[name] = _ADAPTERS if name == "adapters" else values | st.none() if nullable else values
    return st.fixed_dictionaries(columns)
