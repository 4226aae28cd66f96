"""Features of tokens against what is known of their text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from gguf_harness.errors import NoData
from gguf_harness.metrics.token_features import TokenFeatures, surprisal


def _of(*pieces: bytes) -> TokenFeatures:
    return TokenFeatures.of(pieces, range(len(pieces)), np.zeros(len(pieces)))


@pytest.mark.parametrize(
    ("piece", "punctuation", "delimiter"),
    [
        (b" the", False, False),
        (b".", True, False),
        (b" ...", True, False),
        (b"),", True, True),
        (b" (", True, True),
        (b'"', True, True),
        ("»".encode(), True, True),
        ("、".encode(), True, False),
        (b"\n\n  ", False, True),
        (b"\t", False, True),
        (b"`", False, True),
        (b"|", False, True),
        (b" ", False, False),
        (b"", False, False),
        (b"a,", False, False),
        (b"+", False, False),
        (b"\xe3\x80", False, False),
    ],
)
def test_punctuation_and_delimiters(piece: bytes, punctuation: bool, delimiter: bool) -> None:
    features = _of(piece)
    assert features.punctuation.tolist() == [punctuation]
    assert features.delimiter.tolist() == [delimiter]


def test_words_are_the_same_without_space_and_case() -> None:
    features = _of(b" The", b"the", b".", b".", b" ", b" ", b"THE ", b"cat", b"\xff", b"\xfe", b"\xff", "Ä".encode())
    word = features.word
    assert word[0] == word[1] == word[6]
    assert word[8] == word[10] != word[9]
    assert (word[2:6] < 0).all()
    assert len(set(word.tolist())) == len(word) - 3
    assert len(features) == 12


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20))
def test_surprisal_is_that_of_a_distribution(counts: list[int]) -> None:
    nats = surprisal(range(len(counts)), counts)
    assert logsumexp(-nats) == pytest.approx(0, abs=1e-12)
    assert nats == pytest.approx([-np.log((count + 1) / (sum(counts) + len(counts))) for count in counts])


def test_what_has_no_features() -> None:
    with pytest.raises(NoData, match="without tokens"):
        _of()
    with pytest.raises(ValueError, match="2 pieces of 1 tokens"):
        TokenFeatures.of([b"a", b"b"], [1], [0, 0])
    with pytest.raises(ValueError, match="vocabulary of 2"):
        surprisal([2], [0, 0])
    for counts in ([], [1, -1], [1, np.nan]):
        with pytest.raises(NoData, match="count"):
            surprisal([0], counts)
