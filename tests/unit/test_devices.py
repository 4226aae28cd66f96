"""Tolerances by device. No GPU is here: that there is one is made up."""

from __future__ import annotations

import numpy as np
import pytest

from tests import devices
from tests.devices import ON_GPU, Kind, near, near_taps


@pytest.mark.parametrize("kind", list(ON_GPU))
def test_a_cpu_is_held_to_what_the_test_says(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "on_gpu", lambda: False)
    assert near(1e-9, kind) == 1e-9
    assert near(0.0, kind) == 0.0
    assert near_taps(1e-4, np.array([1e6])) == 1e-4


@pytest.mark.parametrize("kind", list(ON_GPU))
def test_a_gpu_is_held_to_what_it_rounds_and_no_nearer(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "on_gpu", lambda: True)
    assert near(1e-9, kind) == ON_GPU[kind]
    assert near(10.0, kind) == 10.0
    assert near_taps(1e-4, np.array([-3.0, 2.0])) == pytest.approx(3 * ON_GPU["taps"])


def test_they_hold_what_an_h200_showed() -> None:
    """And are no more than ten times that, or they would let anything pass."""
    seen = {"logits": 0.066, "kl": 0.066**2 / 2, "taps": 9.5e-4, "pattern": 0.015, "sums": 0.032, "weights": 0.052}
    assert seen.keys() == ON_GPU.keys()
    for kind, value in seen.items():
        assert 1.5 * value <= ON_GPU[kind] <= 10 * value, kind  # type: ignore[index]
