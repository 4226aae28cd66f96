"""Keys, values and attention of a quantized cache, against a llama in float64 numpy: rotated heads, and plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import hadamard
from scipy.spatial.distance import jensenshannon

from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.kv.cache_tasks import CacheRequest, compare_caches
from tests.integration.attention_oracle import Rounded
from tests.integration.live_oracle import Array, forward
from tests.integration.pass_oracle import TINY, in_f32, stored
from tests.random_llama import write_random_llama
from tests.rewritten import rewrite_gguf

pytestmark = pytest.mark.model

PROMPTS = (
    Prompt("list", "A list comprehension makes a new list from the items of another one. It is short."),
    Prompt("file", "Open the file, read its lines one by one, and close it."),
)
K, V = "q4_0", "q8_0"
Heads = tuple[Array, Array, Array]


def _read(file: Path, tokens: Sequence[int], cache: Rounded) -> list[Heads]:
    """By layer: q as it is multiplied, [pos, head, d_head]; k and v as the cache holds them, [pos, kv_head, d_head]."""
    layers: list[Heads] = []

    def rounded(q: Array, k: Array, v: Array) -> Heads:
        kept = cache(q, k, v)
        layers.append(kept)
        return kept

    forward(file, tokens, rounded=rounded)
    return layers


def _pattern(q: Array, k: Array) -> Array:
    """[head, pos, key] causal attention."""
    scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, q.shape[1] // k.shape[1], axis=1)) / np.sqrt(q.shape[2])
    weights = np.exp(np.where(np.tri(len(q), dtype=bool), scores, -np.inf))
    return np.asarray(weights / weights.sum(axis=2, keepdims=True))


def _mixed(pattern: Array, v: Array) -> Array:
    return np.asarray(np.einsum("hqk,khd->qhd", pattern, np.repeat(v, len(pattern) // v.shape[1], axis=1)))


def _relative(x: Array, y: Array) -> Array:
    """[head] |x - y| / |y| over tokens."""
    return np.asarray(np.linalg.norm(x - y, axis=(0, 2)) / np.linalg.norm(y, axis=(0, 2)))


def _cosines(x: Array, y: Array) -> Array:
    """[head] mean over tokens."""
    lengths = np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2)
    return np.asarray(((x * y).sum(axis=2) / lengths).mean(axis=0))


@pytest.mark.parametrize("rotated", [True, False])
def test_what_a_cache_changes(worker: WorkerContext, tmp_path: Path, rotated: bool) -> None:
    if rotated:  # heads of 64 values
        file, turn = write_random_llama(tmp_path / "wide.gguf", text=True), hadamard(64) / 8
    else:
        file, turn = rewrite_gguf(TINY, tmp_path / "plain.gguf", in_f32), None
    settings = SessionSettings(n_ctx=128, n_batch=128, threads=1)
    own = replace(settings, cache_type_k="q4_0", cache_type_v="q8_0")
    found = compare_caches(worker, CacheRequest("m", (file,), own, settings, PROMPTS))
    with Model([file], 0) as model:
        tokens = [model.tokenize(prompt.text or "").tolist() for prompt in PROMPTS]
    start, cache = 0, stored(f"{K}/{V}", turn)
    for at, text in enumerate(tokens):
        full, cached = _read(file, text, stored("f16/f16")), _read(file, text, cache)
        pairs = list(zip(cached, full, strict=True))
        expected = {
            "key_error": [_relative(x[1], y[1]) for x, y in pairs],
            "key_cosine": [_cosines(x[1], y[1]) for x, y in pairs],
            "value_error": [_relative(x[2], y[2]) for x, y in pairs],
            "value_cosine": [_cosines(x[2], y[2]) for x, y in pairs],
        }
        for name, values in expected.items():
            assert np.abs(found[name][at].astype(np.float64) - np.concatenate(values)).max() < 2e-3, name
        # The first token has nothing to choose from, and is left out.
        patterns = [(_pattern(*x[:2])[:, 1:], _pattern(*y[:2])[:, 1:]) for x, y in pairs]
        cosine = [
            (p * q).sum(axis=(1, 2)) / np.sqrt((p * p).sum(axis=(1, 2)) * (q * q).sum(axis=(1, 2))) for p, q in patterns
        ]
        assert np.abs(found["cosine"][at].astype(np.float64) - np.concatenate(cosine)).max() < 1e-3
        rows = len(text) - 1
        assert found["rows"][at] == rows
        jsd = np.concatenate([np.nan_to_num(jensenshannon(p, q, axis=2)) ** 2 for p, q in patterns])
        told = found["jsd"][:, start : start + rows].astype(np.float64)
        # Where a value lies on the border between two steps, single rows differ.
        assert np.median(np.abs(told - jsd)) < 1e-5
        assert told.mean() == pytest.approx(jsd.mean(), rel=0.05)
        start += rows
        # To first order: only this layer's keys and values are rounded, and queries as the product with them needs.
        for layer, (q, k, v) in enumerate(full):
            rounded = cache(q, k, v)
            plain, changed = _mixed(_pattern(q, k), v), _mixed(_pattern(*rounded[:2]), rounded[2])
            change = np.linalg.norm(changed - plain) / np.linalg.norm(plain)
            assert found["predicted"][at, layer] == pytest.approx(change, rel=0.05)
