"""Places of further points among those of a layout."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.metrics.kernels.placing import place_among


def _known(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((40, 16)).astype(np.float32), random.standard_normal((40, 3))


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_a_known_vector_is_where_it_was_whatever_its_length(seed: int, scale: float) -> None:
    known, layout = _known(seed)
    placed = place_among(scale * known[5:9], known, layout)
    assert np.abs(placed - layout[5:9]).max() < 1e-4


def test_a_vector_between_two_is_between_their_places() -> None:
    known = np.eye(8, dtype=np.float32)
    layout = np.zeros((8, 3))
    layout[0], layout[1] = (1, 0, 0), (0, 1, 0)
    (placed,) = place_among(known[:1] + known[1:2], known, layout)
    # Two at the squared distance 2 - sqrt(2), and four of the others at 2, in the middle.
    near, far = 1 / (2 - np.sqrt(2)), 1 / 2
    assert np.allclose(placed, [near / (2 * near + 4 * far), near / (2 * near + 4 * far), 0], atol=1e-6)


def test_more_noise_moves_further_and_few_points_are_enough() -> None:
    known, layout = _known()
    noise = np.random.default_rng(1).standard_normal(known.shape).astype(np.float32)
    moves = [
        float(np.abs(place_among(known + amount * noise, known, layout) - layout).mean()) for amount in (0, 0.1, 0.5)
    ]
    assert moves[0] < 1e-4 < moves[1] < moves[2]
    assert np.allclose(place_among(known[:2], known[:3], layout[:3]), layout[:2], atol=1e-4)
