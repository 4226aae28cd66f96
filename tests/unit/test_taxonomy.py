"""Kinds, matches and groups of heads: rules at their edges, brute force, and invariances."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.head_behaviour import BehaviourKernel, ScoreSums, head_profiles
from gguf_harness.metrics.kernels.directions import cosine
from gguf_harness.metrics.taxonomy import (
    KINDS,
    classify_head,
    head_groups,
    match_heads,
    profile_vector,
    redundancy,
    shared_features,
)
from gguf_harness.metrics.token_features import TokenFeatures

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0, 1)
PLAIN = {"previous_token": 0.1, "current_token": 0.1, "first_token": 0.3, "local": 0.4}
needed = dict.fromkeys(PLAIN, shares)
probed = {"induction": shares, "duplicate_token": shares, "distance": st.floats(0, 1e4)}
profiles = st.fixed_dictionaries(needed, optional=probed)


@given(profiles)
def test_every_profile_has_exactly_one_kind(profile: dict[str, float]) -> None:
    head_kind = classify_head(profile)
    assert head_kind.kind in KINDS
    assert head_kind == classify_head(dict(reversed(profile.items())))
    assert head_kind.reason


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        ({"induction": 0.3, "first_token": 0.6}, "induction", "0.30 of the weight is on the token after"),
        ({"induction": 0.29, "first_token": 0.6}, "sink", "0.60 of the weight is on the first token"),
        ({"duplicate_token": 0.8}, "duplicate-token", "0.80 of the weight is on the same token"),
        ({"previous_token": 0.5, "local": 0.9}, "positional", "0.50 of the weight is on the previous token"),
        ({"current_token": 0.7, "local": 0.9}, "positional", "on the token itself"),
        ({"local": 0.7}, "local", "0.70 of the weight is on the last 8 tokens"),
        ({"local": 0.2, "first_token": 0.1}, "global", "0.70 of the weight is on tokens before the last 8 tokens"),
        ({}, "mixed", "0.40 of the weight is on the last 8 tokens, 0.30 on the first token"),
    ],
)
def test_rules(change: Mapping[str, float], kind: str, reason: str) -> None:
    head_kind = classify_head({**PLAIN, **change})
    assert head_kind.kind == kind
    assert reason in head_kind.reason


def test_known_patterns_have_their_kinds() -> None:
    """From patterns through scores and profiles to kinds."""
    size = 200
    rows = np.arange(size)
    distance = rows[:, None] - rows[None, :]
    visible = distance >= 0
    heads = np.stack(
        [
            np.where(distance == 1, 1.0, 0.0) + np.where((rows[:, None] == 0) & (distance == 0), 1.0, 0.0),
            np.where(rows[None, :] == 0, 1.0, 0.0) * visible,
            visible * (distance < 8),
            visible * 1.0,
        ]
    )
    pattern = (heads / heads.sum(axis=-1, keepdims=True)).astype(np.float32)
    features = TokenFeatures.of([b"x"] * size, np.zeros(size), [1])
    profiles = head_profiles([ScoreSums.of(BehaviourKernel(features).scores(pattern))])
    assert [classify_head(head.values).kind for head in profiles] == ["positional", "sink", "local", "global"]


def test_a_profile_without_scores_has_no_kind() -> None:
    with pytest.raises(NoData, match="no local"):
        classify_head({name: 0.1 for name in PLAIN if name != "local"})
    with pytest.raises(NoData, match="local is nan"):
        classify_head({**PLAIN, "local": float("nan")})


@given(profiles)
def test_vectors_are_bounded(profile: dict[str, float]) -> None:
    features = shared_features([profile])
    vector = profile_vector(profile, features)
    assert vector.shape == (len(profile),)
    assert ((vector >= 0) & (vector <= 1)).all()


def test_vectors_hold_what_all_profiles_have() -> None:
    assert shared_features([{**PLAIN, "induction": 0.1, "distance": 1}], [{**PLAIN, "distance": 2}])[-1] == "distance"
    assert profile_vector({"distance": 8.0, "local": 0.25}, ("local", "distance")).tolist() == [0.25, 0.5]
    with pytest.raises(NoData, match="no induction"):
        profile_vector(PLAIN, ["induction"])
    with pytest.raises(NoData, match="in common"):
        shared_features([{"local": 1.0}], [{"entropy": 1.0}])
    with pytest.raises(NoData, match="0 profiles"):
        shared_features([])


def _random_profiles(seed: int, count: int) -> list[dict[str, float]]:
    random = np.random.default_rng(seed)
    return [dict(zip(PLAIN, random.uniform(size=4).tolist(), strict=True)) for _ in range(count)]


@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_matches_are_the_best_of_all(seed: int, first: int, second: int) -> None:
    a, b = _random_profiles(seed, first), _random_profiles(seed + 1, second)
    pairs = match_heads(a, b)
    assert len(pairs) == min(first, second)
    assert len({pair.first for pair in pairs}) == len({pair.second for pair in pairs}) == len(pairs)
    x, y = (np.array([list(profile.values()) for profile in model]) for model in (a, b))
    short, long = (x, y) if first <= second else (y, x)
    best = min(
        sum(float(np.mean((short[i] - long[j]) ** 2)) for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(len(long)), len(short))
    )
    assert sum(pair.distance**2 for pair in pairs) == pytest.approx(best)
    assert all(0 <= pair.distance <= 1 for pair in pairs)


@given(seeds, st.integers(1, 8))
def test_a_shuffled_model_is_found_again(seed: int, count: int) -> None:
    heads = _random_profiles(seed, count)
    order = np.random.default_rng(seed).permutation(count)
    pairs = match_heads(heads, [heads[index] for index in order])
    assert [int(order[pair.second]) for pair in pairs] == list(range(count))
    assert all(pair.distance == 0 for pair in pairs)
    with pytest.raises(NoData, match="0 of one model"):
        match_heads([], heads)


@given(seeds)
def test_redundancy_is_the_mean_cosine(seed: int) -> None:
    random = np.random.default_rng(seed)
    prompts = [random.uniform(size=(3, size, size)).astype(np.float32) for size in (4, 7)]
    similarity = redundancy(prompts)
    for i, j in itertools.product(range(3), repeat=2):
        by_hand = [float(cosine(prompt[i, 1:].ravel(), prompt[j, 1:].ravel())) for prompt in prompts]
        assert similarity[i, j] == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert (similarity.diagonal() == 1).all()
    assert (similarity == similarity.T).all()
    np.testing.assert_allclose(redundancy([prompt[:, 1:].reshape(3, -1) for prompt in prompts]), similarity, atol=1e-12)


def test_redundancy_of_long_prompts() -> None:
    prompt = np.random.default_rng(0).uniform(size=(12, 500, 500)).astype(np.float32)
    prompt[3] = prompt[7] * 2
    similarity = redundancy([prompt])
    assert similarity[3, 7] == pytest.approx(1, abs=1e-12)
    assert similarity[0, 1] == pytest.approx(float(cosine(prompt[0, 1:].ravel(), prompt[1, 1:].ravel())), abs=1e-12)
    assert head_groups(similarity) == [[3, 7]]


def test_what_has_no_redundancy() -> None:
    ones = np.ones((2, 3, 3))
    with pytest.raises(NoData, match="Without a prompt"):
        redundancy([])
    with pytest.raises(NoData, match="no rows"):
        redundancy([ones], first_row=3)
    with pytest.raises(NoData, match="no direction"):
        redundancy([0 * ones])
    with pytest.raises(NoData, match="no direction"):
        redundancy([np.nan * ones])
    with pytest.raises(ValueError, match="Expected 2 heads"):
        redundancy([ones, np.ones((3, 3, 3))])


def test_groups_are_connected_through_chains() -> None:
    similarity = np.eye(6)
    for i, j in ((0, 2), (2, 5), (1, 4)):
        similarity[i, j] = similarity[j, i] = 0.95
    assert head_groups(similarity) == [[0, 2, 5], [1, 4]]
    assert head_groups(similarity, threshold=0.96) == []
    with pytest.raises(NoData, match="not finite"):
        head_groups(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="head, head"):
        head_groups(np.ones((2, 3)))
