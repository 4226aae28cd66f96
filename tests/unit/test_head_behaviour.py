"""Scores of heads against closed forms and a loop over rows and keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy

from gguf_harness.errors import NoData
from gguf_harness.metrics.head_behaviour import BEHAVIOURS, BehaviourKernel, ScoreSums, head_profiles
from gguf_harness.metrics.registry import METRICS
from gguf_harness.metrics.token_features import TokenFeatures

seeds = st.integers(0, 2**32 - 1)
WORDS = [b" the", b" cat", b".", b"(", b"\n", b" sat", b"The", b"x"]


def _features(seed: int, size: int) -> TokenFeatures:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, len(WORDS), size)
    return TokenFeatures.of([WORDS[token] for token in tokens], tokens, random.integers(0, 99, len(WORDS)))


def _pattern(seed: int, heads: int, size: int, sharpness: float = 3.0) -> NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(size=(heads, size, size)) * sharpness
    logits[:, ~np.tri(size, dtype=bool)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def _by_hand(row: NDArray[np.float64], position: int, features: TokenFeatures) -> dict[str, float]:
    """Scores of one row, key by key, from their definitions."""
    keys = range(position + 1)
    before = [key for key in keys if key < position and features.word[key] == features.word[position]]
    mass = sum(row[key] for key in keys)
    distance = sum(row[key] * (position - key) for key in keys) / mass
    variance = sum(row[key] * (position - key - distance) ** 2 for key in keys) / mass
    nats = float(entropy(row))
    rarity = features.rarity[: position + 1]
    return {
        "previous_token": row[position - 1] if position else math.nan,
        "current_token": row[position],
        "first_token": row[0],
        "distance": distance,
        "distance_spread": math.sqrt(max(0, variance)),
        "local": sum(row[key] for key in keys if position - key < 8),
        "entropy": nats,
        "entropy_normalized": nats / math.log(position + 1) if position else math.nan,
        "punctuation": _share(row, [key for key in keys if features.punctuation[key]]),
        "delimiter": _share(row, [key for key in keys if features.delimiter[key]]),
        "same_word": _share(row, before),
        "rare_token": float(row[: position + 1] @ rarity / mass - rarity.mean()),
    }


def _share(row: NDArray[np.float64], keys: list[int]) -> float:
    return float(sum(row[key] for key in keys)) if keys else math.nan


@given(seeds, st.integers(1, 40), st.floats(0, 30))
def test_equals_a_loop_over_rows_and_keys(seed: int, size: int, sharpness: float) -> None:
    features, pattern = _features(seed, size), _pattern(seed, 2, size, sharpness)
    scores = BehaviourKernel(features).scores(pattern)
    assert tuple(scores) == BEHAVIOURS
    for head in range(2):
        for position in range(size):
            expected = _by_hand(pattern[head, position].astype(np.float64), position, features)
            ours = {name: values[head, position] for name, values in scores.items()}
            # A variance is a difference of squares, in single precision: near zero its root keeps half the digits.
            assert ours.pop("distance_spread") == pytest.approx(expected.pop("distance_spread"), rel=1e-3, abs=0.03)
            assert ours == pytest.approx(expected, rel=1e-4, abs=2e-5, nan_ok=True)


@given(seeds, st.integers(2, 60), st.data())
def test_rows_in_two_blocks_and_more_keys_change_nothing(seed: int, size: int, data: st.DataObject) -> None:
    split, padding = data.draw(st.integers(1, size - 1)), data.draw(st.integers(0, 20))
    kernel, pattern = BehaviourKernel(_features(seed, size)), _pattern(seed, 3, size)
    whole = kernel.scores(pattern)
    padded = np.pad(pattern, ((0, 0), (0, 0), (0, padding)))
    upper = kernel.scores(np.ascontiguousarray(pattern[:, :split, :split]))
    lower = kernel.scores(padded[:, split:], start=split)
    for name, values in whole.items():
        both = np.concatenate([upper[name], lower[name]], axis=1)
        tolerance = 0.03 if name == "distance_spread" else 1e-5
        np.testing.assert_allclose(both, values, rtol=1e-4, atol=tolerance, err_msg=name)


@given(seeds, st.integers(1, 30), st.floats(0, 30))
def test_bounds(seed: int, size: int, sharpness: float) -> None:
    scores = BehaviourKernel(_features(seed, size)).scores(_pattern(seed, 2, size, sharpness))
    for name in ("previous_token", "current_token", "first_token", "local", "punctuation", "delimiter", "same_word"):
        inside = scores[name][~np.isnan(scores[name])]
        # Exactly: a mean of them is told as a share.
        assert ((inside >= 0) & (inside <= 1)).all()
    normalized = scores["entropy_normalized"][:, 1:]
    assert ((normalized >= 0) & (normalized <= 1)).all()
    assert (scores["distance"] <= np.arange(size) + 1e-3).all()
    assert (scores["distance"] >= 0).all()


def _known(kind: str, size: int) -> NDArray[np.float32]:
    rows = np.arange(size)
    if kind == "uniform":
        return np.asarray(np.tri(size) / (rows[:, None] + 1), dtype=np.float32)[None]
    pattern = np.zeros((1, size, size), dtype=np.float32)
    pattern[0, rows, {"previous": np.maximum(rows - 1, 0), "sink": 0 * rows, "current": rows}[kind]] = 1
    return pattern


def test_known_heads_score_one_and_zero() -> None:
    kernel, size = BehaviourKernel(_features(3, 50)), 50
    previous, sink, current = (
        {name: values[0, 1:] for name, values in kernel.scores(_known(kind, size)).items()}
        for kind in ("previous", "sink", "current")
    )
    assert (previous["previous_token"] == 1).all()
    assert (previous["distance"] == 1).all()
    assert (previous["local"] == 1).all()
    assert (previous["current_token"] == 0).all()
    assert (sink["first_token"] == 1).all()
    assert (sink["distance"] == np.arange(1, 50)).all()
    assert (sink["local"] == (np.arange(1, 50) < 8)).all()
    assert (current["current_token"] == 1).all()
    assert (current["distance"] == 0).all()
    assert (np.nan_to_num(current["same_word"]) == 0).all()
    for scores in (previous, sink, current):
        assert (scores["entropy"] == 0).all()
        assert (scores["distance_spread"] == 0).all()


def test_uniform_attention_in_closed_form() -> None:
    size = 300
    scores = BehaviourKernel(_features(4, size)).scores(_known("uniform", size))
    visible = np.arange(1, size + 1)
    np.testing.assert_allclose(scores["entropy"][0], np.log(visible), atol=1e-5)
    np.testing.assert_allclose(scores["entropy_normalized"][0, 1:], 1, atol=1e-5)
    np.testing.assert_allclose(scores["distance"][0], (visible - 1) / 2, atol=1e-3)
    np.testing.assert_allclose(scores["distance_spread"][0], np.sqrt((visible**2 - 1) / 12), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scores["local"][0], np.minimum(8 / visible, 1), atol=1e-6)
    np.testing.assert_allclose(scores["rare_token"][0], 0, atol=1e-5)


def test_rows_that_leave_weight_to_a_sink_outside() -> None:
    kernel, pattern = BehaviourKernel(_features(5, 20)), _pattern(5, 1, 20)
    whole, half = kernel.scores(pattern), kernel.scores(pattern / np.float32(2))
    for name in ("distance", "entropy", "rare_token"):
        np.testing.assert_allclose(half[name], whole[name], atol=1e-5)
    np.testing.assert_allclose(half["local"], whole["local"] / 2, atol=1e-6)


def test_a_long_prompt_is_cut_in_blocks_of_heads() -> None:
    features, pattern = _features(6, 1200), _pattern(6, 8, 1200)
    kernel = BehaviourKernel(features)
    scores = kernel.scores(pattern)
    expected = _by_hand(pattern[7, 1199].astype(np.float64), 1199, features)
    for name in BEHAVIOURS:
        assert scores[name][7, 1199] == pytest.approx(expected[name], rel=1e-3, abs=1e-3, nan_ok=True)


def test_what_cannot_be_scored() -> None:
    kernel, pattern = BehaviourKernel(_features(0, 6)), _pattern(0, 2, 6)
    for bad in (np.nan, np.inf):
        broken = pattern.copy()
        broken[1, 3, 2] = bad
        with pytest.raises(NoData, match="not finite"):
            kernel.scores(broken)
    with pytest.raises(NoData, match="attends to nothing"):
        kernel.scores(np.zeros_like(pattern))
    with pytest.raises(NoData, match="no rows"):
        kernel.scores(pattern[:, :0])
    with pytest.raises(ValueError, match="prompt of 6 tokens"):
        kernel.scores(pattern, start=1)
    with pytest.raises(ValueError, match="with 5 keys"):
        kernel.scores(pattern[:, :, :5])


def test_every_score_has_a_metric() -> None:
    for name in (*BEHAVIOURS, "induction", "duplicate_token", "copy_score"):
        assert f"head_{name}" in METRICS


def test_profiles_are_means_over_rows_of_all_prompts() -> None:
    rows = [BehaviourKernel(_features(n, size)).scores(_pattern(n, 2, size)) for n, size in enumerate((9, 14, 30))]
    profiles = head_profiles([ScoreSums.of(each) for each in rows])
    for head, profile in enumerate(profiles):
        assert set(profile.scores) == set(BEHAVIOURS)
        for name, score in profile.scores.items():
            values = [each[name][head, 1:][~np.isnan(each[name][head, 1:])] for each in rows]
            pooled = np.concatenate(values)
            assert score.value == pytest.approx(pooled.mean())
            totals = np.array([(each - pooled.mean()).sum() for each in values if len(each)])
            assert score.se == pytest.approx(
                math.sqrt(len(totals) / (len(totals) - 1) * float(totals @ totals)) / pooled.size
            )
            assert (score.n, score.clusters) == (pooled.size, len(totals))
    assert [each.metric for each in profiles[0].estimates()] == [f"head_{name}" for name in BEHAVIOURS]


def test_profiles_of_different_probes() -> None:
    text = ScoreSums.of({"local": np.array([[0.0, 1.0, 0.5]]), "same_word": np.full((1, 3), np.nan)})
    probe = ScoreSums.of({"induction": np.array([[0.25, 0.75]])}, first_row=0)
    (profile,) = head_profiles([text, probe, probe])
    # No row has an earlier occurrence: that is no zero.
    assert profile.values == {"local": 0.75, "induction": 0.5}
    assert profile.scores["local"].se is None
    assert profile.scores["induction"].se == pytest.approx(0)
    with pytest.raises(NoData, match="without a prompt"):
        head_profiles([])
    with pytest.raises(ValueError, match="different numbers of heads"):
        head_profiles([text, ScoreSums.of({"local": np.ones((2, 3))})])
