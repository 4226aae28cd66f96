"""What is computed of heads, against scipy, other formulas and plain loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gguf_harness.errors import NoData
from gguf_harness.metrics.importance import (
    NEGLIGIBLE_RISE,
    Head,
    greedy_removal,
    importance,
    importance_of_heads,
    interchange_share,
    interchange_shares,
    rank_correlation,
    removable,
    screened_importance,
    top_overlap,
    window_rises,
)
from gguf_harness.metrics.records import Estimate, Place

Array = NDArray[np.float64]


def test_importance_is_the_paired_mean_with_the_error_of_windows() -> None:
    random = np.random.default_rng(0)
    base = random.normal(3, 1, (5, 20))
    shift = random.normal(0.3, 0.2, (5, 1))
    estimate = importance("head_importance", base + shift, base)
    # With a shift that is the same in a whole window, windows are the samples.
    assert estimate.value == pytest.approx(shift.mean())
    assert estimate.se == pytest.approx(shift.std(ddof=1) / 5**0.5)
    assert (estimate.n, estimate.clusters) == (100, 5)
    assert importance("head_importance", base, base).value == 0
    assert importance("head_importance_kl", shift).value == pytest.approx(shift.mean())


def test_window_rises_are_means_of_each_window() -> None:
    values = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    base = np.ones((3, 4))
    expected = [[sum(values[h, w]) / 4 - 1 for w in range(3)] for h in range(2)]
    assert (window_rises(values, base) == expected).all()


def test_the_share_of_an_interchange_and_its_error() -> None:
    """Against the textbook's ratio of means, and against the spread of many samples."""
    random = np.random.default_rng(1)
    before, after = random.gamma(2, 1, (2, 400, 6, 10)), random.gamma(2, 0.3, (2, 400, 6, 10))
    b, a = before[0], after[0] + 0.2 * before[0]
    found = [interchange_share("head_interchange_share", b[i], a[i]) for i in range(400)]
    first = found[0]
    ratio = a[0].mean() / b[0].mean()
    assert first.value == pytest.approx(1 - ratio)
    # Cochran, Sampling Techniques, 6.4: residuals a - R b of the clusters, over the mean of b.
    residuals = (a[0] - ratio * b[0]).mean(axis=1)
    assert first.se == pytest.approx(residuals.std(ddof=1) / 6**0.5 / b[0].mean())
    spread = np.std([estimate.value for estimate in found], ddof=1)
    assert np.mean([estimate.se for estimate in found if estimate.se is not None]) == pytest.approx(spread, rel=0.1)


