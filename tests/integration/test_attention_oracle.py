"""Taps of attention against an independent float64 computation of it, in every layer of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.taps import Taps
from tests.integration.attention_oracle import Definition, Model, Rope, Style
from tests.integration.small_models import ARCHITECTURES, UNNAMED, WINDOW, architecture_of, write_small_model
from tests.loaded import open_context

pytestmark = pytest.mark.model

Array = NDArray[np.float64]

N = 100
"""Tokens: more than the sliding window, and no multiple of the smaller batch."""
TOKENS = np.random.default_rng(1).integers(0, 60, N).astype(np.int32)
NAMES = ("attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z", "attn_out", "resid_mid")
SCALED_QUERIES = frozenset({"gemma2", "gemma3", "phi3"})
"""Where llama.cpp scales the queries after rope, and so the products."""
LAYERS = {"gemma3": 6, "smollm3": 4}
"""Until the pattern of local and global layers, or of those with and without rope, is through; elsewhere 2."""
TOLERANCE = 2e-5
"""Arithmetic in F32 leaves about 3e-6 in Q and K, from the angles of rope, and less than 1e-6 elsewhere."""
VISIBLE = 1e-3
"""What a part of attention that is left out changes, at least."""


@dataclass(frozen=True)
class Decoded:
    """A model for the oracle, and what llama.cpp's taps gave, the batches joined.

    Attributes:
        model: the same file.
        seen: by tap, in the shapes of `gguf_harness.engine.tap_names.TAPS`, without keys that are no token.
        n_layer: number of layers.
    """

    model: Model
    seen: dict[str, Array]
    n_layer: int

    def residual(self, layer: int) -> Array:
        """[pos, d_model] input of a layer, from the taps: errors of one layer do not reach the next."""
        if layer == 0:
            return self.model.first_residual(self.seen["embed"])
        return self.seen[f"blocks.{layer - 1}.resid_post"]

    def deviations(
        self, layer: int, definition: Definition | None = None, residual: Array | None = None
    ) -> dict[str, float]:
        """Largest difference by tap: of attention weights as it is, else relative to the largest value.

        Args:
            layer: counted from 0.
            definition: what the oracle computes instead of the model's own.
            residual: [pos, d_model] what it is given instead of the layer's input.
        """
        residual = self.residual(layer) if residual is None else residual
        found = {}
        for name, expected in self._expected(layer, definition, residual).items():
            given = self.seen.get(f"blocks.{layer}.{name}")
            if given is not None:
                assert given.shape == expected.shape
                # Keys of later batches have no scores yet.
                difference = np.tril(given - expected) if name == "attn.scores" else given - expected
                scale = 1.0 if name == "attn.pattern" else float(np.abs(expected).max())
                found[name] = float(np.abs(difference).max()) / scale
        return found

    def _expected(self, layer: int, definition: Definition | None, residual: Array) -> dict[str, Array]:
        what = definition or self.model.definition(layer)
        oracle = self.model.attend(layer, residual, what)
        return {
            "attn.q": oracle.q,
            "attn.k": oracle.k,
            "attn.v": oracle.v,
            "attn.scores": oracle.scores * (what.scale if self.model.kind in SCALED_QUERIES else 1.0),
            "attn.pattern": oracle.pattern,
            "attn.z": oracle.z,
            "attn_out": oracle.attn_out,
            "resid_mid": residual + oracle.attn_out,
        }


def _decode(file: Path, kind: str, n_batch: int, n_layer: int) -> Decoded:
    unnamed = UNNAMED.get(kind, set())
    names = [name for name in (*NAMES, "mlp_out", "resid_post") if name not in unnamed]
    parts: dict[str, list[NDArray[np.float32]]] = {"embed": []}
    parts |= {f"blocks.{layer}.{name}": [] for layer in range(n_layer) for name in names}
    reader = dict.fromkeys(parts, lambda tap, values: parts[tap].append(values.copy()))
    settings = SessionSettings(
        n_ctx=128, n_batch=n_batch, n_ubatch=n_batch, threads=1, flash_attention="off",
        cache_type_k="f32", cache_type_v="f32",
    )  # fmt: skip
    with open_context([file], settings, Taps(architecture_of(kind), n_layer, read=reader)) as context:
        context.logits(TOKENS)
    seen = {tap: _joined(tap, values) for tap, values in parts.items()}
    if "resid_mid" in unnamed:
        # What attention adds can be seen all the same: the MLP's part is the rest of what the layer adds.
        for block in (f"blocks.{layer}." for layer in range(n_layer)):
            seen[f"{block}resid_mid"] = seen[f"{block}resid_post"] - seen[f"{block}mlp_out"]
    return Decoded(Model(file, kind), seen, n_layer)


def _joined(tap: str, parts: list[NDArray[np.float32]]) -> Array:
    """Batches one after the other, without the cells of the cache that hold no token."""
    if tap.endswith(("scores", "pattern")):
        return np.concatenate(parts, axis=1)[:, :, :N].astype(np.float64)
    return np.concatenate(parts).astype(np.float64)


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Decoded]:
    """By architecture, in one batch; decoded once."""
    folder = tmp_path_factory.mktemp("oracle")

    @cache
    def decode_once(kind: str) -> Decoded:
        n_layer = LAYERS.get(kind, 2)
        return _decode(write_small_model(folder / f"{kind}.gguf", kind, n_layer), kind, 128, n_layer)

    return decode_once


def _assert_agreement(decoded: Decoded) -> None:
    for layer in range(decoded.n_layer):
        deviations = decoded.deviations(layer)
        assert deviations.keys() == set(NAMES) - (UNNAMED.get(decoded.model.kind, set()) & {"attn_out"})
        assert all(value < TOLERANCE for value in deviations.values()), (layer, deviations)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_tap_of_attention_is_what_the_publication_says(decode: Callable[[str], Decoded], kind: str) -> None:
    _assert_agreement(decode(kind))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_with_keys_of_earlier_batches_too(tmp_path: Path, kind: str) -> None:
    n_layer = LAYERS.get(kind, 2)
    _assert_agreement(_decode(write_small_model(tmp_path / "model.gguf", kind, n_layer), kind, 32, n_layer))


@pytest.mark.parametrize(("kind", "n_layer"), [("gemma2", 46), ("gemma3", 62)])
def test_gemmas_of_27b_scale_queries_by_the_width_of_the_model(tmp_path: Path, kind: str, n_layer: int) -> None:
    decoded = _decode(write_small_model(tmp_path / "model.gguf", kind, n_layer), kind, 128, n_layer)
    _assert_agreement(decoded)
    definition = decoded.model.definition(0)
    deviations = decoded.deviations(0, replace(definition, scale=definition.d_head**-0.5))
    assert deviations["attn.pattern"] > VISIBLE, deviations


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_embeddings_are_rows_of_the_matrix(decode: Callable[[str], Decoded], kind: str) -> None:
    decoded = decode(kind)
    expected = decoded.model.embeddings(TOKENS)
    assert np.abs(decoded.seen["embed"] - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["bloom", "gpt2"])
def test_what_comes_between_embeddings_and_first_layer_shows(decode: Callable[[str], Decoded], kind: str) -> None:
    decoded = decode(kind)
    deviations = decoded.deviations(0, residual=decoded.seen["embed"])
    assert all(deviations[tap] > VISIBLE for tap in ("attn.q", "attn.pattern", "resid_mid")), deviations


NORMED = ("attn.q", "attn.k", "attn.v")
MASKED = ("attn.pattern", "attn.z", "resid_mid")
ROTATED = ("attn.q", "attn.k", "attn.scores", "attn.pattern")


@pytest.mark.parametrize(
    ("kind", "layer", "changes", "taps"),
    [
        ("bloom", 0, {"norm": "rms"}, NORMED),
        ("gpt2", 1, {"norm": "rms"}, NORMED),
        ("bloom", 0, {"alibi": False}, MASKED),
        ("bloom", 1, {"alibi": False}, MASKED),
        ("gpt2", 0, {"alibi": True}, MASKED),
        ("gemma2", 0, {"soft_cap": None}, MASKED),
        ("gemma2", 1, {"soft_cap": None}, MASKED),
        ("gemma3", 0, {"soft_cap": 2.0}, MASKED),
        ("gemma2", 0, {"window": None}, MASKED),
        ("gemma2", 0, {"window": WINDOW - 1}, MASKED),
        ("gemma2", 0, {"window": WINDOW + 1}, MASKED),
        ("gemma2", 1, {"window": WINDOW}, MASKED),
        ("gemma3", 0, {"window": None}, MASKED),
        ("gemma3", 4, {"window": None}, MASKED),
        ("gemma3", 5, {"window": WINDOW}, MASKED),
        # The file has a window, and llama.cpp ignores it: see the oracle.
        ("phi3", 0, {"window": WINDOW}, MASKED),
        ("gemma2", 0, {"scale": 0.25}, MASKED),
        ("gemma3", 5, {"scale": 0.25}, MASKED),
        ("qwen3", 0, {"scale": 0.25}, MASKED),
        ("gemma3", 4, {"rope": Rope("halves", 24, 1e6, 8.0)}, ROTATED),
        ("gemma3", 5, {"rope": Rope("halves", 24, 1e4)}, ROTATED),
        ("gemma3", 5, {"rope": Rope("halves", 24, 1e6)}, ROTATED),
        ("phi3", 0, {"rope": Rope("halves", 16, 1e4)}, ROTATED),
        ("mixtral", 0, {"rope": Rope("pairs", 16, 1e4)}, ROTATED),
        ("qwen2", 0, {"rope": Rope("halves", 16, 1e4)}, ROTATED),
        ("qwen3", 0, {"rope": Rope("halves", 24, 1e4)}, ROTATED),
        ("qwen3moe", 0, {"rope": Rope("halves", 24, 1e4)}, ROTATED),
        ("smollm3", 2, {"rope": None}, ROTATED),
        ("smollm3", 3, {"rope": Rope("pairs", 16, 5e6)}, ROTATED),
        ("gemma3", 0, {"qk_norm": False}, ROTATED),
        ("qwen3", 0, {"qk_norm": False}, ROTATED),
        ("qwen3moe", 0, {"qk_norm": False}, ROTATED),
        ("gemma2", 0, {"post_norm": False}, ("attn_out", "resid_mid")),
        ("gemma3", 5, {"post_norm": False}, ("attn_out", "resid_mid")),
    ],
)
def test_a_part_that_is_left_out_or_changed_shows(
    decode: Callable[[str], Decoded], kind: str, layer: int, changes: dict[str, Any], taps: tuple[str, ...]
) -> None:
    """Else the model would not exercise it, and agreement would say nothing about it."""
    decoded = decode(kind)
    definition = decoded.model.definition(layer)
    changed = replace(definition, **changes)
    assert changed != definition
    deviations = decoded.deviations(layer, changed)
    assert all(deviations[tap] > VISIBLE for tap in taps), deviations


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in {"bloom", "gpt2"}])
def test_the_other_style_of_rope_shows(decode: Callable[[str], Decoded], kind: str) -> None:
    decoded = decode(kind)
    definition = decoded.model.definition(0)
    assert definition.rope is not None
    style: Style = "halves" if definition.rope.style == "pairs" else "pairs"
    deviations = decoded.deviations(0, replace(definition, rope=replace(definition.rope, style=style)))
    assert all(deviations[tap] > VISIBLE for tap in ROTATED), deviations
    assert deviations["attn.v"] < TOLERANCE
