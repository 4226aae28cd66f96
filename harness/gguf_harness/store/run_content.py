"""Check the content of a run.json before it is used: it may come from anywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from gguf_harness.errors import GateError
from gguf_harness.metrics.records import Place
from gguf_harness.metrics.registry import Metric
from gguf_harness.store.run_tables import LIST, NUMBER, TABLE, TABLES, TEXT, TRUTH, WHOLE, Kind, rows_of

__all__ = ["content_problem"]

_TYPE_NAMES: Final[dict[type, str]] = {
    str: "a text",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a table",
    bool: "true or false",
    type(None): "null",
}

_LARGEST: Final = sys.float_info.max
_LARGEST_WHOLE: Final = 2**63 - 1

_Kinds = Mapping[str, Kind]

_RUN: Final[_Kinds] = {
    "id": TEXT,
    "started": TEXT,
    "harness": TEXT,
    "duration_s": NUMBER,
    "finished": TRUTH,
    "reference_reason": TEXT.or_null,
    "command": LIST,
    "warnings": LIST,
    **dict.fromkeys(("machine", "engine", "git", "corpus", "settings", "cache", "baseline", "session"), TABLE.or_null),
    **dict.fromkeys(("shard", "merged", "forecast", "budget"), TABLE.or_null),
    **dict.fromkeys(("models", "tests", "estimates", "gates", "arrays"), LIST),
    **dict.fromkeys(("planned", "texts", "heads", "metrics", "nodes"), LIST.or_null),
}
"""Expected kinds of a run's values, by place."""

_PARTS: Final[Mapping[str, _Kinds]] = {
    "corpus": {"name": TEXT, "sha256": TEXT, **dict.fromkeys(("windows", "n_ctx", "scored_tokens"), NUMBER)},
    "cache": {"hits": NUMBER, "misses": NUMBER},
    "git": {"commit": TEXT, "dirty": TRUTH.or_null},
    "baseline": {"comparisons": LIST},
    "shard": {"index": WHOLE, "of": WHOLE, "plan": TABLE},
    "merged": {"of": WHOLE, "shards": LIST, "missing": LIST},
    "forecast": {"predicted_s": NUMBER, "actual_s": NUMBER, "measurements": LIST},
    "budget": {"seconds": NUMBER, "reduced": LIST, "left_out": LIST},
}
"""The same for tables that occur once."""

_PLAN: Final[_Kinds] = {
    "digest": TEXT,
    "harness": TEXT,
    "reference": TEXT.or_null,
    **dict.fromkeys(("models", "suites", "comparisons"), LIST),
    **dict.fromkeys(("settings", "gates", "texts", "tests", "compared_with"), TABLE),
}
_PLANNED_MODEL: Final[_Kinds] = {
    "name": TEXT, "file": TEXT, "shard": WHOLE, "bytes": WHOLE, "content": TABLE, "identity": TABLE.or_null,
}  # fmt: skip
_PART: Final[_Kinds] = {"index": WHOLE, "run": TEXT, "started": TEXT, "duration_s": NUMBER, "machine": TABLE.or_null}
_MISSING: Final[_Kinds] = {"index": WHOLE, "models": LIST}
"""Of a part of a run, and of one that was merged from parts."""
_NODE: Final[_Kinds] = {
    **dict.fromkeys(("node", "harness", "cpu", "system", "python"), TEXT),
    **dict.fromkeys(("cores", "memory_bytes", "calls"), NUMBER),
    "gpus": LIST,
}
"""Of a node of a cluster that has measured."""

_ROWS: Final[Mapping[tuple[str, str], _Kinds]] = {
    ("forecast", "measurements"): {"name": TEXT, "predicted_s": NUMBER, "actual_s": NUMBER},
    ("budget", "reduced"): {"what": TEXT, "option": TEXT, "kept": NUMBER, "of": NUMBER.or_null},
    ("budget", "left_out"): {"suite": TEXT, "test": TEXT, "model": TEXT},
}
"""Rows of these tables, all of whose values are needed."""

_ADAPTER: Final[_Kinds] = {"name": TEXT, "sha256": TEXT, "scale": NUMBER}

_NEEDED: Final[Mapping[str, Sequence[str]]] = {
    "models": ("name", "file", "variant", "context", "adapters", "bytes"),
    "tests": ("id", "outcome", "suite", "message"),
    "estimates": ("model", *Place._fields, "metric", "value", "se", "n", "unit", "better"),
    "gates": ("model", *Place._fields, "metric", "verdict", "detail"),
    "comparisons": ("model", *Place._fields, "metric", "detail"),
    "planned": ("model", "suite", "test", "metric"),
    "texts": ("model", "prompt"),
    "heads": ("model", "layer", "head", "kind"),
    "arrays": ("model", "name", "file"),
}


