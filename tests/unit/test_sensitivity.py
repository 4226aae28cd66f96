"""Effects of groups of tensors: closed forms, and errors against the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.sensitivity import (
    Effect,
    Sensitivity,
    TensorGroup,
    additivity,
    group_kld,
    group_shares,
    restored_gain,
    sensitivity_estimates,
)
from gguf_harness.metrics.stats import Samples


def _klds(seed: int, groups: int = 3, windows: int = 40, tokens: int = 20) -> list[Samples]:
    random = np.random.default_rng(seed)
    of_window = random.gamma(4, 0.25, (windows, 1))
    return [scale * of_window * random.gamma(1, 1, (windows, tokens)) for scale in random.uniform(0.01, 1, groups)]


@given(st.integers(0, 1000), st.integers(1, 6))
def test_shares_add_up_to_one(seed: int, groups: int) -> None:
    klds = _klds(seed, groups)
    shares = group_shares(klds)
    assert sum(share.value for share in shares) == pytest.approx(1)
    assert all(0 <= share.value <= 1 for share in shares)
    scaled = group_shares([10 * kld for kld in klds])
    assert [share.value for share in scaled] == pytest.approx([share.value for share in shares])
    assert [share.se for share in scaled] == pytest.approx([share.se for share in shares])


def test_a_single_group_is_all_of_it() -> None:
    (kld,) = _klds(0, 1)
    (share,) = group_shares([kld])
    assert share.value == 1
    assert share.se == pytest.approx(0, abs=1e-12)
    assert additivity([kld], kld).value == 1
    assert additivity([kld], 2 * kld).value == pytest.approx(0.5)
    assert additivity([kld], 2 * kld).se == pytest.approx(0, abs=1e-12)


def test_errors_are_those_of_the_bootstrap_over_windows() -> None:
    klds = _klds(3)
    whole = np.sum(klds, axis=0) * np.random.default_rng(5).uniform(0.5, 1.5, klds[0].shape)
    share, ratio = group_shares(klds)[0], additivity(klds, whole)
    random, windows = np.random.default_rng(0), len(whole)
    shares, ratios = [], []
    for _ in range(4000):
        chosen = random.integers(0, windows, windows)
        means = [kld[chosen].mean() for kld in klds]
        shares.append(means[0] / sum(means))
        ratios.append(sum(means) / whole[chosen].mean())
    assert share.se == pytest.approx(np.std(shares), rel=0.1)
    assert ratio.se == pytest.approx(np.std(ratios), rel=0.1)
    assert (ratio.clusters, ratio.n) == (40, 800)


def test_gains_are_paired() -> None:
    base = _klds(1, 1)[0]
    gain, priced = restored_gain(base, base - 0.25, 500_000)
    assert gain.metric == "tensor_restored_gain"
    assert gain.value == pytest.approx(0.25)
    assert gain.se == pytest.approx(0, abs=1e-12)
    assert priced.metric == "tensor_restored_gain_per_mb"
    assert priced.value == pytest.approx(0.5)
    # The reference may store a tensor smaller: then there is no price.
    assert len(restored_gain(base, base, 0)) == len(restored_gain(base, base, -3)) == 1


def test_no_data_is_never_a_number() -> None:
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    for broken in (np.zeros((0, 3)), np.full((2, 3), np.nan)):
        with pytest.raises(NoData):
            group_kld(broken)
        with pytest.raises(NoData):
            group_shares([broken])
        with pytest.raises(NoData):
            additivity([one], broken)
        with pytest.raises(NoData):
            restored_gain(one, broken, 1)
    with pytest.raises(NoData, match="are meaningless"):
        group_shares([zero])
    with pytest.raises(NoData):
        group_shares([])
    with pytest.raises(NoData, match="is meaningless"):
        additivity([one], zero)
    with pytest.raises(NoData):
        additivity([], one)


def test_every_group_is_at_its_place() -> None:
    def effect(name: str, layer: int | None, kld: float) -> Effect:
        return Effect(TensorGroup(name, layer, ("a", "b"), ("Q4_K",), 10, 30), np.full((2, 3), kld))

    roles = (effect("attn_q", None, 0.25), effect("ffn_up", None, 0.75))
    layers = (effect("layer 3", 3, 0.5), effect("layers 4 to 5", None, 0.5))
    estimates = sensitivity_estimates(Sensitivity(np.full((2, 3), 2.0), roles, layers, roles[:1]))
    found = {(each.metric, each.place, each.detail): each.value for each in estimates}
    q, up = Place(part="attn_q"), Place(part="ffn_up")
    assert found == {
        ("tensor_group_kld", WHOLE, "all that differ, 2 windows"): 2.0,
        ("tensor_additivity", WHOLE, "sum of 2 roles, 2 windows"): 0.5,
        ("tensor_group_kld", q, "attn_q: 2 tensors, Q4_K"): 0.25,
        ("tensor_group_share", q, "attn_q: 2 tensors, Q4_K"): 0.25,
        ("tensor_group_kld", up, "ffn_up: 2 tensors, Q4_K"): 0.75,
        ("tensor_group_share", up, "ffn_up: 2 tensors, Q4_K"): 0.75,
        ("tensor_group_kld", Place(3), "layer 3: 2 tensors, Q4_K"): 0.5,
        ("tensor_group_kld", Place(part="layers 4 to 5"), "layers 4 to 5: 2 tensors, Q4_K"): 0.5,
        ("tensor_restored_gain", q, "attn_q: 2 tensors, Q4_K, restored"): 1.75,
        ("tensor_restored_gain_per_mb", q, "attn_q: 2 tensors, Q4_K, restored"): pytest.approx(1.75 / 20e-6),
    }
