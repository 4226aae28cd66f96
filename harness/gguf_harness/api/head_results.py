"""What the heads of a model do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_harness.api.pictures import Picture
from gguf_harness.api.summaries import short_repr, summary_html
from gguf_harness.errors import OptionError
from gguf_harness.measure.attention import pattern_results
from gguf_harness.metrics.taxonomy import KINDS

if TYPE_CHECKING:
    import pandas as pd

    from gguf_harness.store.arrays import Arrays

__all__ = ["HeadBehaviour"]

_SHARES = ("copy_score",)
"""Scores of `HeadBehaviour` that are no scores of a profile."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeadBehaviour(pattern_results.HeadBehaviour):
    """What each head of a model does with a set of prompts.

    Attributes:
        heads: layer and head of each profile.
        profiles: scores on the prompts; induction and duplicate_token on repeated random tokens.
        copy_scores: of each head, from its weights; None if the file does not have them.
        similarity: [head, head] cosine of patterns, over the first tokens of the prompts.
        prompts: those that the model could take.
        problems: reasons for the others.
        model: its name.
    """

    model: str = ""

    @classmethod
    def named(cls, arrays: Arrays, model: str) -> HeadBehaviour:
        """From what `observe_attention` returned.

        Raises:
            ModelError: tokens attend to later ones.
        """
        return replace(cls.of(arrays), model=model)

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of all scores: columns of `to_frame()`, and choices of `plot(score)`."""
        names = dict.fromkeys(name for profile in self.profiles for name in profile.values)
        return (*names, *_SHARES)

    def plot(self, score: str = "kind") -> Picture:
        """A tile for each head: its kind, or one of its scores.

        Args:
            score: `kind`, or one of `scores`.

        Raises:
            OptionError: there is no such score.
        """
        from gguf_harness.report.charts.head_maps import frame_of, head_map

        kinds = self.kinds
        notes = {place: kind.reason for place, kind in zip(self.heads, kinds, strict=True)}
        values: dict[tuple[int, int], float | int]
        if score == "kind":
            names = [kind for kind in KINDS if any(each.kind == kind for each in kinds)]
            values = {place: names.index(kind.kind) for place, kind in zip(self.heads, kinds, strict=True)}
            scale: dict[str, Any] = {"kind": "names", "names": names, "title": "kind", "rest": names[-1] == KINDS[-1]}
        else:
            column = self._column(score)
            values = {
                place: value for place, value in zip(self.heads, column.tolist(), strict=True) if np.isfinite(value)
            }
            scale = {"kind": "share", "title": score.replace("_", " "), "domain": _domain(list(values.values()))}
        return Picture(
            "matrix",
            head_map(frame_of(self.heads), values, notes, scale),
            f"Heads of {self.model}: {score.replace('_', ' ')}",
            f"On {len(self.prompts)} prompts. Point at a tile to read the rule that gave the head its kind.",
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each head: layer, head (Int64), kind, reason (string), and scores (float64, NaN for unknown)."""
        from gguf_harness.api.long_frames import make_frame

        kinds = self.kinds
        return make_frame(
            {
                "layer": ("whole", [layer for layer, _ in self.heads]),
                "head": ("whole", [head for _, head in self.heads]),
                "kind": ("text", [kind.kind for kind in kinds]),
                "reason": ("text", [kind.reason for kind in kinds]),
                **{name: ("number", self._column(name)) for name in self.scores},
            }
        )

    def _column(self, score: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        if score not in self.scores:
            raise OptionError(f"Heads have no score {score!r}.", f"Scores are kind, {', '.join(self.scores)}.")
        if score in _SHARES:
            return np.array([np.nan if each is None else each for each in self.copy_scores], dtype=np.float64)
        return np.array([profile.values.get(score, np.nan) for profile in self.profiles], dtype=np.float64)

    def _counts(self) -> dict[str, int]:
        kinds = [kind.kind for kind in self.kinds]
        return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}

    def __repr__(self) -> str:
        values = {"model": self.model, "heads": len(self.heads), "kinds": self._counts(), "prompts": len(self.prompts)}
        return short_repr("HeadBehaviour", values)

    def _repr_html_(self) -> str:
        return summary_html(
            f"{len(self.heads)} heads of {self.model}",
            {kind: str(count) for kind, count in self._counts().items()},
            '`.plot()` draws their kinds, `.plot("induction")` a score, `.to_frame()` is a table of all scores.',
        )


def _domain(values: list[float]) -> list[float]:
    return [min(0.0, *values), max(*values, 1e-9)] if values else [0.0, 1.0]
