"""What each process of a session adds to a run, besides what belongs to a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gguf_harness.store.runs import write_json

__all__ = ["RunPart", "write_part"]

_SHOWN_PROBLEMS: Final = 3


class RunPart:
    """What one process adds to a run besides its rows. Saved at each addition.

    Args:
        folder: the run's folder.
        process: name of the process: "main", or the worker id of xdist.
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
            "nodes": [],
        }

    def add_early(self, model: str, windows: int, planned: int, n_ctx: int) -> None:
        """Record how much of the corpus a model needed with --gguf-until-decided."""
        self._content["early"][model] = {
            "model": model,
            "windows": windows,
            "planned": planned,
            "tokens": windows * n_ctx,
            "saved_tokens": (planned - windows) * n_ctx,
        }
        self._save()

    def has_model(self, name: str) -> bool:
        """Whether a model has been described."""
        return name in self._content["models"]

    def add_model(self, description: dict[str, Any]) -> None:
        """Describe a model; the first description counts."""
        if not self.has_model(description["name"]):
            self._content["models"][description["name"]] = description
            self._save()

    def set(self, name: str, value: object) -> None:
        """Set `corpus`, `engine`, `prompts`, `cache`, `analytics` or `nodes`."""
        if self._content[name] != value:
            self._content[name] = value
            self._save()

    def warn(self, message: str) -> None:
        """Add a warning to be shown after the run."""
        if message not in self._content["warnings"]:
            self._content["warnings"].append(message)
            self._save()

    def warn_of_prompts(self, model: str, problems: Sequence[str], prompts: int) -> None:
        """Warn about prompts that a model could not take: only these are lost, not the model.

        Args:
            model: its name.
            problems: the reasons, a sentence each.
            prompts: how many there are in all.
        """
        if problems:
            shown = [problem.removeprefix(f"{model}, ") for problem in problems[:_SHOWN_PROBLEMS]]
            more = f"; and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
            told = "; ".join(problem.rstrip(".") for problem in shown)
            self.warn(f"{len(problems)} of {prompts} prompts could not be given to {model}: {told}{more}")

    def add_texts(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Store how a model continued the prompts; the first call counts."""
        if model not in self._content["texts"]:
            self._content["texts"][model] = [{"model": model, **row} for row in rows]
            self._save()

    def add_heads(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Store the kind of each head of a model; the first call counts."""
        if model not in self._content["heads"]:
            self._content["heads"][model] = [{"model": model, **row} for row in rows]
            self._save()

    def add_arrays(self, model: str, name: str, description: str, arrays: dict[str, Any]) -> None:
        """Store arrays for a chart, once per model and name."""
        from gguf_harness.store.arrays import save_arrays

        key = f"{model}/{name}"
        if key not in self._content["arrays"]:
            file = f"arrays/{len(list((self.folder / 'arrays').glob('*'))):03d}-{name}.npz"
            if self._file.stem != "main":
                file = file.replace("arrays/", f"arrays/{self._file.stem}-")
            save_arrays(self.folder / file, arrays)
            self._content["arrays"][key] = {"model": model, "name": name, "file": file, "description": description}
            self._save()

    def _save(self) -> None:
        write_json(self._file, self._content, lasting=False)


def write_part(folder: Path, content: dict[str, Any]) -> None:
    """Write what belongs to no single test of a run that was measured elsewhere.

    Args:
        folder: the run's.
        content: as a `RunPart` collects it, with everything by model.
    """
    write_json(folder / "parts" / "merged.json", content, lasting=False)
