"""Baselines: what a run measured, in a small file that is committed and that later runs are compared with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import OptionError, StoreError
from harness.metrics.windows import COMPARED
from harness.paths import option_path
from harness.store import write_text
from harness.text_files import read_json
from harness.visible import visible

__all__ = [
    "BASELINE_VERSION",
    "Baseline",
    "Facts",
    "build_baseline",
    "check_name",
    "find_baseline",
    "load_baseline",
    "save_baseline",
]

BASELINE_VERSION: Final = 1
_MOST_BYTES: Final = 50 * 10**6
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HINT: Final = "Give a file that --gguf-save-baseline wrote, or save the baseline again."
_FAMILY: Final = ("architecture", "parameters", "vocab_sha256")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model's measurement depends on, and what it was.

    Attributes:
        family: architecture, parameters and hash of the vocabulary, as text.
        estimates: by metric, each with value, se (None without), n and clusters (None without).
        windows: the corpus's windows that `means` are of.
        means: by metric of `COMPARED`, one number per window.
    """

    sha256: str
    family: dict[str, str]
    estimates: dict[str, dict[str, Any]]
    windows: tuple[int, ...] = ()
    means: Mapping[str, tuple[float, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """A file's content.

    Attributes:
        engine: llama.cpp's build.
        corpus: hash of the text and length of its windows in tokens; None where no text was decoded.
        reference: hash of the reference's file; None without one.
    """

    name: str
    engine: str | None
    corpus: tuple[str, int] | None
    reference: str | None
    models: dict[str, Facts]


def find_baseline(spec: str, results: Path) -> Path:
    """The file that a person means: a path, or a name in `results`/baselines.

    Raises:
        OptionError: there is none.
    """
    folder = results / "baselines"
    for path in (option_path(spec), folder / f"{spec}.json"):
        if path.is_file():
            return path
    known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
    raise OptionError(
        f"--gguf-baseline={spec}: neither a file nor a baseline in {folder}.",
        f"Known baselines: {known}. Save one with --gguf-save-baseline=NAME.",
    )


def check_name(name: str) -> str:
    """A name that a baseline can be saved under.

    Raises:
        OptionError: it would not be a file's name everywhere.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"--gguf-save-baseline={name!r} is no name for a baseline.",
            "Expected letters, digits, dots, dashes and underscores, beginning with a letter or digit.",
        )
    return name


def build_baseline(run: Mapping[str, Any], means: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A baseline as JSON types.

    Args:
        run: content of a run.json.
        means: by model: `window`, and means by metric of `COMPARED`, each [windows].

    Raises:
        StoreError: the run measured nothing.
    """
    if not run["estimates"]:
        raise StoreError("There is nothing to save in a baseline: this run measured nothing.", "Run tests that do.")
    models: dict[str, Any] = {}
    for model in run["models"]:
        rows = [row for row in run["estimates"] if row["model"] == model["name"] and row["prompt"] is None]
        estimates = {row["metric"]: {key: row[key] for key in ("value", "se", "n", "clusters")} for row in rows}
        entry = {key: model[key] for key in ("sha256", *_FAMILY, "quantization")} | {"estimates": estimates}
        if found := means.get(model["name"]):
            entry["windows"] = [int(window) for window in found["window"]]
            # Nine digits are more than a float32's logits give.
            entry["means"] = {name: [float(f"{mean:.9g}") for mean in found[name]] for name in COMPARED}
        models[model["name"]] = entry
    corpus = run["corpus"]
    return {
        "baseline_version": BASELINE_VERSION,
        "run": run["id"],
        "harness": run["harness"],
        "engine": (run["engine"] or {}).get("llama_cpp"),
        "corpus": {key: corpus[key] for key in ("name", "sha256", "n_ctx")} if corpus else None,
        "reference": next((model["name"] for model in run["models"] if model["reference"]), None),
        "models": models,
    }


def save_baseline(path: Path, content: dict[str, Any]) -> None:
    """Write a baseline; lists of numbers in one line each, so that a change of one is a change of one line.

    Raises:
        StoreError: no space, or no permission.
    """
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(path, re.sub(r"\[\s+([-+.,\de\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")


def load_baseline(path: Path) -> Baseline:
    """Read a baseline and check everything that is used of it.

    Raises:
        StoreError: unreadable, no baseline, damaged, or written by a newer version.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _invalid(path, f"has {path.stat().st_size} bytes, more than any baseline")
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror or error}") from None
    content = read_json(path, "Baseline", StoreError, _HINT)
    if not isinstance(content, dict) or not isinstance(content.get("baseline_version"), int):
        raise _invalid(path, "has no baseline_version")
    if content["baseline_version"] > BASELINE_VERSION:
        raise StoreError(
            f"{path} has baseline version {content['baseline_version']}, this harness reads up to {BASELINE_VERSION}.",
            "Update gguf-harness.",
        )
    read = _Reader(path)
    models = {name: _facts(read, name, table) for name, table in read.get(content, "models", dict).items()}
    corpus = read.get(content, "corpus", dict, type(None))
    reference = read.get(content, "reference", str, type(None))
    if reference is not None and reference not in models:
        raise _invalid(path, f"names {reference!r} as the reference and has no model of that name")
    return Baseline(
        name=visible(path.stem),
        engine=read.get(content, "engine", str, type(None)),
        corpus=None if corpus is None else (read.get(corpus, "sha256", str), read.get(corpus, "n_ctx", int)),
        reference=None if reference is None else models[reference].sha256,
        models=models,
    )


class _Reader:
    """Looks values up and says what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, table: Any, key: str, *kinds: type) -> Any:
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise _invalid(self.path, f"has {key} = {str(value)[:60]!r}, expected {expected}")
        if isinstance(value, float) and not math.isfinite(value):
            raise _invalid(self.path, f"has {key} = {value}, expected a finite number")
        return value


def _facts(read: _Reader, name: str, table: Any) -> Facts:
    kinds = {"value": (float, int), "se": (float, int, type(None)), "n": (int,), "clusters": (int, type(None))}
    estimates = {
        metric: {key: read.get(row, key, *kind) for key, kind in kinds.items()}
        for metric, row in read.get(table, "estimates", dict).items()
    }
    family = {key: str(read.get(table, key, str, int, type(None))) for key in _FAMILY}
    sha256 = read.get(table, "sha256", str)
    if "means" not in table:
        return Facts(sha256, family, estimates)
    windows = read.get(table, "windows", list)
    means = {metric: read.get(table["means"], metric, list) for metric in COMPARED}
    sound = all(type(window) is int and window >= 0 for window in windows) and len(set(windows)) == len(windows)
    for metric, values in means.items():
        sound = sound and len(values) == len(windows) > 0
        sound = sound and all(type(value) in {int, float} and math.isfinite(value) for value in values)
        if not sound:
            raise _invalid(read.path, f"has windows of {name!r} whose {metric} is damaged: expected a number for each")
    return Facts(sha256, family, estimates, tuple(windows), {metric: tuple(values) for metric, values in means.items()})


def _invalid(path: Path, problem: str) -> StoreError:
    return StoreError(f"{path} {problem}.", _HINT)
