"""The parts of a run, as --gguf-shard writes them: found, and checked before they are merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import OptionError, StoreError, visible
from gguf_harness.judge.shards import difference, digest_of, part_models, shard_words
from gguf_harness.store.paths import option_path
from gguf_harness.store.runs import find_run, load_run

__all__ = ["Part", "Parts", "check_parts", "find_parts"]

_WHOLE: Final = (
    "`gguf-harness compare OLD NEW` compares whole runs; merge takes those of sessions with --gguf-shard=I/N."
)
_SAME_TEXT: Final = ("sha256", "n_ctx", "windows", "available", "order")
_SAME_ENGINE: Final = ("llama_cpp", "llama_cpp_python")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a run.

    Attributes:
        path: its run.json.
        run: the content.
    """

    path: Path
    run: Mapping[str, Any]

    @property
    def index(self) -> int:
        """Which part, from 1."""
        return int(self.run["shard"]["index"])

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan of the whole."""
        plan: Mapping[str, Any] = self.run["shard"]["plan"]
        return plan

    @property
    def name(self) -> str:
        """`shard 2 of 3 (20261128-110203-0001)`."""
        return f"{shard_words(self.run)} ({visible(str(self.run['id']))})"


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts that belong together.

    Attributes:
        parts: each once, in their order.
        missing: those that were not given and have something to measure.
        notes: sentences on what was left out.
    """

    parts: tuple[Part, ...]
    missing: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def of(self) -> int:
        """How many parts the run has."""
        return int(self.plan["of"])

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan of the whole."""
        return self.parts[0].plan

    def owner(self, file: str) -> int | None:
        """The part that a file belongs to."""
        return next((model["shard"] for model in self.plan["models"] if model["file"] == file), None)

    def owned(self, index: int) -> list[str]:
        """Names of the subjects of a part."""
        return [model["name"] for model in self.plan["models"] if model["shard"] == index]

    @property
    def stopped(self) -> str | None:
        """What is missing, as a sentence without its full stop; None if all parts are there and ran to their end."""
        told = []
        for index in self.missing:
            files = ", ".join(visible(name) for name in part_models(self.plan, index))
            told.append(f"shard {index} of {self.of} is missing: {f'its models are {files}' if files else 'no model'}")
        for part in self.parts:
            if not part.run.get("finished", True):
                session = part.run.get("session") or {}
                why = next(iter(str(session.get("stopped") or "").splitlines()), "")
                ran = f"{session.get('ran', '?')} of {session.get('selected', '?')} tests ran"
                told.append(f"{part.name} did not finish: {ran}{f' ({visible(why)})' if why else ''}")
        return "; ".join(told) or None


def find_parts(specs: Iterable[str], results: Path) -> tuple[list[Part], list[str]]:
    """The parts that a user names, and notes on runs that were left out.

    Args:
        specs: of each a run.json, a run's folder, its id or the start of it; or a folder with such folders below, as
            one downloads them, of which whole runs are left out.
        results: where ids are looked up.

    Raises:
        OptionError: a run is whole, or a folder has no part.
        StoreError: there is no such run, or it is damaged.
    """
    parts: dict[Path, Part] = {}
    notes: list[str] = []
    for spec in specs:
        folder = option_path(spec)
        if not folder.is_dir() or (folder / "run.json").is_file():
            path = find_run(spec, results)
            run = load_run(path)
            if run.get("shard") is None:
                raise OptionError(f"{visible(str(path))} is a whole run, not a part of one.", _WHOLE)
            parts.setdefault(path.resolve(), Part(path, run))
            continue
        found = {path: load_run(path) for path in sorted(folder.rglob("run.json")) if path.is_file()}
        if not any(run.get("shard") for run in found.values()):
            raise OptionError(f"{visible(spec)} contains no part of a run, only {len(found)} whole runs.", _WHOLE)
        for path, run in found.items():
            if run.get("shard") is None:
                notes.append(f"{visible(str(path))} is left out: it is a whole run")
            else:
                parts.setdefault(path.resolve(), Part(path, run))
    return list(parts.values()), notes


def check_parts(parts: Sequence[Part], notes: Sequence[str] = ()) -> Parts:
    """Check that parts are of one run, and each there once.

    Raises:
        OptionError: parts of different plans, texts, engines or files, or two of the same number.
        StoreError: a plan is damaged.
    """
    first = parts[0]
    for part in parts:
        if digest_of(part.plan) != part.plan["digest"] or not 1 <= part.index <= part.plan["of"]:
            raise StoreError(
                f"{visible(str(part.path))} is damaged: its plan has another digest than it says.",
                "Copy the folder of the run again.",
            )
        if part.plan["digest"] != first.plan["digest"]:
            raise OptionError(
                f"{first.name} and {part.name} are not parts of one run: {difference(first.plan, part.plan)}.",
                "Give all sessions the same options and files, and only --gguf-shard differently.",
            )
    chosen: dict[int, Part] = {}
    told = list(notes)
    for part in parts:
        other = chosen.setdefault(part.index, part)
        if other is part:
            continue
        if other.run != part.run:
            raise OptionError(
                f"There are two runs of shard {part.index} of {part.plan['of']}: {visible(str(other.path))} and"
                f" {visible(str(part.path))}.",
                "Give the one that counts; the other was measured too, and would be lost.",
            )
        told.append(f"{visible(str(part.path))} is left out: {visible(str(other.path))} is the same run")
    ordered = tuple(chosen[index] for index in sorted(chosen))
    _check_alike(ordered)
    plan = first.plan
    absent = [index for index in range(1, plan["of"] + 1) if index not in chosen]
    # Tests of no model are with the first.
    missing = [index for index in absent if index == 1 or part_models(plan, index)]
    told += [
        f"shard {index} of {plan['of']} is not there: it had nothing to do" for index in absent if index not in missing
    ]
    return Parts(ordered, tuple(missing), tuple(told))


def _check_alike(parts: Sequence[Part]) -> None:
    """Check what sessions know only once they have measured.

    Raises:
        OptionError: it is not the same.
    """
    for table, keys, what in (("corpus", _SAME_TEXT, "another text"), ("engine", _SAME_ENGINE, "another llama.cpp")):
        known = [part for part in parts if part.run.get(table)]
        for part in known:
            facts = [{key: one.run[table].get(key) for key in keys} for one in (known[0], part)]
            if facts[0] != facts[1]:
                shown = [", ".join(f"{key} {str(value)[:12]}" for key, value in one.items()) for one in facts]
                raise OptionError(
                    f"{part.name} was measured with {what} than {known[0].name}: {shown[1]}; there: {shown[0]}.",
                    "Measure one of them again.",
                )
    seen: dict[str, tuple[Part, str]] = {}
    for part in parts:
        for model in part.run.get("models", []):
            other, sha256 = seen.setdefault(model["name"], (part, model.get("sha256", "")))
            if sha256 != model.get("sha256", ""):
                raise OptionError(
                    f"{visible(model['name'])} is another file in {part.name} ({model['sha256'][:12]}) than in"
                    f" {other.name} ({sha256[:12]}).",
                    "Measure one of them again.",
                )
