"""Baselines: results of a run in a small file, to be committed and compared with later runs.

Format, version 2: `models` by name; of each, `estimates` of the whole by metric, `placed` estimates of layers, heads,
groups of tensors and prompts (a list, each with its place), and `windows` with `means` of the corpus's windows. Version
1 kept one estimate per metric, whatever its place. `baseline_reader` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import StoreError
from gguf_harness.inputs.pairing import FAMILY, Identity
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.registry import compared_by_window
from gguf_harness.store.runs import write_text

__all__ = [
    "BASELINE_VERSION",
    "PLACED_LIMIT",
    "Baseline",
    "Facts",
    "build_baseline",
    "save_baseline",
    "why_unfit",
]

BASELINE_VERSION: Final = 2
PLACED_LIMIT: Final = 2000
"""Most placed estimates of a model in a file: those of layers and groups of tensors first, then heads, then prompts."""

_VALUES: Final = ("value", "se", "n", "clusters")


@dataclass(frozen=True, slots=True)
class Facts:
    """The measurement of a model, and what it depends on.

    Attributes:
        family: architecture, parameters and hash of the vocabulary, as text.
        estimates: of the whole model by metric, each with value, se, n and clusters; se and clusters may be None.
        windows: the windows of the corpus that `means` refer to.
        means: for metrics compared by window, one number per window.
        placed: like `estimates`, of parts of the model, by metric and place.
        quantization: llama.cpp's name of the file's type; None if the file does not say.
        failed: why the model failed when it was measured; a list of sentences.
        variant: how it was run, if not with default settings.
    """

    sha256: str
    family: dict[str, str]
    estimates: dict[str, dict[str, Any]]
    windows: tuple[int, ...] = ()
    means: Mapping[str, tuple[float, ...]] | None = None
    placed: Mapping[tuple[str, Place], dict[str, Any]] = field(default_factory=dict)
    quantization: str | None = None
    failed: tuple[str, ...] = ()
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """The content of a baseline file.

    Attributes:
        engine: llama.cpp's build.
        corpus: hash of the text and window length in tokens; None if no text was decoded.
        reference: hash of the reference's file; None without one.
        reference_name: its name.
        settings: settings that estimates of prompts, layers and heads depend on, as text by name; empty in version 1.
        notes: sentences about estimates that the file does not have.
    """

    name: str
    engine: str | None
    corpus: tuple[str, int] | None
    reference: str | None
    models: dict[str, Facts]
    reference_name: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def identities(self) -> list[Identity]:
        """Identities of its models, for pairing with those of a run."""
        return [
            Identity(
                name,
                facts.quantization,
                tuple(facts.family[key] for key in FAMILY),
                name == self.reference_name,
                facts.variant,
            )
            for name, facts in self.models.items()
        ]


def why_unfit(run: Mapping[str, Any], *, unfinished: bool, failed: int = 0) -> str:
    """Why a run must not become a baseline; "" if it may.

    A failed gate, or a model that became worse, is a valid measurement. A test that failed for another reason is not:
    its estimates would be missing, and later runs would not be compared with them.

    Args:
        run: content of a run.json.
        unfinished: whether the session ended before its tests did.
        failed: number of failed tests of the session, as pytest counts them: a crashed process leaves no test record.
    """
    if unfinished:
        return "the session ended before all of its tests"
    findings = [
        *(gate["detail"] for gate in run["gates"] if gate["verdict"] != "pass"),
        *(finding["detail"] for finding in _comparisons(run)),
    ]
    broken = [
        test
        for test in run["tests"]
        if test["outcome"] == "error"
        or (test["outcome"] == "failed" and not any(detail in test["message"] for detail in findings))
    ]
    known = sum(test["outcome"] in {"failed", "error"} for test in run["tests"])
    if not broken and failed > known:
        return f"{_tests(failed - known)} failed without measuring anything"
    if not broken:
        return "" if run["estimates"] else "this run measured nothing"
    models = ", ".join(dict.fromkeys(str(test["model"] or "no model") for test in broken))
    reason = (broken[0]["message"].strip().splitlines() or ["no reason was given"])[0]
    what = f"{_tests(len(broken))} of {models} failed for another reason than a limit"
    return f"{what}, the first with: {reason.rstrip('.')}"


def _tests(number: int) -> str:
    return "1 test" if number == 1 else f"{number} tests"


def build_baseline(
    run: Mapping[str, Any], means: Mapping[str, Mapping[str, Any]], settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A baseline as JSON types.

    Args:
        run: content of a run.json.
        means: by model: `window`, and the means of each metric that is compared by window, each [windows].
        settings: as in `Baseline`.

    Raises:
        StoreError: the run measured nothing.
    """
    if not run["estimates"]:
        raise StoreError(
            "There is nothing to save in a baseline: this run measured nothing.", "Run tests that measure something."
        )
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in run["estimates"]:
        rows.setdefault(row["model"], []).append(row)
    models: dict[str, Any] = {}
    for model in run["models"]:
        entry = {key: model[key] for key in ("sha256", *FAMILY, "quantization")}
        if model.get("variant") is not None:
            entry["variant"] = model["variant"]
        if failed := _failures(run, model["name"]):
            entry["failed"] = failed
        entry |= _estimates(rows.get(model["name"], []))
        if model_means := means.get(model["name"]):
            entry["windows"] = [int(window) for window in model_means["window"]]
            # Nine digits are more than float32 logits provide.
            entry["means"] = {
                name: [float(f"{mean:.9g}") for mean in model_means[name]] for name in compared_by_window()
            }
        models[model["name"]] = entry
    corpus = run["corpus"]
    return {
        "baseline_version": BASELINE_VERSION,
        "run": run["id"],
        "harness": run["harness"],
        "engine": (run["engine"] or {}).get("llama_cpp"),
        "corpus": {key: corpus[key] for key in ("name", "sha256", "n_ctx")} if corpus else None,
        "settings": dict(settings or {}),
        **({"metrics": run["metrics"]} if run.get("metrics") else {}),
        "reference": next((model["name"] for model in run["models"] if model["reference"]), None),
        "models": models,
    }


