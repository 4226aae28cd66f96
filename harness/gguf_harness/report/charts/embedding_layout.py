"""One layout of words for all models of a run, from the stored maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.report.charts.base import arrays_of, short_name
from gguf_harness.report.data import RunView, visible

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Layout", "changed_words", "load_points", "tell_models"]

Points = dict[str, Any]
"""The arrays of a stored map, as lists."""

_UNGROUPED: Final = ("analogies", "common tokens")
_FEWEST_SHARED: Final = 4
_DIGITS: Final = 5


def load_points(view: RunView, run_dir: Path, name: str) -> dict[str, Points]:
    """Arrays with a name, by model; those whose files are lost are left out."""
    return {
        model: {key: array.tolist() for key, array in arrays.items()}
        for model, arrays in arrays_of(view, run_dir, name).items()
    }


def changed_words(points: Points) -> list[int]:
    """Places of words that do not keep all their nearest words, those that keep least first."""
    near = len(points["near"][0]) if points["near"] else 0
    changed = [place for place, stay in enumerate(points["stay"]) if stay < near]
    return sorted(changed, key=lambda place: points["stay"][place])


def tell_models(view: RunView, names: Sequence[str], verb: str) -> str:
    """Models as the subject of a verb: `Q2_K keeps`, `Q2_K and 2 more keep`, `both candidates keep`."""
    if len(names) == len(view.candidates) > 1:
        return f"{'both' if len(names) == 2 else f'all {len(names)}'} candidates {verb}"
    last = short_name(view, names[-1])
    return f"{last} {verb}s" if len(names) == 1 else f"{last} and {len(names) - 1} more {verb}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of words in the frame of the reference.

    Attributes:
        method: pca, umap or tsne.
        shares: of the variance, by axis.
        base: places of the reference's words, by text; of the first model that there is if it has no map.
        spaces: of words, {texts, groups, tokens, near, xyz}, those that differ: many candidates store the same.
        of: place of each model's space.
        fitted: models of another vocabulary, whose own map was turned so that it fits the frame.
    """

    method: str
    shares: list[float]
    base: Mapping[str, list[float]]
    spaces: list[Points]
    of: Mapping[str, int]
    fitted: frozenset[str]

    @classmethod
    def from_maps(cls, view: RunView, own: Mapping[str, Points], moved: Mapping[str, Points]) -> Layout | None:
        """The layout of a run's maps, `embedding_map` and `embedding_map_aligned` by model; None without any."""
        if not own and not moved:
            return None
        first = own.get(view.reference or "") or next(iter((dict(moved) or dict(own)).values()))
        base = dict(zip(first["texts"], first.get("from_xyz") or first["xyz"], strict=True))
        spaces: dict[str, Points] = {}
        fitted = set[str]()
        for model in view.models:
            if model.is_reference and model.name in own:
                spaces[model.name] = own[model.name]
            elif model.name in moved:
                points = moved[model.name]
                spaces[model.name] = points | {"xyz": _fit(points, points["from_xyz"], base)}
            elif model.name in own:
                points = own[model.name]
                spaces[model.name] = points | {"xyz": _fit(points, points["xyz"], base)}
                fitted.add(model.name)
        distinct, of = _distinct(spaces)
        return cls(first["method"], first["shares"], base, distinct, of, frozenset(fitted - {view.reference}))

    def about(self, name: str) -> dict[str, Any]:
        """What the view needs to know of a model besides its look."""
        return {"space": self.of[name], "fitted": name in self.fitted}

    def same(self) -> list[list[str]]:
        """Models with equal embeddings, where there are several."""
        groups = [[name for name, row in self.of.items() if row == space] for space in range(len(self.spaces))]
        return [names for names in groups if len(names) > 1]

    def data(self) -> dict[str, Any]:
        """What the view draws; models with equal embeddings share a space."""
        texts = dict.fromkeys([*self.base, *(text for points in self.spaces for text in points["texts"])])
        place = {text: row for row, text in enumerate(texts)}
        groups: dict[str, str] = {}
        tokens: dict[str, int] = {}
        for points in reversed(self.spaces):
            groups |= dict(zip(points["texts"], points["groups"], strict=True))
            tokens |= dict(zip(points["texts"], points["tokens"], strict=True))
        names = [name for name in dict.fromkeys(groups[text] for text in texts) if name not in _UNGROUPED]
        names += [name for name in _UNGROUPED if name in groups.values()]
        center, reach = _extent([*self.base.values(), *(xyz for points in self.spaces for xyz in points["xyz"])])
        return {
            "axes": [f"PC {axis}" for axis in (1, 2, 3)] if self.method == "pca" else None,
            "words": [visible(text) for text in texts],
            "groups": [{"name": visible(name), "plain": name in _UNGROUPED} for name in names],
            "of": [names.index(groups[text]) for text in texts],
            "tokens": [tokens[text] for text in texts],
            "center": center,
            "reach": reach,
            "base": {"at": [place[text] for text in self.base], "xyz": [_rounded(xyz) for xyz in self.base.values()]},
            "spaces": [
                {
                    "at": [place[text] for text in points["texts"]],
                    "xyz": [_rounded(xyz) for xyz in points["xyz"]],
                    "near": [[place[text] for text in near if text in place] for near in points["near"]],
                }
                for points in self.spaces
            ],
        }


