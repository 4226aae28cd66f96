"""Effects of adapters, and what of them another base keeps: closed forms, bounds and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from gguf_harness.errors import NoData
from gguf_harness.metrics.adapter_effects import (
    effect_correlation,
    effect_of,
    effect_slope,
    interference,
    loss_share,
    mean_effect,
    transferred,
)

Floats = NDArray[np.float64]


def _effects(seed: int, windows: int = 6, tokens: int = 40) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    reference = random.standard_normal((windows, tokens)) + 0.8
    return 0.7 * reference + 0.3 * random.standard_normal((windows, tokens)), reference


def test_effect_is_what_the_loss_loses() -> None:
    nll, base = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[2.0, 2.0], [2.0, 4.0]])
    assert effect_of(nll, base).tolist() == [[1, 0], [-1, 3]]
    assert mean_effect("lora_loss_change", nll, base).value == -0.75


@given(st.integers(0, 10**6))
def test_an_effect_keeps_all_of_itself(seed: int) -> None:
    _, reference = _effects(seed)
    for estimate in (effect_slope(reference, reference), effect_correlation(reference, reference)):
        assert estimate.value == pytest.approx(1, abs=1e-12)
        assert estimate.se == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 10**6), st.floats(-3, 3).filter(lambda factor: abs(factor) > 0.01))
def test_a_scaled_effect(seed: int, factor: float) -> None:
    _, reference = _effects(seed)
    assert effect_slope(factor * reference, reference).value == pytest.approx(factor)
    assert effect_correlation(factor * reference, reference).value == pytest.approx(np.sign(factor))


@given(st.integers(0, 10**6))
def test_they_agree_with_scipy_and_numpy(seed: int) -> None:
    own, reference = _effects(seed)
    assert effect_correlation(own, reference).value == pytest.approx(stats.pearsonr(own.ravel(), reference.ravel())[0])
    fitted = np.linalg.lstsq(reference.ravel()[:, None], own.ravel(), rcond=None)[0][0]
    assert effect_slope(own, reference).value == pytest.approx(fitted)
    share = loss_share(own, reference)
    assert share.value == pytest.approx(own.mean() / reference.mean())
    assert (share.n, share.clusters) == (240, 6)


def test_errors_cover() -> None:
    """Of windows that are drawn anew: the slope's error is the spread of slopes, and so is the correlation's."""
    estimates = [
        (effect_slope(*pair), effect_correlation(*pair), loss_share(*pair))
        for pair in (_effects(seed, windows=24) for seed in range(300))
    ]
    for each in zip(*estimates, strict=True):
        spread = np.std([estimate.value for estimate in each])
        claimed = np.sqrt(np.mean([(estimate.se or 0.0) ** 2 for estimate in each]))
        assert claimed == pytest.approx(spread, rel=0.15)


def test_without_an_effect_there_is_nothing_to_keep() -> None:
    own, reference = _effects(0)
    nothing = np.zeros_like(reference)
    with pytest.raises(NoData, match="changes nothing on the reference: nothing of it can be kept"):
        effect_slope(own, nothing)
    with pytest.raises(NoData, match="its effects have no correlation"):
        effect_correlation(own, nothing)
    with pytest.raises(NoData, match="does not clearly make this text likelier on the reference"):
        loss_share(own, reference - reference.mean())
    with pytest.raises(NoData, match="does not clearly make this text likelier"):
        loss_share(own, -reference)
    with pytest.raises(NoData, match="of different tokens"):
        effect_slope(own, reference[:3])
    assert effect_slope(nothing, reference).value == 0


def test_interference() -> None:
    random = np.random.default_rng(0)
    base = random.random((5, 30)) + 3
    first, second = base - random.random((5, 30)), base - random.random((5, 30))
    sum_of_both = first + second - base
    none = interference(sum_of_both, [first, second], base)
    assert none.value == pytest.approx(0, abs=1e-12)
    assert none.se == pytest.approx(0, abs=1e-12)
    assert interference(sum_of_both + 0.25, [first, second], base).value == pytest.approx(0.25)
    # The second gives nothing that the first does not.
    assert interference(first, [first, first], base).value == pytest.approx((base - first).mean())


@given(st.integers(0, 10**6))
def test_a_transferred_effect(seed: int) -> None:
    random = np.random.default_rng(seed)
    base, reference, change = random.standard_normal((3, 4, 50))
    plain, other = (special.log_softmax(each, axis=-1) for each in (base, reference))
    adapted = special.log_softmax(reference + change, axis=-1)
    predicted = transferred(plain, other, adapted)
    assert np.exp(predicted).sum(axis=-1) == pytest.approx(1)
    # A change of logits is the same change on any base.
    assert predicted == pytest.approx(special.log_softmax(base + change, axis=-1), abs=1e-9)
    assert transferred(plain, other, other) == pytest.approx(plain, abs=1e-9)
    assert transferred(other, other, adapted) == pytest.approx(adapted, abs=1e-9)
