"""LoRA adapters in GGUF files, checked as strictly as llama.cpp checks them and more: some faults it aborts on.

The format is that of llama.cpp's convert_lora_to_gguf.py: for each adapted matrix W two tensors, `W.lora_a` and
`W.lora_b`. For token embeddings, both are stored transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from gguf_harness.errors import ModelError
from gguf_harness.gguf.header import GGUFHeader, TensorInfo, read_header

__all__ = ["EMBEDDINGS", "LoraFile", "LoraPair", "read_lora"]

EMBEDDINGS: Final = "token_embd.weight"
"""The matrix whose adapters are stored transposed: llama.cpp looks rows of A up, in place of a product."""

_ALPHA: Final = "adapter.lora.alpha"
_INVOCATION: Final = "adapter.alora.invocation_tokens"
_A, _B, _NORM = ".lora_a", ".lora_b", "_norm.weight"
_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
_CONVERT: Final = "Convert the adapter again, with llama.cpp's convert_lora_to_gguf.py."
_MOST_DIMS: Final = 3


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors of one matrix's change.

    Attributes:
        name: of the model's matrix.
        a: [rank, in] in numpy's order; [experts, rank, in] for experts; [vocabulary, rank] for token embeddings.
        b: [out, rank]; [experts, out, rank]; [width, rank] for token embeddings.
    """

    name: str
    a: TensorInfo
    b: TensorInfo

    @property
    def of_embeddings(self) -> bool:
        """Whether both are stored transposed."""
        return self.name == EMBEDDINGS

    @property
    def ranks(self) -> tuple[int, int]:
        """The rank as A has it, and as B has it."""
        return self.a.shape[0 if self.of_embeddings else 1], self.b.shape[0]

    @property
    def rank(self) -> int:
        """Number of columns of B."""
        return self.b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix that it changes, in ggml's order: (in, out), (in, out, experts)."""
        if self.of_embeddings:
            return self.b.shape[1], self.a.shape[1]
        return self.a.shape[0], self.b.shape[1], *self.a.shape[2:]


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A valid adapter.

    Attributes:
        header: of its file.
        architecture: that it was made for.
        alpha: as in its metadata; 0 where it has none.
        pairs: by the name of the model's matrix.
        ignored: tensors that llama.cpp leaves out, those of norms.
    """

    header: GGUFHeader
    architecture: str
    alpha: float
    pairs: Mapping[str, LoraPair]
    ignored: tuple[str, ...]

    def factor(self, pair: LoraPair) -> float:
        """What B A is multiplied with besides the scale: alpha / rank, or 1 where there is no alpha, as in llama.cpp.

        Source: `llama_adapter_lora_weight::get_scale` (src/llama-adapter.h).
        """
        return self.alpha / pair.rank if self.alpha else 1.0

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(pair.rank for pair in self.pairs.values())


def read_lora(file: Path) -> LoraFile:
    """Read the header of an adapter and check everything that no model is needed for.

    Raises:
        InvalidGGUF: the file is not valid, is truncated, or a value of its metadata has another type.
        ModelError: it is no LoRA adapter, or one that llama.cpp cannot apply.
    """
    header = read_header(file)
    metadata = header.metadata
    kinds = metadata.get("general.type"), metadata.get("adapter.type")
    if kinds != ("adapter", "lora"):
        general, adapter = ("missing" if kind is None else repr(kind) for kind in kinds)
        raise ModelError(
            f"{file.name} is no LoRA adapter: its general.type is {general} and its adapter.type is {adapter},"
            " expected 'adapter' and 'lora'.",
            "Convert an adapter with llama.cpp's convert_lora_to_gguf.py.",
        )
    architecture = metadata.name("general.architecture")
    if not architecture:
        _fail(file, "general.architecture is missing, expected the architecture of its model")
    pairs, ignored = _pairs(file, header)
    return LoraFile(header, architecture, _alpha(header), pairs, ignored)


def _alpha(header: GGUFHeader) -> float:
    metadata = header.metadata
    alpha = metadata.number(_ALPHA)
    if alpha is not None and metadata.types[_ALPHA] != "float32":
        metadata.refuse(_ALPHA, "a float32: llama.cpp aborts on another type")
    if _INVOCATION in metadata and metadata.count(_INVOCATION, "uint32"):
        raise ModelError(
            f"{header.path.name} is an activated LoRA ({_INVOCATION}): it is meant to be on only after certain tokens,"
            " and would be on all the time.",
            f"Give a LoRA without {_INVOCATION}.",
        )
    return alpha or 0.0


def _pairs(file: Path, header: GGUFHeader) -> tuple[dict[str, LoraPair], tuple[str, ...]]:
    """Complete pairs by the model's matrix, and tensors that are left out."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    ignored = []
    for tensor in header.tensors:
        ending = tensor.name[-len(_A) :]
        if ending in {_A, _B}:
            sides.setdefault(tensor.name.removesuffix(ending), {})[ending] = tensor
        elif tensor.name.endswith(_NORM):
            ignored.append(tensor.name)
        else:
            _fail(file, f"it has a tensor {tensor.name!r}, expected names that end in {_A} or {_B}")
    if not sides:
        _fail(file, f"it has no tensor that ends in {_A} or {_B}: it would change nothing")
    pairs = {}
    for name, found in sides.items():
        for ending in (_A, _B):
            if ending not in found:
                _fail(file, f"{name}{ending} is missing, expected a pair of {_A} and {_B} for each matrix")
        pairs[name] = LoraPair(name, found[_A], found[_B])
        _check_pair(file, pairs[name])
    return pairs, tuple(ignored)


def _check_pair(file: Path, pair: LoraPair) -> None:
    for tensor in (pair.a, pair.b):
        if tensor.type not in _TYPES:
            _fail(file, f"{tensor.name} has type {tensor.type}, expected one of {', '.join(_TYPES)}")
        if not 1 < len(tensor.shape) <= (2 if pair.of_embeddings else _MOST_DIMS):
            _fail(file, f"{tensor.name} has shape {list(tensor.shape)}, expected a matrix, or one for each expert")
    if pair.ranks[0] != pair.ranks[1]:
        _fail(
            file,
            f"the rank of {pair.name} is {pair.ranks[0]} in {pair.a.name} {list(pair.a.shape)} and {pair.ranks[1]} in"
            f" {pair.b.name} {list(pair.b.shape)}, expected the same",
        )
    if pair.a.shape[2:] != pair.b.shape[2:]:
        _fail(
            file,
            f"{pair.a.name} is for {list(pair.a.shape[2:])} experts and {pair.b.name} for {list(pair.b.shape[2:])},"
            " expected the same",
        )


def _fail(file: Path, problem: str) -> NoReturn:
    raise ModelError(f"{file.name} is not a valid LoRA adapter: {problem}.", _CONVERT)
