"""What the parts of a run have together: rows in the order of the plan, and each model, text and array once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import StoreError, visible
from gguf_harness.report.shard_runs import Part, Parts
from gguf_harness.store.paths import file_name
from gguf_harness.store.run_part import write_part
from gguf_harness.store.runs import run_file

__all__ = ["SumOfParts"]

_MEANS: Final = "window_means"


class SumOfParts:
    """The sum of parts that belong together.

    Args:
        parts: checked.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._runs = [part.run for part in parts.parts]
        self._order = {model["name"]: index for index, model in enumerate(parts.plan["models"])}

    def place(self, model: str | None) -> int:
        """Place of a model's tests among those of the run; before all others, where it is in no plan."""
        return self._order.get(model or "", -1)

    def by_model(self, tables: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Rows of all parts, those of a model together, in the order of the plan."""
        rows = [dict(row) for table in tables for row in table]
        return sorted(rows, key=lambda row: self.place(row["model"]))

    def write(self, folder: Path, *, means: bool) -> dict[str, Path]:
        """Write what belongs to no test, with the files of arrays.

        Args:
            folder: of the merged run.
            means: whether means of windows are kept, as a run has them that saves a baseline.

        Returns:
            Files of these means, by model.

        Raises:
            StoreError: files of a part are missing, or there is no space.
        """
        runs, files = self._runs, self._files()
        arrays, kept = self._copy_arrays(files, folder, means=means)
        write_part(
            folder,
            {
                "models": {model["name"]: _described(model) for model in self._one_each("models", files, "name")},
                "corpus": self._first("corpus"),
                "engine": self._first("engine"),
                "prompts": self._first("prompts"),
                "texts": self._whole_tables("texts", files),
                "heads": self._whole_tables("heads", files),
                "arrays": arrays,
                "warnings": self._warnings(),
                "cache": {key: sum((run.get("cache") or {}).get(key, 0) for run in runs) for key in ("hits", "misses")},
                "early": self._early(),
                "nodes": [node for run in runs for node in run.get("nodes") or []],
                "analytics": sorted({one for run in runs for one in run.get("analytics", [])}),
            },
        )
        return kept

    def _first(self, name: str) -> Any:
        """What is the same in all parts that have it."""
        return next((run[name] for run in self._runs if run.get(name)), None)

    def _files(self) -> dict[str, str]:
        """The file of each subject that any part has."""
        known = {model["name"]: model["file"] for model in self._parts.plan["models"]}
        return {model["name"]: model["file"] for run in self._runs for model in run["models"]} | known

    def _sources(self, file: str) -> list[Part]:
        """The parts, the one that a file belongs to first: others have of it what they compared with."""
        owner = self._parts.owner(file)
        return sorted(self._parts.parts, key=lambda part: part.index != owner)

    def _one_each(self, table: str, files: Mapping[str, str], key: str) -> list[Mapping[str, Any]]:
        """Rows of a table by model, each once: from the part that its file belongs to, or else from another."""
        order = list(dict.fromkeys(model["file"] for model in self._parts.plan["models"]))
        order += [file for file in dict.fromkeys(files.values()) if file not in order]
        chosen: dict[str, Mapping[str, Any]] = {}
        for file in order:
            for part in self._sources(file):
                for row in part.run.get(table) or []:
                    if files.get(row[key], row[key]) == file:
                        chosen.setdefault(row[key], row)
        return list(chosen.values())

    def _whole_tables(self, table: str, files: Mapping[str, str]) -> dict[str, list[Mapping[str, Any]]]:
        """All rows of a table of each model, from one part."""
        chosen: dict[str, list[Mapping[str, Any]]] = {}
        for row in self._one_each(table, files, "model"):
            model = row["model"]
            for part in self._sources(files.get(model, model)):
                if rows := [other for other in part.run.get(table) or [] if other["model"] == model]:
                    chosen[model] = rows
                    break
        return chosen

    def _copy_arrays(
        self, files: Mapping[str, str], folder: Path, *, means: bool
    ) -> tuple[dict[str, Any], dict[str, Path]]:
        """Copy the files of arrays under new names."""
        chosen: dict[str, tuple[Part, Mapping[str, Any]]] = {}
        for model in dict.fromkeys(entry["model"] for run in self._runs for entry in run["arrays"]):
            for part in self._sources(files.get(model, model)):
                for entry in part.run["arrays"]:
                    if entry["model"] == model:
                        chosen.setdefault(f"{model}/{entry['name']}", (part, entry))
        copied: dict[str, Any] = {}
        kept: dict[str, Path] = {}
        for key, (part, entry) in sorted(chosen.items(), key=lambda item: self.place(item[1][1]["model"])):
            if entry["name"] == _MEANS and not means:
                continue
            name = f"arrays/{len(copied):03d}-{file_name(entry['name'])}.npz"
            _copy(run_file(part.path.parent, entry["file"]), folder / name)
            copied[key] = {**entry, "file": name}
            if entry["name"] == _MEANS:
                kept[entry["model"]] = folder / name
        return copied, kept

    def _early(self) -> dict[str, Any]:
        """How far passes went: of a reference, in the part that needed most of it."""
        furthest: dict[str, Any] = {}
        for row in self.by_model(run.get("early") or [] for run in self._runs):
            if row["model"] not in furthest or furthest[row["model"]]["windows"] < row["windows"]:
                furthest[row["model"]] = row
        return furthest

    def _warnings(self) -> list[str]:
        """Warnings of the parts, without those on verdicts, which are written anew."""
        told = []
        for run in self._runs:
            verdicts = {
                f"{gate['model']}: {gate['metric']} is inconclusive. {gate['detail']}"
                for gate in run["gates"]
                if gate["verdict"] == "inconclusive"
            }
            told += [warning for warning in run["warnings"] if warning not in verdicts]
        names = sorted((model["name"] for model in self._parts.plan["models"]), key=len, reverse=True)

        def place(warning: str) -> int:
            return self.place(next((name for name in names if warning.startswith(f"{name}: ")), None))

        return sorted(dict.fromkeys(told), key=place)


def _described(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model as a session describes it; which one is the reference is added for all."""
    return {name: value for name, value in model.items() if name != "reference"}


def _copy(source: Path, destination: Path) -> None:
    """Copy a file of arrays.

    Raises:
        StoreError: it is not there, or there is no space.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)
    except OSError as error:
        raise StoreError(
            f"{visible(str(source))}, which belongs to a part of the run, cannot be copied: {error.strerror or error}.",
            "Give the whole folder of each part, as the session left it.",
        ) from error
