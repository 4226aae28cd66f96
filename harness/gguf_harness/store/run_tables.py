"""Tables and columns of a run.json, used to check its content and to build DataFrames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

__all__ = ["LIST", "NUMBER", "TABLE", "TABLES", "TEXT", "TRUTH", "WHOLE", "Kind", "rows_of"]

_NOTHING: Final = type(None)


class Kind(NamedTuple):
    """The types that a value may have.

    Attributes:
        types: JSON types, as Python reads them.
        dtype: type of a DataFrame column.
    """

    types: tuple[type, ...]
    dtype: str

    @property
    def or_null(self) -> Kind:
        """The same kind, or null."""
        return Kind((*self.types, _NOTHING), self.dtype)


TEXT: Final = Kind((str,), "string")
WHOLE: Final = Kind((int,), "Int64")
NUMBER: Final = Kind((int, float), "float64")
TRUTH: Final = Kind((bool,), "boolean")
LIST: Final = Kind((list,), "object")
TABLE: Final = Kind((dict,), "object")

_PLACE: Final = {"prompt": TEXT.or_null, "layer": WHOLE.or_null, "head": WHOLE.or_null, "part": TEXT.or_null}

TABLES: Final[Mapping[str, Mapping[str, Kind]]] = {
    "models": {
        "name": TEXT,
        "file": TEXT,
        "variant": TEXT.or_null,
        "reference": TRUTH,
        "bytes": WHOLE,
        "bits_per_weight": NUMBER,
        "quantization": TEXT.or_null,
        "architecture": TEXT.or_null,
        "parameters": WHOLE.or_null,
        "precision": NUMBER.or_null,
        **dict.fromkeys(("n_layer", "n_head", "n_embd", "n_ctx_train", "n_vocab"), WHOLE.or_null),
        "pooled": TRUTH.or_null,
        "tokenizer": TEXT.or_null,
        "vocab_sha256": TEXT.or_null,
        "shape": TEXT.or_null,
        "sha256": TEXT,
        "path": TEXT.or_null,
        "origin": TEXT.or_null,
        "order": WHOLE,
        "context": TABLE.or_null,
        "rotated": LIST.or_null,
        "adapters": LIST,
        "tensor_types": TABLE,
        "fallbacks": LIST,
        "held_out_topics": LIST,
        "warnings": LIST,
    },
    "estimates": {
        "suite": TEXT.or_null,
        "test": TEXT.or_null,
        "model": TEXT,
        "reference": TEXT.or_null,
        **_PLACE,
        "metric": TEXT,
        "value": NUMBER,
        **dict.fromkeys(("se", "se_iid", "low", "high"), NUMBER.or_null),
        "clusters": WHOLE.or_null,
        "n": WHOLE.or_null,
        "unit": TEXT.or_null,
        "better": TEXT.or_null,
        "detail": TEXT.or_null,
        "doubt": TEXT.or_null,
    },
    "gates": {
        "suite": TEXT.or_null,
        "test": TEXT.or_null,
        "model": TEXT,
        **_PLACE,
        "metric": TEXT,
        "value": NUMBER.or_null,
        "limit": NUMBER.or_null,
        "better": TEXT.or_null,
        "confidence": NUMBER.or_null,
        "bound": NUMBER.or_null,
        "verdict": TEXT,
        "p_value": NUMBER.or_null,
        "p_adjusted": NUMBER.or_null,
        "verdict_adjusted": TEXT.or_null,
        "more_clusters": WHOLE.or_null,
        "detail": TEXT,
    },
    "comparisons": {
        "test": TEXT.or_null,
        "model": TEXT,
        "partner": TEXT.or_null,
        "baseline": TEXT.or_null,
        **_PLACE,
        "metric": TEXT,
        **dict.fromkeys(("old", "new", "worse_by", "se"), NUMBER.or_null),
        **dict.fromkeys(("p_worse", "p_better", "p_adjusted", "confidence"), NUMBER.or_null),
        "windows": WHOLE.or_null,
        "outcome": TEXT.or_null,
        "changes": LIST,
        "detail": TEXT,
    },
    "planned": {"model": TEXT, "suite": TEXT, "test": TEXT, "metric": TEXT},
    "tests": {
        "id": TEXT,
        "suite": TEXT.or_null,
        "model": TEXT.or_null,
        "outcome": TEXT,
        "kind": TEXT.or_null,
        "summary": TEXT.or_null,
        "message": TEXT.or_null,
        "duration_s": NUMBER.or_null,
        "attempts": WHOLE.or_null,
    },
    "texts": {
        "model": TEXT,
        "prompt": TEXT,
        "given": TEXT.or_null,
        "text": TEXT.or_null,
        "tokens": WHOLE.or_null,
        "templated": TRUTH.or_null,
        "problem": TEXT.or_null,
    },
    "heads": {"model": TEXT, "layer": WHOLE, "head": WHOLE, "kind": TEXT, "reason": TEXT.or_null},
    "arrays": {"model": TEXT, "name": TEXT, "file": TEXT, "description": TEXT.or_null},
}
"""Columns by table, in the order of the DataFrames. Add new keys of run.json here."""


def rows_of(run: Mapping[str, Any], table: str) -> Any:
    """The rows of a table; None if the run does not have it. Comparisons are part of `baseline`."""
    if table == "comparisons":
        baseline = run.get("baseline")
        return baseline.get("comparisons") if isinstance(baseline, dict) else None
    return run.get(table)
