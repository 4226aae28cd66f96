"""Induction on synthetic patterns, and copying against the full OV circuit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.circuits import copy_score, induction_scores, repeated_tokens, token_product

seeds = st.integers(0, 2**32 - 1)


@given(st.integers(1, 50), seeds)
def test_repeated_tokens(length: int, seed: int) -> None:
    tokens = repeated_tokens(range(100, 160), length, seed)
    assert (tokens[:length] == tokens[length:]).all()
    assert len(set(tokens.tolist())) == length
    assert tokens.min() >= 100
    assert tokens.max() < 160
    np.testing.assert_array_equal(tokens, repeated_tokens(range(100, 160), length, seed))


def test_too_few_tokens() -> None:
    with pytest.raises(NoData, match="5 different tokens cannot be drawn from 2"):
        repeated_tokens([3, 3, 4], 5, 0)
    with pytest.raises(NoData, match="0 different"):
        repeated_tokens([3], 0, 0)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_perfect_heads_by_their_tokens(offset: int) -> None:
    """Where the keys are comes from looking the tokens up, not from their distance."""
    length = 7
    tokens = [-1 - n for n in range(offset)] + repeated_tokens(range(50), length, offset).tolist()
    size = len(tokens)
    pattern = np.zeros((3, size, size + 2), dtype=np.float32)
    for position in range(offset + length, size):
        earlier = tokens.index(tokens[position])
        pattern[0, position, earlier + 1] = 1
        pattern[1, position, earlier] = 1
        pattern[2, position, : position + 1] = 1 / (position + 1)
    scores = induction_scores(pattern, length, offset)
    assert scores["induction"].shape == (3, length)
    assert (scores["induction"][0] == 1).all()
    assert (scores["duplicate_token"][1] == 1).all()
    assert (scores["duplicate_token"][0] == 0).all()
    assert (scores["induction"][1] == 0).all()
    uniform = 1 / np.arange(offset + length + 1, size + 1)
    np.testing.assert_allclose(scores["induction"][2], uniform, rtol=1e-6)
    np.testing.assert_allclose(scores["duplicate_token"][2], uniform, rtol=1e-6)


def test_patterns_that_are_not_of_repeated_tokens() -> None:
    with pytest.raises(ValueError, match="twice 4 tokens"):
        induction_scores(np.ones((1, 7, 7)), 4)
    with pytest.raises(NoData, match="not finite"):
        induction_scores(np.full((1, 8, 8), np.nan), 4)


@given(seeds, st.booleans())
def test_copying_equals_the_full_circuit(seed: int, gains: bool) -> None:
    random = np.random.default_rng(seed)
    vocabulary, d_model, d_head = 40, 12, 4
    w_e, w_u = random.normal(size=(2, vocabulary, d_model))
    w_v, w_o = random.normal(size=(d_head, d_model)), random.normal(size=(d_model, d_head))
    first, second = random.uniform(0.5, 2, size=(2, d_model)) if gains else np.ones((2, d_model))
    full = w_u @ np.diag(second) @ w_o @ w_v @ np.diag(first) @ w_e.T
    # The nonzero eigenvalues of a matrix of rank 4: the other 36 are rounding.
    eigenvalues = sorted(np.linalg.eigvals(full), key=abs)[-d_head:]
    score = copy_score(token_product(w_e, w_u), w_v, w_o, *((first, second) if gains else ()))
    assert score == pytest.approx(np.sum(eigenvalues).real / np.abs(eigenvalues).sum(), abs=1e-6)
    assert -1 <= score <= 1


def test_a_head_that_copies_and_one_that_does_the_opposite() -> None:
    random = np.random.default_rng(0)
    w_e = random.normal(size=(5000, 8)).astype(np.float32)
    w_v = random.normal(size=(3, 8))
    product = token_product(w_e, w_e)
    np.testing.assert_allclose(product, w_e.astype(np.float64).T @ w_e, rtol=1e-4, atol=1e-2)
    assert copy_score(product, w_v, w_v.T) == pytest.approx(1)
    assert copy_score(product, w_v, -w_v.T) == pytest.approx(-1)


def test_what_has_no_copy_score() -> None:
    product, w_v, w_o = np.eye(4), np.ones((2, 4)), np.ones((4, 2))
    with pytest.raises(NoData, match="zero"):
        copy_score(product, 0 * w_v, w_o)
    with pytest.raises(NoData, match="not finite"):
        copy_score(product, np.nan * w_v, w_o)
    with pytest.raises(ValueError, match="Expected w_v"):
        copy_score(product, w_v.T, w_o)
    with pytest.raises(ValueError, match="same shape"):
        token_product(np.ones((3, 4)), np.ones((3, 5)))
