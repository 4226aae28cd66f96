"""Facts about model files, and how models relate: fallbacks, references, vocabularies."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from gguf_harness.errors import InvalidGGUF, ShapeMismatch, VocabularyMismatch, visible
from gguf_harness.gguf.header import TENSOR_TYPES, GGUFHeader, TensorInfo, read_header
from gguf_harness.gguf.metadata import check_metadata
from gguf_harness.gguf.types import FTYPES, ftype_label
from gguf_harness.inputs.sources import ModelSource

__all__ = [
    "HELD_OUT_TOPICS",
    "ModelInfo",
    "check_comparable",
    "check_same_vocabulary",
    "choose_reference",
    "least_bits",
    "load_info",
    "shape_difference",
    "twins",
]

HELD_OUT_TOPICS: Final = "gguf_harness.held_out_topics"
"""Metadata key: topics of `pydoc` that the model was not trained on, separated by commas."""

_FULL_BITS: Final = 16
"""Above this, bits per weight do not indicate precision: models are trained in BF16, and F16 holds about as much."""
_OPTIONAL_MATRIX: Final = "output.weight"
"""If it is missing, llama.cpp uses the token embeddings; some converters write them twice."""

_FLOAT_ORDER: Final = {"F32": 3, "F16": 1, "BF16": 2}
_REPLACES: Final = {
    "IQ4_NL": "an IQ type",
    "Q4_0": "Q2_K or Q3_K",
    "Q5_0": "Q4_K",
    "Q5_1": "Q5_K",
    "Q8_0": "Q6_K",
    "F16": "a type of blocks",
}
"""Types that llama.cpp's quantizer falls back to when a row is not a multiple of 256 (src/llama-quant.cpp)."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a model file.

    Attributes:
        quantization: llama.cpp's name for the mix of types (`general.file_type`); None if missing.
        bits_per_weight: bytes of all tensors, times eight, over parameters.
        precision: the same over the matrices that every model of this shape has, at most 16 per tensor.
        shape: hash of architecture, kind and the names and sizes of all matrices; the same for all quantizations.
        pooled: whether it is an embedding model, which maps a text to one vector.
        tensor_types: number of tensors, parameters and bytes by type.
        fallbacks: tensors with a legacy type because their rows are not a multiple of 256.
        warnings: sentences about anything unexpected.
        vocab_sha256: None for a file without a vocabulary.
        held_out_topics: the only topics of the corpus `pydoc` that the model was not trained on; empty if it was
            trained on none.
    """

    name: str
    files: tuple[Path, ...]
    bytes: int
    architecture: str
    parameters: int
    quantization: str | None
    bits_per_weight: float
    precision: float
    shape: str
    pooled: bool
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
        """A dictionary of JSON types only; files by name, since their folder has no meaning elsewhere."""
        values = asdict(self)
        del values["files"]
        return values | {
            "path": visible(self.files[0].name),
            "held_out_topics": list(self.held_out_topics),
            "fallbacks": list(self.fallbacks),
            "warnings": list(self.warnings),
        }


def load_info(source: ModelSource) -> ModelInfo:
    """Validate the files and collect facts about them.

    Raises:
        InvalidGGUF: a file is not a valid GGUF model.
    """
    missing = [file.name for file in source.files if not file.exists()] if len(source.files) > 1 else []
    if missing:
        raise InvalidGGUF(
            f"{source.name} has {len(source.files)} splits, and these are missing: {', '.join(missing[:5])}.",
            f"Put all splits into {source.files[0].parent}.",
        )
    headers = [read_header(file) for file in source.files]
    _check_splits(headers)
    metadata = headers[0].metadata
    tensors = [tensor for header in headers for tensor in header.tensors]
    architecture = metadata.name("general.architecture")
    if not architecture or not tensors:
        raise InvalidGGUF(
            f"{source.files[0].name} contains no model: it has {len(tensors)} tensors and architecture "
            f"{architecture!r}.",
            "Give a language model in GGUF format.",
        )
    check_metadata(metadata, architecture)
    parameters = sum(tensor.parameters for tensor in tensors)
    quantization = _quantization(headers[0])
    bits = 8 * sum(tensor.bytes for tensor in tensors) / parameters
    fallbacks = _fallbacks(tensors, quantization)
    heads = f"{architecture}.attention.head_count"
    return ModelInfo(
        name=source.name,
        files=source.files,
        bytes=sum(header.file_bytes for header in headers),
        architecture=architecture,
        parameters=parameters,
        quantization=quantization,
        bits_per_weight=bits,
        precision=_precision(_matrices(tensors) or tensors),
        shape=_shape(architecture, _is_pooled(headers[0], architecture), _matrices(tensors)),
        pooled=_is_pooled(headers[0], architecture),
        tensor_types=_histogram(tensors),
        vocab_sha256=headers[0].vocab_sha256,
        n_vocab=metadata.count("tokenizer.ggml.tokens", "string"),
        tokenizer=metadata.name("tokenizer.ggml.model"),
        n_layer=metadata.integer(f"{architecture}.block_count"),
        n_head=None if isinstance(metadata.get(heads), tuple) else metadata.integer(heads),
        n_embd=metadata.integer(f"{architecture}.embedding_length"),
        n_ctx_train=metadata.integer(f"{architecture}.context_length"),
        held_out_topics=tuple(filter(None, (metadata.text(HELD_OUT_TOPICS) or "").split(","))),
        fallbacks=tuple(fallbacks),
        warnings=tuple(_warnings(source, quantization, bits, fallbacks, tensors)),
    )


def _check_splits(headers: Sequence[GGUFHeader]) -> None:
    """Check splits: llama.cpp reads as many as the first one declares, whatever the file names."""
    for index, header in enumerate(headers):
        # A file that is not split has none of the keys, or a count of 0.
        count, number = max(header.metadata.integer("split.count") or 1, 1), header.metadata.integer("split.no") or 0
        if (count, number) != (len(headers), index):
            raise InvalidGGUF(
                f"{header.path.name} says that it is split {number} of {count} (split.no, split.count; from 0), its"
                f" name that it is {index} of {len(headers)}.",
                "Name splits NAME-00001-of-00002.gguf and so on, as llama-gguf-split does, and whole models otherwise.",
            )


def _matrices(tensors: Sequence[TensorInfo]) -> list[TensorInfo]:
    """The matrices that quantization affects, without those that only some converters write."""
    return [tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.name != _OPTIONAL_MATRIX]


def _precision(tensors: Sequence[TensorInfo]) -> float:
    bits = sum(min(8 * tensor.bytes, _FULL_BITS * tensor.parameters) for tensor in tensors)
    return bits / sum(tensor.parameters for tensor in tensors)


def _shape(architecture: str, pooled: bool, matrices: Sequence[TensorInfo]) -> str:
    content = repr((architecture, pooled, sorted((tensor.name, tensor.shape) for tensor in matrices)))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _is_pooled(header: GGUFHeader, architecture: str) -> bool:
    kind = header.metadata.integer(f"{architecture}.pooling_type")
    return isinstance(kind, int) and kind > 0


def _quantization(header: GGUFHeader) -> str | None:
    file_type = header.metadata.integer("general.file_type")
    return None if file_type is None else ftype_label(file_type)


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
        warnings.append(f"The file is named {named}, but its metadata says {quantization}.")
    if (
        quantization
        and not fallbacks
        and not any(tensor.type.startswith(_type_family(quantization)) for tensor in tensors)
    ):
        kinds = ", ".join(_histogram(tensors))
        warnings.append(f"The file says that it is {quantization}, and holds none of that type, but {kinds}.")
    for label in dict.fromkeys(filter(None, (named, quantization))):
        least = least_bits(label)
        if least is not None and bits < 0.97 * least:
            warnings.append(f"{label} holds at least {least:.2f} bits per weight, this file only {bits:.2f}.")
    return warnings


def _named_quantization(file_name: str) -> str | None:
    names = sorted(FTYPES, key=len, reverse=True)
    pattern = rf"(?<![A-Za-z0-9])({'|'.join(names)})(?![A-Za-z0-9])"
    # The last one: model-F16-Q8_0 was made from model-F16.
    named = re.findall(pattern, file_name, re.IGNORECASE | re.ASCII)
    return str(named[-1]).upper() if named else None


def least_bits(label: str) -> float | None:
    """Bits per weight of the smallest tensor type in a label's family: Q4_K for Q4_K_M, IQ3_XXS for IQ3_M."""
    family = _type_family(label)
    sizes = [8 * kind.block_bytes / kind.block for kind in TENSOR_TYPES.values() if kind.name.startswith(family)]
    return min(sizes, default=None)


