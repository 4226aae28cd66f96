"""What is in a model's files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf_harness.api.pictures import Picture
from gguf_harness.api.summaries import short_repr, summary_html
from gguf_harness.gguf.groups import layer_of, role_of
from gguf_harness.gguf.header import TensorInfo
from gguf_harness.views.structure_data import structure_view

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Structure"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Structure:
    """Every tensor of a model.

    Attributes:
        model: its name.
        tensors: in the order of the files: name, shape (ggml's order: the first number is the length of a row), type,
            offset and bytes of each.
    """

    model: str
    tensors: tuple[TensorInfo, ...]

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Weights of all tensors."""
        return sum(tensor.parameters for tensor in self.tensors)

    def plot(self) -> Picture:
        """A tile for each tensor, by layer and kind: its type or its size."""
        return Picture(
            "structure",
            structure_view(self.tensors),
            f"Tensors of {self.model}",
            f"{len(self.tensors)} tensors, {self.bytes / 1e6:,.1f} MB.",
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each tensor: name (string), layer (Int64, missing outside of layers), kind, type, shape (string).

        And weights, bytes (Int64), bits per weight (float64).
        """
        from gguf_harness.api.long_frames import make_frame

        tensors = self.tensors
        return make_frame(
            {
                "name": ("text", [each.name for each in tensors]),
                "layer": ("whole", [layer_of(each.name) for each in tensors]),
                "kind": ("text", [role_of(each.name) for each in tensors]),
                "type": ("text", [each.type for each in tensors]),
                "shape": ("text", [" × ".join(map(str, each.shape)) for each in tensors]),
                "weights": ("whole", [each.parameters for each in tensors]),
                "bytes": ("whole", [each.bytes for each in tensors]),
                "bits": ("number", [8 * each.bytes / each.parameters if each.parameters else None for each in tensors]),
            }
        )

    def _types(self) -> dict[str, int]:
        return dict(Counter(tensor.type for tensor in self.tensors).most_common())

    def __repr__(self) -> str:
        values = {"model": self.model, "tensors": len(self.tensors), "bytes": self.bytes, "types": self._types()}
        return short_repr("Structure", values)

    def _repr_html_(self) -> str:
        return summary_html(
            f"Tensors of {self.model}",
            {
                "tensors": str(len(self.tensors)),
                "weights": f"{self.parameters:,}",
                "size": f"{self.bytes / 1e6:,.1f} MB",
                "types": ", ".join(f"{kind} in {count}" for kind, count in self._types().items()),
            },
            "`.plot()` draws them by layer and kind, `.to_frame()` is a table.",
        )
