"""Where a model's token embeddings put words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.api.arguments import whole
from gguf_harness.api.pictures import Picture
from gguf_harness.api.summaries import first_pieces, short_repr, summary_html
from gguf_harness.errors import NoData, OptionError, visible
from gguf_harness.views.model_entries import model_entries

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WordEmbeddings"]

_NEAR: Final = 5
_UNGROUPED: Final = "analogies"
"""Group of words that are only in analogies, as the charts of the embeddings suite call it."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WordEmbeddings:
    """Token embeddings of words; for words of several tokens, their mean.

    Attributes:
        words: [n] words of the list that the model's vocabulary can represent.
        groups: [n] the group of each; None for words only in analogies.
        vectors: [n, d_model] float32, dequantized.
        missing: the other words of the list.
        counts: [n] int64, how many tokens each word is.
    """

    words: tuple[str, ...]
    groups: tuple[str | None, ...]
    vectors: NDArray[np.float32]
    missing: tuple[str, ...]
    counts: NDArray[np.int64]
    _model: str = field(repr=False)

    def nearest(self, word: str, count: int = 10) -> pd.DataFrame:
        """The words of the list that are nearest to one of them: word, group (string), cosine (float64).

        Args:
            word: one of `words`.
            count: how many.

        Raises:
            OptionError: it is not in the list, or its vector is zero.
        """
        from gguf_harness.api.long_frames import make_frame

        if word not in self.words:
            raise OptionError(f"{word!r} is not in the list of words.", "Give one of `.words`, or another list.")
        at, wanted = self.words.index(word), whole(count, "count", 1)
        if not self.vectors[at].any():
            raise OptionError(f"The vector of {word!r} is zero: it has no direction.", "Give another word.")
        sizes = np.linalg.norm(self.vectors.astype(np.float64), axis=1)
        products = self.vectors.astype(np.float64) @ self.vectors[at].astype(np.float64)
        cosines = np.where(sizes > 0, products / np.where(sizes > 0, sizes * sizes[at], 1), -np.inf)
        cosines[at] = -np.inf
        order = [each for each in np.argsort(-cosines, kind="stable")[:wanted].tolist() if np.isfinite(cosines[each])]
        return make_frame(
            {
                "word": ("text", [self.words[each] for each in order]),
                "group": ("text", [self.groups[each] for each in order]),
                "cosine": ("number", cosines[order]),
            }
        )

    def plot(self) -> Picture:
        """The words in their first three principal components, with the nearest of each.

        Raises:
            NoData: there are too few words.
        """
        from gguf_harness.metrics.blas import blas_threads
        from gguf_harness.metrics.kernels.nearest import nearest_by_cosine, row_blocks
        from gguf_harness.metrics.kernels.pca import principal_axes

        at = np.flatnonzero(self.vectors.any(axis=1))
        if len(at) <= _NEAR:
            raise NoData(f"{len(at)} words are too few for a map.", f"Give a list of more than {_NEAR} words.")
        vectors = self.vectors[at]
        with blas_threads(1, 0):
            mean, axes, shares = principal_axes(vectors, 3)
        near = nearest_by_cosine(vectors, row_blocks(vectors), _NEAR, np.arange(len(at))).rows
        variance = ", ".join(f"{100 * share:.3g} %" for share in shares.tolist())
        return Picture(
            "space",
            self._data(at.tolist(), (vectors - mean) @ axes, near.tolist()),
            f"Words in the embedding space of {self._model}",
            f"Their first three principal components, with {variance} of the variance: most of the space is not"
            " visible here. Click a word to see which are nearest to it, in all dimensions.",
        )

    def _data(self, at: list[int], xyz: NDArray[np.float64], near: list[list[int]]) -> dict[str, Any]:
        groups = [self.groups[each] or _UNGROUPED for each in at]
        names = [name for name in dict.fromkeys(groups) if name != _UNGROUPED]
        names += [_UNGROUPED] * (_UNGROUPED in groups)
        center = xyz.mean(axis=0)
        places = [[float(f"{value:.5g}") for value in row] for row in xyz.tolist()]
        everything = list(range(len(at)))
        (entry,) = model_entries([self._model], None)
        return {
            "axes": ["PC 1", "PC 2", "PC 3"],
            "words": [visible(self.words[each]) for each in at],
            "groups": [{"name": visible(name), "plain": name == _UNGROUPED} for name in names],
            "of": [names.index(group) for group in groups],
            "tokens": self.counts[at].tolist(),
            "center": center.tolist(),
            "reach": float(np.sqrt(np.square(xyz - center).sum(axis=1).max())) or 1.0,
            "base": {"at": everything, "xyz": places},
            "models": [entry | {"space": 0, "fitted": False}],
            "spaces": [{"at": everything, "xyz": places, "near": near}],
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each word: word, group (string), tokens (Int64), norm (float64). The vectors are an array."""
        from gguf_harness.api.long_frames import make_frame

        return make_frame(
            {
                "word": ("text", list(self.words)),
                "group": ("text", list(self.groups)),
                "tokens": ("whole", self.counts),
                "norm": ("number", np.linalg.norm(self.vectors.astype(np.float64), axis=1)),
            }
        )

    def __repr__(self) -> str:
        return short_repr(
            "WordEmbeddings",
            {"model": self._model, "words": len(self.words), "missing": len(self.missing), "vectors": self.vectors},
        )

    def _repr_html_(self) -> str:
        return summary_html(
            f"Token embeddings of {len(self.words)} words in {self._model}",
            {
                "words": first_pieces(self.words),
                "groups": str(len(set(self.groups) - {None})),
                "dimensions": str(self.vectors.shape[1]),
                "missing": str(len(self.missing)),
            },
            "`.plot()` draws a map, `.nearest(word)` has the nearest words, `.to_frame()` is a table.",
        )