def test_shares_at_their_ends() -> None:
    before = np.array([[0.1, 0.2], [0.3, 0.1]])
    whole = interchange_share("head_interchange_share", before, np.zeros_like(before))
    none = interchange_share("head_interchange_share", before, before)
    assert (whole.value, none.value, none.se) == (1, 0, 0)
    assert interchange_share("head_interchange_share", before, 2 * before).value == -1
    with pytest.raises(NoData, match="is meaningless"):
        interchange_share("head_interchange_share", np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(NoData, match="different tokens"):
        interchange_share("head_interchange_share", before, before[:1])
    with pytest.raises(NoData):
        interchange_share("head_interchange_share", before, before * np.nan)


def test_rank_correlation_of_heads() -> None:
    random = np.random.default_rng(2)
    heads = random.normal(0, 1, (12, 1)) + random.normal(0, 0.1, (12, 6))
    same = rank_correlation("head_importance_rank_correlation", heads, heads)
    assert (same.value, same.se, same.n, same.clusters) == (1, 0, 12, 6)
    assert rank_correlation("head_importance_rank_correlation", heads, -heads).value == -1
    noisy = rank_correlation("head_importance_rank_correlation", heads, heads + random.normal(0, 1, heads.shape))
    assert noisy.se is not None
    assert noisy.se > 0
    means = rank_correlation("head_screen_rank_correlation", heads, heads.mean(axis=1))
    assert means.value == 1
    with pytest.raises(NoData, match="different heads"):
        rank_correlation("head_importance_rank_correlation", heads, heads[:4])
    with pytest.raises(NoData, match="two pairs"):
        rank_correlation("head_importance_rank_correlation", heads[:1], heads[:1])


def test_overlap_of_the_top() -> None:
    a = np.array([[5.0, 5], [4, 4], [3, 3], [2, 2]])
    assert top_overlap(a, a, 2).value == 1
    assert top_overlap(a, -a, 2).value == 0
    assert top_overlap(a, a[[0, 2, 1, 3]], 2).value == 0.5
    assert top_overlap(a, -a, 4).value == 1
    for top in (0, 5):
        with pytest.raises(NoData):
            top_overlap(a, a, top)


def _greedy(
    costs: Mapping[Head, float], change: Callable[[tuple[Head, ...]], float], tries: int
) -> tuple[list[Head], int]:
    """The path, and how many sets were measured."""
    measured = []

    def of(removed: tuple[Head, ...]) -> float:
        measured.append(removed)
        return change(removed)

    path = list(greedy_removal(costs, of, tries=tries))
    assert len(set(measured)) == len(measured)
    return path, len(measured)


def test_removal_takes_the_cheapest() -> None:
    costs: dict[Head, float] = {(0, 0): 0.4, (0, 1): 0.1, (1, 0): 0.02, (1, 1): 0.3}

    def additive(heads: tuple[Head, ...]) -> float:
        return sum(costs[head] for head in heads)

    everything: list[Head] = [(1, 0), (0, 1), (1, 1), (0, 0)]
    # Costs that do not change are measured once each, however many tries there are.
    assert _greedy(costs, additive, 1) == (everything, 4)
    assert _greedy(costs, additive, 3) == (everything, 4)
    assert _greedy({}, additive, 3) == ([], 0)


def test_removal_measures_no_further_than_it_is_asked() -> None:
    measured: list[tuple[Head, ...]] = []

    def change(heads: tuple[Head, ...]) -> float:
        measured.append(heads)
        return 0.1 * len(heads)

    path = greedy_removal({(0, head): 0.1 for head in range(5)}, change, tries=2)
    assert (next(path), next(path)) == ((0, 0), (0, 1))
    assert measured == [((0, 0),), ((0, 0), (0, 1))]


def test_removal_measures_again_what_has_become_dear() -> None:
    """Two heads that stand in for each other: each is free, both together are not."""
    costs: dict[Head, float] = {(0, 0): 0.0, (0, 1): 0.01, (1, 0): 0.1}

    def change(heads: tuple[Head, ...]) -> float:
        return 0.1 * ((1, 0) in heads) + 5.0 * ({(0, 0), (0, 1)} <= set(heads))

    assert _greedy(costs, change, 2) == ([(0, 0), (1, 0), (0, 1)], 4)
    assert _greedy(costs, change, 1)[0] == [(0, 0), (0, 1), (1, 0)]


@given(hnp.arrays(np.float64, (3, 3), elements=st.floats(-1, 1)), st.booleans())
def test_where_costs_only_grow_each_step_is_the_best_one(values: Array, grow: bool) -> None:
    """Pairs of heads that stand in for each other; without them, costs do not change."""
    heads = [(int(layer), int(head)) for layer, head in itertools.product(range(3), range(3))]

    def change(removed: tuple[Head, ...]) -> float:
        pairs = itertools.combinations(sorted(removed), 2)
        return float(
            sum(values[head] for head in removed) + grow * 0.3 * sum(abs(values[a] * values[b]) for a, b in pairs)
        )

    path, measured = _greedy({head: change((head,)) for head in heads}, change, len(heads))
    assert sorted(path) == heads
    assert len(heads) <= measured <= 45
    for count in range(9):
        best = min(change((*path[:count], head)) for head in heads if head not in path[:count])
        assert change(tuple(path[: count + 1])) == pytest.approx(best, abs=1e-9)


@given(hnp.arrays(np.float64, (7, 4), elements=st.floats(-0.1, 0.2)))
def test_what_is_removable_is_final_once_every_window_has_risen(steps: Array) -> None:
    """Whatever comes after that, number and error stay the same."""
    rises = np.concatenate([np.zeros((1, 4)), steps.cumsum(axis=0)])
    (risen,) = np.nonzero((rises > NEGLIGIBLE_RISE + 1e-9).all(axis=1))
    assume(risen.size)
    curve = np.repeat(3 + rises[:, :, None], 5, axis=2)
    whole, stopped = removable(curve), removable(curve[: risen[0] + 1])
    assert (stopped.value, stopped.se) == (whole.value, whole.se)


def test_removable_heads_are_counted_up_to_the_first_rise() -> None:
    means = np.array([1.0, 0.98, 1.04, 1.06, 1.03])
    curve = np.repeat(means[:, None, None], 4, axis=1).repeat(3, axis=2)
    estimate = removable(curve)
    assert (estimate.value, estimate.se, estimate.n, estimate.clusters) == (2, 0, 12, 4)
    assert removable(curve, rise=0.5).value == 4
    assert removable(curve, rise=0.01).value == 1
    assert removable(curve[:1]).value == 0
    with pytest.raises(NoData):
        removable(curve * np.nan)


def _at(estimates: list[Estimate]) -> dict[tuple[str, Place], float]:
    return {(estimate.metric, estimate.place): estimate.value for estimate in estimates}


def test_values_of_heads_are_at_their_heads() -> None:
    heads = np.array([[0, 3], [2, 1]])
    nll = np.ones((2, 5))
    rises = np.array([0.25, 0.5])[:, None, None] * np.ones((2, 2, 5))
    sweep = {"heads": heads, "nll": nll, "nll_zero": 1 + rises, "nll_mean": 1 + 2 * rises}
    worth = _at(importance_of_heads(sweep | {"kld_zero": 3 * rises, "kld_mean": 4 * rises}))
    assert len(worth) == 8
    names = ("head_importance", "head_importance_mean", "head_importance_kl", "head_importance_mean_kl")
    for factor, metric in enumerate(names, 1):
        assert (worth[metric, Place(0, 3)], worth[metric, Place(2, 1)]) == (factor * 0.25, factor * 0.5)

    found = {"kld": nll, "layers": np.array([4]), "kld_layers": 1 - rises[:1], "heads": heads, "kld_heads": 1 - rises}
    assert _at(interchange_shares(found)) == {
        ("layer_interchange_share", Place(4)): 0.25,
        ("head_interchange_share", Place(0, 3)): 0.25,
        ("head_interchange_share", Place(2, 1)): 0.5,
    }

    effects = screened_importance({"heads": heads, "nll": nll, "nll_zero": 1 + rises})
    assert _at(effects) == {
        ("head_importance_screen", Place(0, 3)): 0.25,
        ("head_importance_screen", Place(2, 1)): 0.5,
    }


def test_the_error_of_a_screen_is_that_of_its_windows() -> None:
    """Its intervals cover the mean over all windows as often as two windows can tell."""
    random = np.random.default_rng(7)
    covered = []
    for _ in range(400):
        shifts = random.normal(0.3, 0.1, (2, 1))
        base = random.normal(3, 1, (2, 20))
        screen = {"heads": np.array([[0, 0]]), "nll": base, "nll_zero": (base + shifts)[None]}
        (effect,) = screened_importance(screen)
        assert effect.clusters == 2
        assert effect.se is not None
        # Student's t with one degree of freedom: 12.7 standard errors hold 95 %.
        covered.append(abs(effect.value - 0.3) <= 12.706 * effect.se)
    assert 0.91 < np.mean(covered) < 0.99
