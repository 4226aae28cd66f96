"""Convert earlier versions of run.json to the current one, step by step, without losing anything.

Version 2: an entry of `models` is a subject, a model file and how it is run (`file`, `variant`, `context`, `adapters`).
Estimates, gates and comparisons give their place by the same four keys: prompt, layer, head, part.

A key that a version gained later is missing in its older runs, which means null: `git`; `shard`, which part of a run it
is; `merged`, the parts that it was merged from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gguf_harness.errors import StoreError
from gguf_harness.metrics.records import SCHEMA_VERSION, Place

__all__ = ["migrate"]


def migrate(content: Mapping[str, Any], source: str = "The run") -> dict[str, Any]:
    """The content of a run.json, converted to the current version if it is older.

    Damage is not repaired: `gguf_harness.store.run_content` checks the result.

    Args:
        content: of a run.json of any version so far; not modified.
        source: begins the message of an error.

    Raises:
        StoreError: no version, or one that this harness does not read.
    """
    version = content.get("schema_version")
    if type(version) is not int:
        raise StoreError(f"{source} is not a run: it has no schema_version.", "Give a run.json.")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{source} has schema version {str(version)[:20]}, this harness reads up to {SCHEMA_VERSION}.",
            "Update gguf-harness.",
        )
    if version < 1:
        raise StoreError(
            f"{source} is not a run: it has schema version {str(version)[:20]}, expected 1 to {SCHEMA_VERSION}.",
            "Give a run.json in the form in which a run wrote it.",
        )
    migrated = dict(content)
    for earlier in range(version, SCHEMA_VERSION):
        migrated = _STEPS[earlier](migrated) | {"schema_version": earlier + 1}
    return migrated


def _to_version_2(content: dict[str, Any]) -> dict[str, Any]:
    changed = content | {
        name: _with_place(content[name]) for name in ("estimates", "gates") if isinstance(content.get(name), list)
    }
    if isinstance(content.get("models"), list):
        changed["models"] = [_as_subject(model) for model in content["models"]]
    baseline = content.get("baseline")
    if isinstance(baseline, dict) and isinstance(baseline.get("comparisons"), list):
        changed["baseline"] = baseline | {"comparisons": _with_place(baseline["comparisons"])}
    return changed


def _as_subject(model: Any) -> Any:
    """A model of version 1: its file with default settings. Which context it ran in was not recorded."""
    if not isinstance(model, dict) or "name" not in model:
        return model
    return {"file": model["name"], "variant": None, "context": None, "adapters": []} | model


def _with_place(rows: list[Any]) -> list[Any]:
    nowhere = Place()._asdict()
    return [nowhere | row if isinstance(row, dict) else row for row in rows]


_STEPS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {1: _to_version_2}
"""The step from each version to the next one."""