def _comparisons(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((run.get("baseline") or {}).get("comparisons", []))


def _failures(run: Mapping[str, Any], model: str) -> list[str]:
    reasons = [gate["detail"] for gate in run["gates"] if gate["model"] == model and gate["verdict"] == "fail"]
    worse = [one["detail"] for one in _comparisons(run) if one["model"] == model and one.get("outcome") == "worse"]
    return list(dict.fromkeys([*reasons, *worse]))


def _estimates(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`estimates` and `placed` of a model: the first row of each metric and place."""
    whole: dict[str, dict[str, Any]] = {}
    placed: dict[tuple[str, Place], dict[str, Any]] = {}
    for row in rows:
        values = {key: row[key] for key in _VALUES}
        place = Place.of(row)
        if place == WHOLE:
            whole.setdefault(row["metric"], values)
        elif row["better"] != "neutral":
            where = {name: value for name, value in place._asdict().items() if value is not None}
            placed.setdefault((row["metric"], place), {"metric": row["metric"], **where, **values})
    # A stable sort: coarse places first, in their order.
    kept = sorted(placed.items(), key=lambda item: (item[0][1].prompt is not None, item[0][1].head is not None))
    entries: dict[str, Any] = {"estimates": whole, "placed": [entry for _, entry in kept[:PLACED_LIMIT]]}
    if len(kept) > PLACED_LIMIT:
        entries["placed_left_out"] = len(kept) - PLACED_LIMIT
    return entries


def save_baseline(path: Path, content: dict[str, Any]) -> None:
    """Write a baseline; each estimate or list of numbers is one line, so that a change of it is a one-line diff.

    Raises:
        StoreError: no space, or no permission.
    """
    write_text(path, _lines(content) + "\n")


def _lines(value: Any, depth: int = 0) -> str:
    """JSON in which a table or list without nested ones is one line."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(part, dict | list) for part in parts):
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    indent = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{json.dumps(key, ensure_ascii=False)}: {_lines(part, depth + 1)}" for key, part in value.items()]
    else:
        lines = [_lines(part, depth + 1) for part in value]
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    return f"{opened}\n{indent}" + f",\n{indent}".join(lines) + f"\n{' ' * depth}{closed}"
