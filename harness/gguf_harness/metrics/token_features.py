"""Features of a prompt's tokens from their text: punctuation, delimiters, repeated words, rare tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gguf_harness.errors import NoData

__all__ = ["TokenFeatures", "surprisal"]

_BRACKETS_AND_QUOTES: Final = frozenset({"Ps", "Pe", "Pi", "Pf"})
_OTHER_DELIMITERS: Final = frozenset("\"'`,;:|\n\r\t")


@dataclass(frozen=True, slots=True)
class TokenFeatures:
    """Features of the n tokens of a prompt.

    Attributes:
        punctuation: [n] all characters but the space around are Unicode punctuation (categories P*): "." and "),", not
            "+" or "<".
        delimiter: [n] the token has only white space and delimiters, and at least one of these: line breaks,
            tabs, brackets (Ps, Pe), quotes (Pi, Pf, " ' `), and the separators , ; : |. The full stop is not a
            delimiter.
        word: [n] equal numbers for equal words: the piece without the space around and in lower case. Empty pieces and
            punctuation are not words and have unique numbers below zero. A word of several tokens is compared piece by
            piece.
        rarity: [n] surprisal in nats.
    """

    punctuation: NDArray[np.bool_]
    delimiter: NDArray[np.bool_]
    word: NDArray[np.int32]
    rarity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.word)

    @classmethod
    def of(cls, pieces: Sequence[bytes], tokens: ArrayLike, counts: ArrayLike) -> TokenFeatures:
        """Features of tokens.

        Args:
            pieces: [n] the text of each token, with the space that belongs to it; parts of characters are distinguished
                by their bytes.
            tokens: [n] their ids.
            counts: [vocabulary] count of each token in some large text; see `surprisal`.

        Raises:
            NoData: there are no tokens.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        if len(pieces) != len(ids):
            raise ValueError(f"{len(pieces)} pieces of {len(ids)} tokens")
        if not pieces:
            raise NoData("A prompt without tokens has no features.")
        texts = [piece.decode("utf-8", errors="surrogateescape") for piece in pieces]
        punctuation = np.array([_is_punctuation(text.strip()) for text in texts])
        return cls(
            punctuation=punctuation,
            delimiter=np.array([_is_delimiter(text) for text in texts]),
            word=_words(texts, punctuation),
            rarity=surprisal(ids, counts),
        )


def surprisal(tokens: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
    """-ln p of each token by unigram counts with add-one smoothing: p = (count + 1) / (all counts + vocabulary).

    Laplace's rule of succession; Manning and Schütze (1999), Foundations of Statistical NLP, section 6.2.2.

    Args:
        tokens: [n] ids, below the vocabulary's size.
        counts: [vocabulary] counts, not negative.

    Returns:
        [n] in nats, above 0 for a vocabulary of more than one token.
    """
    seen = np.asarray(counts, dtype=np.float64)
    ids = np.asarray(tokens, dtype=np.int64)
    if seen.ndim != 1 or seen.size == 0 or not np.isfinite(seen).all() or (seen < 0).any():
        raise NoData("Rarity needs a count, 0 or more, of every token of the vocabulary.")
    if ids.size and (ids.min() < 0 or ids.max() >= seen.size):
        raise ValueError(f"Tokens from {ids.min()} to {ids.max()} are not all in a vocabulary of {seen.size}")
    return np.asarray(np.log(seen.sum() + seen.size) - np.log(seen[ids] + 1))


def _is_punctuation(text: str) -> bool:
    return bool(text) and all(unicodedata.category(character).startswith("P") for character in text)


def _is_delimiter(text: str) -> bool:
    marks = [_delimits(character) for character in text]
    return any(marks) and all(mark or character.isspace() for mark, character in zip(marks, text, strict=True))


def _delimits(character: str) -> bool:
    return character in _OTHER_DELIMITERS or unicodedata.category(character) in _BRACKETS_AND_QUOTES


def _words(texts: Sequence[str], punctuation: NDArray[np.bool_]) -> NDArray[np.int32]:
    numbers: dict[str, int] = {}
    words = np.arange(-1, -1 - len(texts), -1, dtype=np.int32)
    for index, text in enumerate(texts):
        word = text.strip().lower()
        if word and not punctuation[index]:
            words[index] = numbers.setdefault(word, len(numbers))
    return words
