"""Final norm and unembedding of a model, read from its file, for the logit lens.

No single metadata key gives the norm of a model and the scale of its logits. Several variants are compared with
llama.cpp's results; the lens is not offered if none reproduces the logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import ModelError, NoData
from gguf_harness.gguf.header import read_header
from gguf_harness.gguf.weights import Weights
from gguf_harness.metrics.lens import Head, final_norm, head_logits

__all__ = ["ModelFile", "find_head"]

F32 = NDArray[np.float32]

_NORM_ERROR: Final = 1e-3
_LOGIT_ERROR: Final = 0.05
"""Largest relative error of logits (of their spread): llama.cpp rounds activations to the precision of its weights."""
_CHECKED: Final = 32
_TINY: Final = 1e-30
_CHECKED_VOCABULARY: Final = 2048


class ModelFile(Weights):
    """Weights of a model, with the numbers of its metadata.

    Args:
        files: the GGUF file, or its splits.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files)
        self.metadata = read_header(files[0]).metadata

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return self.metadata.name("general.architecture") or "none"

    def number(self, key: str) -> float | None:
        """A number from the architecture's metadata; None if missing."""
        return self.metadata.number(f"{self.architecture}.{key}")

    def vector(self, name: str) -> F32 | None:
        """A one-dimensional tensor; None if missing."""
        return self.tensor(name) if name in self else None

    def matrix(self, name: str) -> FileRows:
        """A matrix, read row by row."""
        return FileRows(self, name)


@dataclass(frozen=True, slots=True)
class FileRows:
    """A matrix in a file: rows are read and dequantized on demand."""

    weights: Weights
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.weights.count_rows(self.name), self.weights.shape(self.name)[-1]

    def take(self, tokens: slice | NDArray[np.int64]) -> F32:
        """[n, columns] of these rows.

        Raises:
            NoData: a type that gguf does not dequantize.
        """
        try:
            if isinstance(tokens, slice):
                start, stop, _ = tokens.indices(self.shape[0])
                return self.weights.rows(self.name, start, stop)
            return np.concatenate([self.weights.rows(self.name, row, row + 1) for row in tokens.tolist()])
        except ModelError as error:
            raise NoData(error.message) from None


def find_head(weights: ModelFile, final: F32, normalized: F32, logits: F32) -> Head:
    """Find the head that reproduces llama.cpp's logits from these residual streams.

    Args:
        weights: of the model.
        final: [n, d_model] last residual stream.
        normalized: [n, d_model] after the final norm, as computed by llama.cpp.
        logits: [n, vocabulary] as computed by llama.cpp.

    Raises:
        NoData: no known variant does.
    """
    final, normalized, logits = final[:_CHECKED], normalized[:_CHECKED], logits[:_CHECKED]
    name = "output.weight" if "output.weight" in weights else "token_embd.weight"
    if name not in weights or weights.matrix(name).shape != (logits.shape[1], final.shape[1]):
        raise NoData(f"{_not_offered(weights)}: its file has no unembedding of the shape of its logits.")
    gain, bias = weights.vector("output_norm.weight"), weights.vector("output_norm.bias")
    epsilon = [weights.number(f"attention.layer_norm_{kind}epsilon") for kind in ("rms_", "")]
    base = Head("rms", 0.0, gain, bias, weights.matrix(name), weights.vector("output.bias"))
    norms = [replace(base, norm="rms", eps=e) for e in epsilon if e is not None]
    norms += [replace(base, norm="layer", eps=e) for e in reversed(epsilon) if e is not None]
    fitting = min(norms, key=lambda head: _error(final_norm(head, final), normalized), default=None)
    if fitting is None or _error(final_norm(fitting, final), normalized) > _NORM_ERROR:
        raise NoData(f"{_not_offered(weights)}: no norm of its last residual stream gives llama.cpp's result.")
    return _scaled(weights, fitting, final, logits)


def _scaled(weights: ModelFile, head: Head, final: F32, logits: F32) -> Head:
    """The head with the scale and the cap of the logits."""
    scale, cap = weights.number("logit_scale") or 1.0, weights.number("final_logit_softcapping")
    # Command-R multiplies by it, Granite divides.
    heads = [
        replace(head, scale=factor, softcap=limit)
        for factor, limit in itertools.product(dict.fromkeys([scale, 1 / scale, 1.0]), dict.fromkeys([cap, None]))
        if limit is None or limit > 0
    ]
    some = np.unique(np.linspace(0, logits.shape[1] - 1, _CHECKED_VOCABULARY).astype(np.int64))
    errors = [_error(head_logits(each, final, some), logits[:, some]) for each in heads]
    best = int(np.argmin(errors))
    if errors[best] > _LOGIT_ERROR:
        raise NoData(
            f"{_not_offered(weights)}: its unembedding gives logits that differ from llama.cpp's by {errors[best]:.0%}."
        )
    return heads[best]


def _error(values: F32, expected: F32) -> float:
    """Norm of the difference divided by the norm of the expected values, after subtracting the common offset."""
    spread = expected - expected.mean(axis=-1, keepdims=True)
    return float(np.linalg.norm(values - expected)) / max(float(np.linalg.norm(spread)), _TINY)


def _not_offered(weights: ModelFile) -> str:
    return f"The logit lens is not offered for this model of the architecture {weights.architecture}"
