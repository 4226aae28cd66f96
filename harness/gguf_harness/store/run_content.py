"""What a run.json must hold to be read: it may come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gguf_harness.errors import GateError
from gguf_harness.metrics.registry import Metric

__all__ = ["content_problem"]

_NOTHING: Final = type(None)
_NUMBER: Final = (int, float)
_TYPE_NAMES: Final[dict[type, str]] = {
    str: "a text",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a table",
    bool: "true or false",
    _NOTHING: "null",
}

_Kinds = dict[str, tuple[type, ...]]

_RUN: Final[_Kinds] = {
    "id": (str,),
    "started": (str,),
    "harness": (str,),
    "duration_s": _NUMBER,
    "finished": (bool,),
    "reference_reason": (str, _NOTHING),
    "command": (list,),
    "warnings": (list,),
    **dict.fromkeys(("machine", "engine", "corpus", "settings", "cache", "baseline"), (dict, _NOTHING)),
    **dict.fromkeys(("models", "tests", "estimates", "gates", "arrays", "metrics"), (list,)),
}
"""Types of what a run holds, where it holds it."""

_TABLES: Final[dict[str, _Kinds]] = {
    "models": {
        "name": (str,),
        "bytes": _NUMBER,
        "bits_per_weight": _NUMBER,
        "order": _NUMBER,
        "sha256": (str,),
        "quantization": (str, _NOTHING),
        "reference": (bool,),
        "fallbacks": (list,),
        "tensor_types": (dict,),
    },
    "tests": {
        "id": (str,),
        "outcome": (str,),
        "model": (str, _NOTHING),
        "suite": (str, _NOTHING),
        "message": (str, _NOTHING),
    },
    "estimates": {
        "model": (str,),
        "metric": (str,),
        "value": _NUMBER,
        **dict.fromkeys(("se", "se_iid", "clusters", "n", "layer", "head"), (*_NUMBER, _NOTHING)),
        **dict.fromkeys(("suite", "test", "prompt", "detail", "unit", "better", "part"), (str, _NOTHING)),
    },
    "gates": {
        "model": (str,),
        "metric": (str,),
        "verdict": (str,),
        "detail": (str,),
        "suite": (str, _NOTHING),
    },
    "arrays": {"model": (str,), "name": (str,), "file": (str,)},
}
"""The same of the tables in its lists."""

_PARTS: Final[dict[str, _Kinds]] = {
    "corpus": {"name": (str,), "sha256": (str,), **dict.fromkeys(("windows", "n_ctx", "scored_tokens"), _NUMBER)},
    "cache": {"hits": _NUMBER, "misses": _NUMBER},
}
"""The same of tables that it holds once."""

_NEEDED: Final = {
    "models": ("name", "bytes"),
    "tests": ("id", "outcome", "suite", "message"),
    "estimates": ("model", "metric", "value", "se", "n", "unit", "better"),
    "gates": ("model", "metric", "verdict", "detail"),
    "arrays": ("model", "name", "file"),
}


def content_problem(run: Mapping[str, Any]) -> str | None:
    """What of a run cannot be read, as the end of a sentence; None where all can be."""
    if "id" not in run or "estimates" not in run:
        return "it has no id or no estimates"
    problem = _wrong_type(run, _RUN, "")
    if problem is None and any(type(warning) is not str for warning in run.get("warnings", [])):
        problem = "warnings holds something other than texts"
    for name, kinds in _PARTS.items():
        if problem is None and run.get(name) is not None:
            problem = _wrong_table(run[name], kinds, tuple(kinds), name)
    for name, kinds in _TABLES.items():
        if problem is not None:
            break
        for index, table in enumerate(run.get(name, [])):
            place = f"{name}[{index}]"
            problem = _wrong_table(table, kinds, _NEEDED[name], place)
            if problem is not None:
                break
    return problem or _wrong_metric(run.get("metrics", []))


def _wrong_metric(entries: list[object]) -> str | None:
    """Of the entries of metrics that are not built in."""
    for index, entry in enumerate(entries):
        try:
            Metric.from_json(entry)
        except GateError as error:
            return f"metrics[{index}]: {error.message.rstrip('.')}"
    return None


def _wrong_table(table: object, kinds: _Kinds, needed: tuple[str, ...], place: str) -> str | None:
    if not isinstance(table, dict):
        return f"{place} is {_name(table)}, expected a table"
    missing = [key for key in needed if key not in table]
    return f"{place} has no {missing[0]}" if missing else _wrong_type(table, kinds, f"{place}.")


def _wrong_type(table: Mapping[str, Any], kinds: _Kinds, place: str) -> str | None:
    for key, allowed in kinds.items():
        # By type, not isinstance: true is no number.
        if key in table and type(table[key]) not in allowed:
            expected = " or ".join(dict.fromkeys(_TYPE_NAMES[kind] for kind in allowed))
            return f"{place}{key} is {_name(table[key])}, expected {expected}"
    return None


def _name(value: object) -> str:
    return _TYPE_NAMES[type(value)]