def _distinct(spaces: Mapping[str, Points]) -> tuple[list[Points], dict[str, int]]:
    """Spaces that differ, and the one of each model."""
    distinct: list[Points] = []
    of = {}
    for name, points in spaces.items():
        alike = (row for row, other in enumerate(distinct) if _alike(points, other))
        of[name] = next(alike, len(distinct))
        if of[name] == len(distinct):
            distinct.append(points)
    return distinct, of


def _alike(one: Points, other: Points) -> bool:
    return all(one[key] == other[key] for key in ("texts", "near", "xyz"))


def _fit(points: Points, anchors: list[list[float]], base: Mapping[str, list[float]]) -> list[list[float]]:
    """Places in the frame: turned, mirrored, scaled and shifted so that anchors come as near to the frame as they can.

    Anchors that are there already, as those of a candidate that was laid into the reference's map, leave all as it is.
    """
    import numpy as np

    xyz: NDArray[np.float64] = np.array(points["xyz"], dtype=np.float64)
    rows = [row for row, text in enumerate(points["texts"]) if text in base]
    if len(rows) < _FEWEST_SHARED:
        return points["xyz"]  # type: ignore[no-any-return]
    here = np.array([anchors[row] for row in rows], dtype=np.float64)
    there = np.array([base[points["texts"][row]] for row in rows], dtype=np.float64)
    if np.allclose(here, there, rtol=1e-5, atol=1e-6):
        return points["xyz"]  # type: ignore[no-any-return]
    a, b = here - here.mean(axis=0), there - there.mean(axis=0)
    u, values, vt = np.linalg.svd(a.T @ b)
    scale = values.sum() / max(float(np.square(a).sum()), 1e-12)
    fitted: list[list[float]] = (scale * (xyz - here.mean(axis=0)) @ (u @ vt) + there.mean(axis=0)).tolist()
    return fitted


def _extent(xyz: list[list[float]]) -> tuple[list[float], float]:
    """Mean and radius of all points of all models: the frame is the same whichever is chosen."""
    import numpy as np

    points: NDArray[np.float64] = np.array(xyz, dtype=np.float64)
    center = points.mean(axis=0)
    reach = float(np.sqrt(np.square(points - center).sum(axis=1).max()))
    return _rounded(center.tolist()), reach or 1.0


def _rounded(values: list[float]) -> list[float]:
    """Values with as many digits as a picture can show."""
    return [float(f"{value:.{_DIGITS}g}") for value in values]