def _type_family(label: str) -> str:
    if label.startswith("IQ"):
        return label.split("_", maxsplit=1)[0]
    return re.sub(r"_([SML]|MOE)$", "", label)


def choose_reference(infos: Sequence[ModelInfo]) -> tuple[ModelInfo, str]:
    """The model of highest precision in the largest family, and why.

    A family shares vocabulary, architecture and the sizes of all matrices: a smaller draft model is not part of it.
    Among families with equally many models, the one with larger models is used, then the one given first. Precision is
    `precision`, then bits per weight, then F32 over BF16 over F16, then the order given.
    """
    families: dict[tuple[str | None, str], list[ModelInfo]] = {}
    for info in infos:
        families.setdefault((info.vocab_sha256, info.shape), []).append(info)
    family = max(families.values(), key=lambda members: (len(members), members[0].parameters))
    best = max(family, key=_rank)
    kind = f" ({best.quantization})" if best.quantization else ""
    reason = f"{best.name}{kind} is the reference: with {best.bits_per_weight:.2f} bits per weight it has the highest"
    if len(family) == len(infos):
        reason += f" precision of the {len(infos)} models given" if len(infos) > 1 else " precision given"
    elif len(family) > 1:
        reason += f" precision of the {len(family)} models of its vocabulary and shape"
    else:
        reason += " precision of its vocabulary and shape, which no other model given has"
    equals = [info.name for info in family if info is not best and _rank(info) == _rank(best)]
    if equals:
        reason += f"; {', '.join(equals)} {'has' if len(equals) == 1 else 'have'} the same, and came later"
    return best, f"{reason}. Name another with --reference."


