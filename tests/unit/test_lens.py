"""Logit lens and direct logit attribution against torch-free, unblocked computations in float64."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr

from gguf_harness.errors import NoData
from gguf_harness.metrics.lens import Head, Norm, attribute, decided_at, final_norm, head_logits, logit_lens

F32 = NDArray[np.float32]

N, D, VOCABULARY, LAYERS = 5, 8, 37, 4


@dataclass(frozen=True)
class Whole:
    """An unembedding in memory."""

    matrix: F32

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def take(self, tokens: slice | NDArray[np.int64]) -> F32:
        return self.matrix[tokens]


def _head(norm: Norm = "rms", seed: int = 0) -> Head:
    random = np.random.default_rng(seed)

    def values(*shape: int) -> F32:
        return random.normal(size=shape).astype(np.float32)

    bias = values(D) if norm == "layer" else None
    rows_bias = values(VOCABULARY) if norm == "layer" else None
    return Head(norm, 1e-5, values(D), bias, Whole(values(VOCABULARY, D)), rows_bias)


def _streams(seed: int = 1) -> list[F32]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(N, D)).astype(np.float32) for _ in range(LAYERS)]


def _naive(head: Head, x: NDArray[Any]) -> NDArray[np.float64]:
    """Logits in float64, written down another way."""
    y = x.astype(np.float64)
    if head.norm == "layer":
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + head.eps)
    else:
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + head.eps)
    y = y * (1 if head.gain is None else head.gain) + (0 if head.bias is None else head.bias)
    logits = y @ head.rows.take(slice(None)).astype(np.float64).T + (0 if head.rows_bias is None else head.rows_bias)
    logits = logits * head.scale
    return np.asarray(logits if head.softcap is None else head.softcap * np.tanh(logits / head.softcap))


_HEADS = [
    _head("rms"),
    _head("layer"),
    replace(_head("rms"), scale=0.25, softcap=3.0),
    replace(_head("rms"), gain=None),
]


@pytest.mark.parametrize("head", _HEADS)
@pytest.mark.parametrize("block", [1, 5, 37, 4096])
def test_the_lens_is_what_whole_distributions_say(head: Head, block: int) -> None:
    streams = _streams()
    lens = logit_lens(head, streams, block)
    logprobs = log_softmax(np.stack([_naive(head, stream) for stream in streams]), axis=-1)
    p = np.exp(logprobs)
    final = p[-1]
    assert (lens.top == p.argmax(-1)).all()
    assert lens.top_p == pytest.approx(p.max(-1), rel=1e-5)
    assert lens.final_p == pytest.approx(
        np.take_along_axis(p, np.tile(final.argmax(-1), (4, 1))[..., None], -1)[..., 0], rel=1e-4
    )
    assert lens.entropy == pytest.approx(-(p * logprobs).sum(-1), abs=1e-5)
    assert lens.kl == pytest.approx(rel_entr(final, p).sum(-1), abs=1e-5)
    assert (lens.kl[-1] == 0).all()


@pytest.mark.parametrize("head", _HEADS)
def test_logits_of_some_tokens(head: Head) -> None:
    (stream, *_) = _streams()
    some = np.array([3, 0, 36])
    assert head_logits(head, stream, some) == pytest.approx(_naive(head, stream)[:, some], abs=1e-4)
    assert head_logits(head, stream) == pytest.approx(_naive(head, stream), abs=1e-4)


class _Repeated:
    """256k rows that cost no memory of their own: the same 4096, turned by the place of the first."""

    shape = (262144, 2048)

    def __init__(self) -> None:
        self._block = np.random.default_rng(0).normal(scale=0.02, size=(4096, 2048)).astype(np.float32)

    def take(self, tokens: slice | NDArray[np.int64]) -> F32:
        assert isinstance(tokens, slice)
        assert tokens.stop - tokens.start <= 4096
        return self._block[: tokens.stop - tokens.start]


def test_a_large_vocabulary_needs_little_memory() -> None:
    """Whole logits of these 4 layers and 16 tokens would take 67 MB, and the unembedding 2.1 GB."""
    head = Head("rms", 1e-5, None, None, _Repeated())
    streams = [np.random.default_rng(i).normal(size=(16, 2048)).astype(np.float32) for i in range(4)]
    tracemalloc.start()
    try:
        lens = logit_lens(head, streams)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6
    assert lens.top.max() < 4096  # of equal logits the first
    # 64 times the same distribution: its entropy and ln 64.
    alone = logit_lens(replace(head, rows=Whole(head.rows.take(slice(0, 4096)))), streams)
    assert lens.entropy == pytest.approx(alone.entropy + np.log(64), abs=1e-4)
    assert lens.kl == pytest.approx(alone.kl, abs=1e-4)


def test_a_norm_of_huge_states() -> None:
    assert np.isfinite(final_norm(_head(), np.full((1, D), 1e30, dtype=np.float32))).all()


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.integers(0, 2)))
def test_decided_is_the_first_layer_after_which_nothing_changes(top: NDArray[np.int64]) -> None:
    for token, layer in enumerate(decided_at(top).tolist()):
        column = top[:, token]
        assert (column[layer:] == column[-1]).all()
        assert layer == 0 or column[layer - 1] != column[-1]


@pytest.mark.parametrize("head", [_HEADS[0], _HEADS[1], replace(_HEADS[1], scale=0.5)])
def test_attributions_sum_to_the_logit(head: Head) -> None:
    parts = _streams(seed=3)
    final = np.stack(parts).astype(np.float64).sum(axis=0)
    tokens = np.array([0, 5, 5, 36, 1])
    found, constant = attribute(head, final, parts, tokens)
    assert found.shape == (LAYERS, N)
    expected = _naive(head, final)[np.arange(N), tokens]
    assert found.sum(0) + constant == pytest.approx(expected, abs=1e-5)
    # Linear, with the scale of the norm kept.
    doubled, _ = attribute(head, final, [2 * part for part in parts], tokens)
    assert doubled == pytest.approx(2 * found)


def test_attribution_is_the_gradient_with_the_scale_kept() -> None:
    """A part moved by a little moves the logit by its share, where the norm does not answer: along no stream."""
    head = _head()
    (final, part, *_) = (stream.astype(np.float64) for stream in _streams())
    # Orthogonal to the stream: the root mean square stays, to first order.
    part -= (part * final).sum(-1, keepdims=True) / (final**2).sum(-1, keepdims=True) * final
    tokens = np.arange(N)
    (found,), _ = attribute(head, final, [part], tokens)
    step = 1e-3
    moved = [_naive(head, (final + sign * step * part))[np.arange(N), tokens] for sign in (1, -1)]
    assert found == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-3, abs=1e-5)


def test_a_lens_of_nothing_is_refused() -> None:
    with pytest.raises(NoData):
        logit_lens(_head(), [])
    with pytest.raises(NoData):
        logit_lens(_head(), [np.empty((0, D), dtype=np.float32)])
    with pytest.raises(NoData):
        decided_at(np.empty((0, 3)))
