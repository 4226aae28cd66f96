"""One window token by token: which one, and that its numbers are those of the passes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.measure.passes.strip import MOST_TOKENS, strip_of, tokens_of, typical_window
from gguf_harness.store.arrays import Arrays

CONTEXT, SCORED = 8, 3


def make_passes(windows: int = 4, scored: int = SCORED, n_ctx: int = CONTEXT) -> tuple[Arrays, Arrays]:
    """A reference's pass and a candidate's: every number says where it is from."""
    count = windows * scored
    shape = (windows, scored)
    numbers = np.arange(count, dtype=np.float64).reshape(shape)
    window = 10 + np.arange(windows)
    base: Arrays = {
        "nll": 1 + numbers / count,
        "top": np.full(shape, 7, np.int64),
        "tokens": np.arange(windows * n_ctx, dtype=np.int64).reshape(windows, n_ctx),
        "window": window,
    }
    other: Arrays = {"nll": 2 + numbers / count, "top": 100 + numbers, "kld": numbers / 100, "window": window}
    return base, other


def _floats(strip: Arrays, name: str) -> NDArray[np.float64]:
    return strip[name].astype(np.float64)


def test_the_window_is_the_one_nearest_to_the_mean_whatever_its_spread() -> None:
    nll = np.array([[0.0, 9.0, 9.0], [3.0, 3.0, 3.1], [1.0, 1.0, 1.0], [0.0, 0.0, 8.5]])
    # The means are 6, 3.03, 1 and 2.83, and that of all is 3.217.
    assert typical_window({"nll": nll}) == 1
    # Of the first two, whose mean is 3.5, the second is nearer to it.
    assert typical_window({"nll": nll[[0, 2, 1, 3]]}, among=2) == 0
    assert typical_window({"nll": nll[[2, 1, 0]]}, among=2) == 0
    assert typical_window({"nll": nll[[0, 2, 1, 3]]}) == 2


def test_tokens_are_those_that_the_scores_are_of() -> None:
    base, other = make_passes()
    tokens = tokens_of(base, other, 2)
    # The third window has 16 to 23, of which the last three are scored.
    assert tokens["token"].tolist() == [21, 22, 23]
    assert tokens["top"].tolist() == [106, 107, 108]
    assert tokens["top_reference"].tolist() == [7, 7, 7]


def test_a_strip_has_the_numbers_of_the_passes() -> None:
    base, other = make_passes()
    pieces: Arrays = {name: np.array([b"a", b"\xff", b" "]) for name in ("token", "top", "top_reference")}
    strip = strip_of(base, other, 2, pieces)
    expected = 1 + np.array([6, 7, 8]) / 12
    assert _floats(strip, "nll_reference") == pytest.approx(expected, rel=1e-6)
    assert _floats(strip, "nll") == pytest.approx(expected + 1, rel=1e-6)
    assert _floats(strip, "delta_p") == pytest.approx(np.exp(-expected) * (1 / np.e - 1), rel=1e-6)
    assert _floats(strip, "kld") == pytest.approx([0.06, 0.07, 0.08], rel=1e-6)
    assert (strip["window"].tolist(), strip["position"].tolist()) == ([12], [CONTEXT - SCORED])
    assert strip["piece"].tolist() == [b"a", b"\xff", b" "]
    assert {strip[name].dtype for name in ("nll", "nll_reference", "kld", "delta_p")} == {np.dtype(np.float32)}


@pytest.mark.parametrize("scored", [MOST_TOKENS - 1, MOST_TOKENS + 9])
def test_a_long_window_is_cut(scored: int) -> None:
    base, other = make_passes(2, scored, 2 * scored + 2)
    tokens = tokens_of(base, other, 0)
    pieces: Arrays = {name: ids.astype(np.bytes_) for name, ids in tokens.items()}
    strip = strip_of(base, other, 0, pieces)
    length = min(scored, MOST_TOKENS)
    assert {len(strip[name]) for name in strip if name not in {"window", "position"}} == {length}
    # They are its first scored ones.
    assert strip["token"][0] == scored + 2 == strip["position"].item()
