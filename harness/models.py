"""What model files hold, and how models go together: facts, fallbacks, references, vocabularies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.errors import InvalidGGUF, VocabularyMismatch
from harness.gguf_file import TENSOR_TYPES, GGUFHeader, TensorInfo, read_header
from harness.quants import FTYPES, ftype_label
from harness.sources import ModelSource

__all__ = [
    "HELD_OUT_TOPICS",
    "ModelInfo",
    "check_same_vocabulary",
    "choose_reference",
    "hash_files",
    "load_info",
    "twins",
]

_HASH_BLOCK: Final = 1 << 24
HELD_OUT_TOPICS: Final = "gguf_harness.held_out_topics"
"""Metadata of a file: topics of `pydoc` that its model was not trained on, with commas between them."""

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
class ModelInfo:
    """What a model's file holds.

    Attributes:
        quantization: llama.cpp's name for the mix of types (`general.file_type`); None if the file does not say.
        bits_per_weight: bytes of all tensors, times eight, over parameters.
        tensor_types: per type, the number of tensors, their parameters and bytes.
        fallbacks: tensors that got a legacy type because their rows do not hold whole blocks of 256.
        warnings: sentences about what a person would not expect.
        vocab_sha256: None for a file without a vocabulary.
        held_out_topics: the only topics of the corpus `pydoc` that the model was not trained on; empty if it saw none.
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
    held_out_topics: tuple[str, ...] = ()
    fallbacks: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        """Short: pytest shows it in messages of failed assertions."""
        return f"<facts of {self.name}>"

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only; files by name, since their folder says nothing elsewhere."""
        values = asdict(self)
        del values["files"]
        return values | {
            "path": self.files[0].name,
            "held_out_topics": list(self.held_out_topics),
            "fallbacks": list(self.fallbacks),
            "warnings": list(self.warnings),
        }


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
        held_out_topics=tuple(filter(None, str(metadata.get(HELD_OUT_TOPICS, "")).split(","))),
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