def _rank(info: ModelInfo) -> tuple[float, float, int]:
    return info.precision, info.bits_per_weight, _FLOAT_ORDER.get(info.quantization or "", 0)


def shape_difference(one: ModelInfo, other: ModelInfo) -> str | None:
    """How two models differ in shape, as the end of a sentence; None if one may be quantized from the other."""
    if one.shape == other.shape:
        return None
    first, second = _describe_shape(one), _describe_shape(other)
    return f"{one.name} is {first}, {other.name} is {second}{', with other matrices' if first == second else ''}"


def _describe_shape(info: ModelInfo) -> str:
    kind = "an embedding model" if info.pooled else "a model"
    return (
        f"{kind} of architecture {info.architecture} with {info.n_layer} layers of width {info.n_embd}"
        f" and {info.parameters:,} parameters"
    )


def check_comparable(candidate: ModelInfo, reference: ModelInfo, *, asked_for: bool) -> None:
    """Check that a candidate may be compared with a reference: one of its shape, or one that the user names.

    Args:
        candidate: the model compared.
        reference: what it is compared with.
        asked_for: whether --reference names it: then models of other shapes (pruned ones) may be compared.

    Raises:
        VocabularyMismatch: their distributions are over different tokens, even if requested.
        ShapeMismatch: different shapes, and --reference was not given.
    """
    check_same_vocabulary(candidate, reference)
    difference = shape_difference(candidate, reference)
    if difference is not None and not asked_for:
        raise ShapeMismatch(
            f"{candidate.name} is not compared with {reference.name}: {difference}.",
            f"To compare them all the same (a pruned model with its original), give --reference={reference.name}"
            " with its path; or leave one of them out of --models.",
        )


def check_same_vocabulary(candidate: ModelInfo, reference: ModelInfo) -> None:
    """Check that two models share a vocabulary, without which distributions cannot be compared.

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
    """Warnings about identical candidates, each naming the first one like it.

    Args:
        infos: models with their SHA-256.
    """
    by_content: dict[str, ModelInfo] = {}
    by_size: dict[object, list[tuple[ModelInfo, str]]] = {}
    warnings: list[str] = []
    # In a fixed order, so that all processes give the same warnings.
    for info, digest in sorted(infos, key=lambda pair: pair[0].name):
        first = by_content.setdefault(digest, info)
        if first is not info:
            warnings.append(f"{info.name} and {first.name} have identical content.")
            continue
        # Names without a type, such as those of checkpoints, promise no difference.
        promised = _named_quantization(info.name)
        if promised is None:
            continue
        others = by_size.setdefault((info.bytes, repr(sorted(info.tensor_types.items()))), [])
        other = next((name.name for name, named in others if named != promised), None)
        if other is not None:
            warnings.append(
                f"{info.name} and {other} have the same size and tensor types: their names promise a difference."
            )
        others.append((info, promised))
    return warnings