def content_problem(run: Mapping[str, Any]) -> str | None:
    """What makes a run unreadable, as the end of a sentence; None if nothing does.

    Args:
        run: content of a run.json of the current version, as `gguf_harness.store.migrations.migrate` gives it.
    """
    if "id" not in run or "estimates" not in run:
        return "it has no id or no estimates"
    problem = _wrong_value(run, _RUN, "") or _unknown_time(run.get("started"))
    if problem is None and any(type(warning) is not str for warning in run.get("warnings", [])):
        problem = "warnings contains values that are not strings"
    for name, kinds in _PARTS.items():
        if problem is None and run.get(name) is not None:
            problem = _wrong_table(run[name], kinds, tuple(kinds), name)
    for (name, rows), kinds in _ROWS.items():
        if problem is None and run.get(name) is not None:
            problem = _wrong_rows(run[name][rows], kinds, tuple(kinds), f"{name}.{rows}")
    for name, kinds in TABLES.items():
        if problem is not None:
            break
        place = "baseline.comparisons" if name == "comparisons" else name
        problem = _wrong_rows(rows_of(run, name) or [], kinds, _NEEDED[name], place)
    for index, model in enumerate(run.get("models", []) if problem is None else []):
        place = f"models[{index}].adapters"
        problem = problem or _wrong_rows(model["adapters"], _ADAPTER, tuple(_ADAPTER), place)
    return problem or _wrong_parts(run) or _wrong_metric(run.get("metrics") or [])


def _wrong_parts(run: Mapping[str, Any]) -> str | None:
    """The first problem in what tells of the parts of a run."""
    problem = None
    if (shard := run.get("shard")) is not None:
        plan = shard["plan"]
        problem = _wrong_table(plan, _PLAN, tuple(_PLAN), "shard.plan")
        problem = problem or _wrong_rows(plan["models"], _PLANNED_MODEL, tuple(_PLANNED_MODEL), "shard.plan.models")
        planned = TABLES["planned"]
        problem = problem or _wrong_rows(plan["comparisons"], planned, tuple(planned), "shard.plan.comparisons")
    if (merged := run.get("merged")) is not None:
        problem = problem or _wrong_rows(merged["shards"], _PART, tuple(_PART), "merged.shards")
        problem = problem or _wrong_rows(merged["missing"], _MISSING, tuple(_MISSING), "merged.missing")
    return problem or _wrong_rows(run.get("nodes") or [], _NODE, tuple(_NODE), "nodes")


def _wrong_metric(entries: list[object]) -> str | None:
    """The first problem in the entries of plugin metrics."""
    for index, entry in enumerate(entries):
        try:
            Metric.from_json(entry)
        except GateError as error:
            return f"metrics[{index}]: {error.message.rstrip('.')}"
    return None


def _wrong_rows(rows: Sequence[object], kinds: _Kinds, needed: Sequence[str], place: str) -> str | None:
    problems = (_wrong_table(row, kinds, needed, f"{place}[{index}]") for index, row in enumerate(rows))
    return next((problem for problem in problems if problem is not None), None)


def _wrong_table(table: object, kinds: _Kinds, needed: Sequence[str], place: str) -> str | None:
    if not isinstance(table, dict):
        return f"{place} is {_TYPE_NAMES[type(table)]}, expected a table"
    missing = [key for key in needed if key not in table]
    return f"{place} has no {missing[0]}" if missing else _wrong_value(table, kinds, f"{place}.")


def _wrong_value(table: Mapping[str, Any], kinds: _Kinds, place: str) -> str | None:
    for key, kind in kinds.items():
        if key not in table:
            continue
        value = table[key]
        # By type, not isinstance: booleans are not numbers.
        if type(value) not in kind.types:
            return f"{place}{key} is {_TYPE_NAMES[type(value)]}, expected {_expected(kind)}"
        if type(value) in NUMBER.types:
            largest = _LARGEST_WHOLE if kind.dtype == WHOLE.dtype else _LARGEST
            if not -largest <= value <= largest:
                return f"{place}{key} is a number beyond {largest:.2g}, expected a smaller one"
    return None


def _expected(kind: Kind) -> str:
    whole = {int: "a whole number"} if float not in kind.types else {}
    return " or ".join(dict.fromkeys((_TYPE_NAMES | whole)[allowed] for allowed in kind.types))


def _unknown_time(started: str | None) -> str | None:
    """What is wrong with the start time of a run; None if it is a time with a zone, or missing."""
    if started is None:
        return None
    try:
        if datetime.fromisoformat(started).tzinfo is not None:
            return None
    except ValueError:
        pass
    return f"started is {started[:40]!r}, expected a time with its zone, such as 2026-11-24T12:30:21+00:00"
