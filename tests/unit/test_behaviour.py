"""Patterns that come in physical batches, scored on one thread and on several, sum up to those of the whole."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_harness.measure.attention import behaviour
from gguf_harness.measure.attention.behaviour import BehaviourWatch
from gguf_harness.metrics.head_behaviour import BEHAVIOURS, BehaviourKernel, ScoreSums
from gguf_harness.metrics.token_features import TokenFeatures

N = 40


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(behaviour, "_WORTH_A_THREAD", 7 * 16 * 24)
    random = np.random.default_rng(threads)
    words, tokens = [b"the", b" cat", b".", b" ("], random.integers(0, 4, N)
    features = TokenFeatures.of([words[token] for token in tokens], tokens, np.ones(4))
    pattern = np.tril(random.random((7, N, N), dtype=np.float32) + np.float32(0.01))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    pattern.flags.writeable = False
    watch = BehaviourWatch(threads)
    watch.begin("a", features)
    # As llama.cpp pads keys; the second batch has so few cells that one thread takes it.
    padded = np.pad(pattern, [(0, 0), (0, 0), (0, 8)])
    for start, end in ((0, 24), (24, 32), (32, N)):
        for layer in (1, 0):
            watch(f"blocks.{layer}.attn.pattern", padded[:, start:end, : max(end, 24)])
    sums, counts = watch.totals()
    expected = ScoreSums.of(BehaviourKernel(features).scores(pattern))
    assert watch.heads.tolist() == [[layer, head] for layer in (0, 1) for head in range(7)]
    for index, name in enumerate(BEHAVIOURS):
        for layer in (0, 1):
            heads = slice(7 * layer, 7 * layer + 7)
            assert counts[index, heads].tolist() == expected.counts[name].tolist()
            assert sums[index, heads] == pytest.approx(expected.sums[name], rel=1e-5, abs=1e-4)
