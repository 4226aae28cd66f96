"""Network of vectors, each joined with its most similar ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.graphs.graph import Column, Graph
from gguf_harness.graphs.node_layout import principal_plane, spring_layout
from gguf_harness.metrics.kernels.directions import directions

__all__ = ["CosineNetwork"]

_MOST_SPRINGS: Final = 1500
_BLOCK: Final = 1024


@dataclass(frozen=True, slots=True)
class CosineNetwork:
    """Edges from each vector to its k most similar ones with a large enough cosine; each pair has one edge.

    Args:
        name: the model shown.
        points: [n, d], none of them zero.
        labels: [n].
        k: most edges chosen by a vector; others may add more.
        threshold: least cosine of an edge.
        coordinates: [n, 2] positions of nodes; by default a spring layout places them, or, if there are more than 1500,
            their first two principal axes.
        provenance: additional information on its origin.
        groups: [n], a column of the nodes with the group of a point; none by default.

    Raises:
        NoData: from `build`: no vectors, some that are not finite, or zero.
    """

    name: str
    points: NDArray[np.floating]
    labels: Sequence[str]
    k: int = 5
    threshold: float = 0.5
    coordinates: NDArray[np.floating] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[str | None] = ()

    def build(self) -> Graph:
        """The network."""
        directions = self._directions()
        source, target, weight = self._pairs(directions)
        layout, place = self._place(directions, source, target, weight)
        ids = np.char.add("p", np.arange(len(directions)).astype(np.str_))
        return Graph(
            name=self.name,
            kind="cosine",
            meaning=f"Each point is joined with its {self.k} most similar ones, if their cosine is at least"
            f" {self.threshold:g}. Positions are those of {layout}.",
            nodes={
                "id": Column("string", ids),
                "kind": Column("string", ["point"] * len(ids)),
                "label": Column("string", list(self.labels)),
                **({"group": Column("string", list(self.groups))} if self.groups else {}),
                "degree": Column("int64", np.bincount(np.concatenate([source, target]), minlength=len(ids))),
                "x": Column("float64", place[:, 0]),
                "y": Column("float64", place[:, 1]),
            },
            edges={
                "source": Column("string", ids[source]),
                "target": Column("string", ids[target]),
                "kind": Column("string", ["cosine"] * len(weight)),
                "weight": Column("float64", weight),
            },
            provenance={"k": self.k, "threshold": self.threshold, "layout": layout, **self.provenance},
        )

    def _directions(self) -> NDArray[np.float64]:
        points = np.asarray(self.points, dtype=np.float64)
        if points.ndim != 2 or len(points) != len(self.labels) or self.k < 1:
            raise ValueError(
                f"Points {points.shape}, {len(self.labels)} labels, k = {self.k}: expected [n, d], n and 1 or more"
            )
        if points.size == 0:
            raise NoData("There are no points.")
        units, valid = directions(points)
        if not valid.all():
            raise NoData(f"Point {int(np.argmin(valid))} is zero or not finite: it has no direction.", "Leave it out.")
        return units

    def _pairs(
        self, directions: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """(first, second, cosine) of every pair, first < second, in order."""
        n = len(directions)
        cosine_by_pair: dict[tuple[int, int], float] = {}
        for start in range(0, n, _BLOCK):
            cosines = directions[start : start + _BLOCK] @ directions.T
            own = np.arange(len(cosines))
            cosines[own, start + own] = -np.inf
            nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : self.k]
            for row, columns in enumerate(nearest.tolist()):
                for column in columns:
                    if (value := float(cosines[row, column])) >= self.threshold:
                        # It is the same number from both sides, up to rounding: use the first.
                        cosine_by_pair.setdefault((min(start + row, column), max(start + row, column)), value)
        pairs = sorted(cosine_by_pair)
        ends = np.array(pairs, dtype=np.int64).reshape(len(pairs), 2)
        return ends[:, 0], ends[:, 1], np.clip(np.array([cosine_by_pair[pair] for pair in pairs]), -1.0, 1.0)

    def _place(
        self,
        directions: NDArray[np.float64],
        source: NDArray[np.int64],
        target: NDArray[np.int64],
        weight: NDArray[np.float64],
    ) -> tuple[str, NDArray[np.float64]]:
        if self.coordinates is not None:
            place = np.asarray(self.coordinates, dtype=np.float64)
            if place.shape != (len(directions), 2):
                raise ValueError(f"Coordinates of shape {place.shape}: expected [{len(directions)}, 2]")
            if not np.isfinite(place).all():
                raise NoData("Coordinates are not finite.")
            return "the given coordinates", place
        plane = principal_plane(directions)
        if len(directions) > _MOST_SPRINGS:
            return "the first two principal axes", plane
        return "springs", spring_layout(plane, source, target, np.maximum(weight, 0.0))
