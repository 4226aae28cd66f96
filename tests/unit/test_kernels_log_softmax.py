"""Log-softmax against its definition, mpmath-free closed forms, and rows cut in blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import entropy

from gguf_harness.metrics.kernels.log_softmax import RunningSoftmax, log_softmax, shifted_exp

Float32 = NDArray[np.float32]

_ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(-80, 80, width=32))


@given(_ROWS, st.integers(-1000, 1000))
def test_log_softmax_is_the_log_of_shares(logits: Float32, shift: int) -> None:
    log_probabilities = log_softmax(logits)
    assert log_probabilities.dtype == np.float64
    for row, values in zip(log_probabilities, logits.astype(np.float64).tolist(), strict=True):
        total = math.fsum(math.exp(value - max(values)) for value in values)
        assert row == pytest.approx([value - max(values) - math.log(total) for value in values], abs=1e-12)
    assert np.exp(log_probabilities).sum(axis=1) == pytest.approx(1)
    assert log_softmax(logits.astype(np.float64) + shift) == pytest.approx(log_probabilities, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(bad: float) -> None:
    assert np.isnan(log_softmax(np.array([0.0, bad, 1.0], dtype=np.float32))).any()
    assert log_softmax(np.array([0.0, -np.inf], dtype=np.float32)).tolist() == [0.0, -np.inf]


@given(_ROWS)
def test_a_row_in_scratch_memory(logits: Float32) -> None:
    shifted, weights = np.empty_like(logits[0]), np.empty_like(logits[0])
    for row in logits:
        top, largest, total = shifted_exp(row, shifted, weights)
        assert (top, largest) == (int(np.argmax(row)), float(row.max()))
        assert largest + math.log(total) == pytest.approx(float(logsumexp(row.astype(np.float64))), abs=1e-4)
        assert shifted - math.log(total) == pytest.approx(log_softmax(row), abs=1e-4)
        assert weights / total == pytest.approx(np.exp(log_softmax(row)), abs=1e-5)


@given(_ROWS, st.integers(1, 12))
def test_blocks_are_the_whole_row(logits: Float32, block: int) -> None:
    running = RunningSoftmax(len(logits))
    for start in range(0, logits.shape[1], block):
        running.add(logits[:, start : start + block], start)
    assert (running.top == logits.argmax(axis=1)).all()
    assert (running.largest == logits.max(axis=1)).all()
    assert running.log_sum == pytest.approx(logsumexp(logits.astype(np.float64), axis=1), abs=1e-4)
    assert running.entropy == pytest.approx(entropy(np.exp(log_softmax(logits)), axis=1), abs=1e-3)
