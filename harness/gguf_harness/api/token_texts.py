"""Texts of a model's tokens, which results need when the model may be closed already."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_harness.api.loading import Loader

__all__ = ["ModelVocabulary"]


class ModelVocabulary:
    """The texts of tokens as bytes, each asked for once.

    Args:
        loader: of the model, which is loaded again if it was closed.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._known: dict[int, bytes] = {}
        self._all: list[bytes] | None = None

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The text of each token: it may be part of a character."""
        unknown = [token for token in dict.fromkeys(tokens) if token not in self._known]
        if unknown:
            with self._loader.loaded() as live:
                self._known |= dict(zip(unknown, live.pieces(unknown), strict=True))
        return [self._known[token] for token in tokens]

    def all(self) -> list[bytes]:
        """The text of every token of the vocabulary."""
        if self._all is None:
            with self._loader.loaded() as live:
                self._all = live.pieces(range(live.facts.n_vocab))
        return self._all
