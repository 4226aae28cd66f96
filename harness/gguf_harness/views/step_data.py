"""What the view `qkv` draws of a head in a model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.metrics.attention_steps import EXPLAINED, explain
from gguf_harness.views.token_data import rounded, short_numbers

__all__ = ["head_steps", "output_cosines"]

Floats = NDArray[np.float32]


def head_steps(
    q: Floats, k: Floats, v: Floats, pattern: Floats, *, causal: bool, scale: float, window: int, softcap: float
) -> tuple[dict[str, Any], Floats]:
    """What is drawn of a head, see views/src/qkv.js, but for `model` and `cosine`; and its outputs.

    Args:
        q: [query, d_head] after rope.
        k: [key, d_head] of the head of keys that it uses.
        v: [key, d_head] of the head of values.
        pattern: [query, key] weights of the forward pass.
        causal: whether later keys are masked.
        scale: that the file names; 0 for none.
        window: tokens of its sliding window; 0 for none.
        softcap: of the scores; 0 for none.

    Returns:
        (the entry, [query, d_head] weighted sums of the values).
    """
    usual = 1 / math.sqrt(q.shape[1])
    products = q @ k.T
    found = explain(
        products,
        pattern,
        [scale] * bool(scale) + [usual, 1.0],
        causal=causal,
        window=window,
        softcap=softcap or None,
    )
    output = pattern @ v
    n = len(q)
    rows = [slice(0, query + 1 if causal else n) for query in range(n)]
    entry = {
        "scale": float(f"{found.scale:.6g}"),
        "usual": f"1/√{q.shape[1]}" if math.isclose(found.scale, usual, rel_tol=1e-6) else "",
        "explained": found.deviation <= EXPLAINED,
        "deviation": float(f"{found.deviation:.2g}"),
        "products": [short_numbers(products[query, row]) for query, row in enumerate(rows)],
        "weights": [rounded(pattern[query, row]) for query, row in enumerate(rows)],
        "values": short_numbers(np.linalg.norm(v, axis=1)),
        "norms": short_numbers(np.linalg.norm(output, axis=1)),
    }
    return entry, output


def output_cosines(output: Floats, reference: Floats) -> NDArray[np.float64]:
    """[query] cosine of two outputs, [query, d_head]; NaN where one is zero."""
    sizes = np.linalg.norm(output, axis=1) * np.linalg.norm(reference, axis=1)
    return np.where(sizes > 0, (output * reference).sum(axis=1) / np.where(sizes > 0, sizes, 1), np.nan)
