"""A run: everything that one pytest invocation measured, on its way into run.json.

With `pytest -n` several processes measure. Rows and verdicts travel with the test reports; what belongs to no single
test (models, corpus, engine, arrays) is written by each process into a part of its own, and put together at the end.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import __version__
from harness.records import SCHEMA_VERSION
from harness.store import write_json

__all__ = ["RunDraft", "RunPart", "TestRecord", "new_run_id"]


def new_run_id() -> str:
    """Sorts by time; the random end keeps runs of the same second apart."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunPart:
    """What one process adds to a run beside its rows. Saved whenever something is added.

    Args:
        folder: the run's folder.
        process: name of the process: "main", or xdist's worker id.
    """

    def __init__(self, folder: Path, process: str) -> None:
        self.folder = folder
        self._file = folder / "parts" / f"{process}.json"
        self._content: dict[str, Any] = {
            "models": {},
            "corpus": None,
            "engine": None,
            "prompts": None,
            "texts": {},
            "arrays": {},
            "warnings": [],
            "cache": {"hits": 0, "misses": 0},
            "early": {},
            "heads": {},
            "analytics": [],
        }

    def add_early(self, model: str, windows: int, planned: int, n_ctx: int) -> None:
        """Say how much of the corpus a model needed with --gguf-until-decided."""
        self._content["early"][model] = {
            "model": model,
            "windows": windows,
            "planned": planned,
            "tokens": windows * n_ctx,
            "saved_tokens": (planned - windows) * n_ctx,
        }
        self._save()

    def add_model(self, description: dict[str, Any]) -> None:
        """Describe a model; the first description counts."""
        if description["name"] not in self._content["models"]:
            self._content["models"][description["name"]] = description
            self._save()

    def set(self, name: str, value: object) -> None:
        """Set `corpus`, `engine`, `prompts`, `cache` or `analytics`."""
        if self._content[name] != value:
            self._content[name] = value
            self._save()

    def warn(self, message: str) -> None:
        """Say something that the person should read after the run."""
        if message not in self._content["warnings"]:
            self._content["warnings"].append(message)
            self._save()

    def add_texts(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Keep how a model continued the prompts; the first time counts."""
        if model not in self._content["texts"]:
            self._content["texts"][model] = [{"model": model, **row} for row in rows]
            self._save()

    def add_heads(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Say what kind each head of a model is; the first time counts."""
        if model not in self._content["heads"]:
            self._content["heads"][model] = [{"model": model, **row} for row in rows]
            self._save()

    def add_arrays(self, model: str, name: str, description: str, arrays: dict[str, Any]) -> None:
        """Keep arrays for a picture, once per model and name."""
        from harness.measure.arrays import save_arrays

        key = f"{model}/{name}"
        if key not in self._content["arrays"]:
            file = f"arrays/{len(list((self.folder / 'arrays').glob('*'))):03d}-{name}.npz"
            if self._file.stem != "main":
                file = file.replace("arrays/", f"arrays/{self._file.stem}-")
            save_arrays(self.folder / file, arrays)
            self._content["arrays"][key] = {"model": model, "name": name, "file": file, "description": description}
            self._save()

    def _save(self) -> None:
        write_json(self._file, self._content)


@dataclass(slots=True)
class TestRecord:
    """One test's outcome."""

    id: str
    suite: str
    model: str | None
    outcome: str
    message: str
    duration_s: float

    __test__ = False  # it is a record, not a test class


@dataclass(slots=True)
class RunDraft:
    """A run.json while the session goes on. Saved after every test, so that a killed session keeps its results."""

    folder: Path
    command: list[str]
    settings: dict[str, Any]
    machine: dict[str, Any]
    reference_reason: str
    reference: str | None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    tests: dict[str, TestRecord] = field(default_factory=dict)
    estimates: list[dict[str, Any]] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)
    baseline: str | None = None
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    baseline_notes: list[str] = field(default_factory=list)
    _clock: float = field(default_factory=time.monotonic)

    def save(self, *, finished: bool) -> dict[str, Any]:
        """Write run.json and return its content."""
        content = self._assemble(finished)
        write_json(self.folder / "run.json", content)
        if finished:
            shutil.rmtree(self.folder / "parts", ignore_errors=True)
        return content

    def _assemble(self, finished: bool) -> dict[str, Any]:
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("parts/*.json"))]
        models: dict[str, Any] = {}
        arrays: dict[str, Any] = {}
        texts: dict[str, Any] = {}
        early: dict[str, Any] = {}
        heads: dict[str, Any] = {}
        for part in parts:
            heads |= part["heads"]
            texts = part["texts"] | texts
            early |= part["early"]
            models = part["models"] | models
            arrays = part["arrays"] | arrays
        return {
            "schema_version": SCHEMA_VERSION,
            "id": self.folder.name,
            "command": self.command,
            "started": self.started.isoformat(timespec="seconds"),
            "duration_s": round(time.monotonic() - self._clock, 3),
            "finished": finished,
            "harness": __version__,
            "machine": self.machine,
            "engine": next((part["engine"] for part in parts if part["engine"]), None),
            "models": [model | {"reference": model["name"] == self.reference} for model in models.values()],
            "reference_reason": self.reference_reason,
            "corpus": next((part["corpus"] for part in parts if part["corpus"]), None),
            "prompts": next((part["prompts"] for part in parts if part["prompts"]), None),
            "texts": [row for rows in texts.values() for row in rows],
            "settings": self.settings,
            "tests": [
                {
                    "id": test.id,
                    "suite": test.suite,
                    "model": test.model,
                    "outcome": test.outcome,
                    "message": test.message,
                    "duration_s": round(test.duration_s, 3),
                }
                for test in self.tests.values()
            ],
            "estimates": self.estimates,
            "arrays": list(arrays.values()),
            "gates": self.gates,
            "early": list(early.values()),
            "heads": [row for rows in heads.values() for row in rows],
            "analytics": sorted({backend for part in parts for backend in part["analytics"]}),
            "baseline": {
                "name": self.baseline,
                "comparisons": self.comparisons,
                "notes": self.baseline_notes,
            }
            if self.baseline
            else None,
            "warnings": list(dict.fromkeys(warning for part in parts for warning in part["warnings"])),
            "cache": {key: sum(part["cache"][key] for part in parts) for key in ("hits", "misses")},
        }
