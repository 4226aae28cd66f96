"""A prompt read in one decode, with heads and layers off, against the same llama in float64; and the logit lens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.errors import OptionError
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import Ablation
from tests.integration.attention_oracle import Model
from tests.integration.live_oracle import SETTINGS, forward, log_softmax, open_live
from tests.integration.small_models import ARCHITECTURES, HEADS, write_small_model
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

LAYERS, QUERY_HEADS = 5, 8
TOKENS = np.random.default_rng(0).integers(0, 256, 40).tolist()
KINDS = ("pattern", "scores", "q", "k", "v")
CLOSE = 1e-5
"""Of the largest value: arithmetic in F32 leaves less than 2e-6."""
VISIBLE = 1e-2
"""What switching something off changes, at least, of the largest value."""

NOTHING = Ablation()
OFF = {
    "a head": Ablation(((2, 5),)),
    "heads of a group and of other layers": Ablation(((0, 0), (2, 3), (2, 2), (4, 7))),
    "first layer": Ablation(layers=(0,)),
    "middle layer": Ablation(layers=(2,)),
    "last layer": Ablation(layers=(4,)),
    "layers in a row": Ablation(layers=(1, 2, 3)),
    "first two": Ablation(layers=(1, 0)),
    "last two": Ablation(layers=(3, 4)),
    "layers, a head of one, and heads of earlier and later ones": Ablation(((1, 1), (0, 2), (2, 0), (4, 5)), (1, 3)),
    "every layer": Ablation(layers=tuple(range(LAYERS))),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in F32 whose query heads share keys and values two by two, with an unembedding of its own."""
    path = tmp_path_factory.mktemp("live") / "live.gguf"
    return write_random_llama(path, n_layer=LAYERS, heads=QUERY_HEADS, untied=True)


@pytest.fixture(scope="module")
def live(file: Path) -> Iterator[LiveModel]:
    with open_live(file) as live:
        yield live


def _deviation(values: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    """Largest difference, relative to the largest value."""
    assert values.shape == expected.shape
    assert values.dtype == np.float32
    return float(np.abs(values - expected).max() / max(float(np.abs(expected).max()), 1e-9))


def _assert_read(reading: Reading, file: Path, ablation: Ablation) -> None:
    exact = forward(file, reading.tokens.tolist(), ablation.heads, ablation.layers)
    expected = exact.states()
    assert reading.states.keys() == expected.keys()
    for name, values in expected.items():
        assert _deviation(reading.states[name], values) < CLOSE, name
    assert reading.logits is not None
    assert _deviation(reading.logits, exact.logits) < CLOSE
    for kind in KINDS:
        tensors = getattr(reading, kind)
        assert list(tensors) == list(range(LAYERS))
        for layer, values in tensors.items():
            # Of later keys of the same batch there are products too, which the mask then hides.
            assert _deviation(values, getattr(exact.attention[layer], kind)) < CLOSE, (kind, layer)


def test_a_reading_is_what_a_llama_computes(live: LiveModel, file: Path) -> None:
    assert live.facts.heads == (QUERY_HEADS,) * LAYERS
    assert live.facts.kv_heads == (QUERY_HEADS // 2,) * LAYERS
    reading = live.read(TOKENS, attention=KINDS)
    assert reading.tokens.tolist() == TOKENS
    _assert_read(reading, file, NOTHING)
    exact = log_softmax(forward(file, TOKENS).logits)
    assert np.abs(reading.next_logprobs() - exact[-1]).max() < 1e-4
    assert np.abs(reading.next_logprobs(3) - exact[3]).max() < 1e-4
    nll = reading.nll()
    assert np.isnan(nll[0])
    assert np.abs(nll[1:] + exact[np.arange(len(TOKENS) - 1), TOKENS[1:]]).max() < 1e-4


@pytest.mark.parametrize("off", OFF)
def test_what_is_off_is_off_in_the_exact_model_too(live: LiveModel, file: Path, off: str) -> None:
    ablation = OFF[off]
    reading = live.read(TOKENS, ablation, attention=KINDS)
    _assert_read(reading, file, ablation)
    whole = forward(file, TOKENS).logits
    assert reading.logits is not None
    assert np.abs(reading.logits - whole).max() > VISIBLE * np.abs(whole).max()


@pytest.mark.parametrize("off", ["heads of a group and of other layers", "layers in a row", "last layer", "first two"])
def test_physical_batches_change_nothing(file: Path, off: str) -> None:
    """Later batches read keys of earlier ones, which decoded with the same things off."""
    with open_live(file, replace(SETTINGS, n_ubatch=16)) as live:
        reading = live.read(TOKENS, OFF[off], attention=("pattern", "q", "k", "v"))
    exact = forward(file, TOKENS, OFF[off].heads, OFF[off].layers)
    for name, values in exact.states().items():
        assert _deviation(reading.states[name], values) < CLOSE, name
    assert reading.logits is not None
    assert _deviation(reading.logits, exact.logits) < CLOSE
    for layer, pattern in reading.pattern.items():
        assert _deviation(pattern, exact.attention[layer].pattern) < CLOSE


def test_only_what_was_asked_for_is_returned(live: LiveModel) -> None:
    reading = live.read(TOKENS, attention=("v",), states=False, logits=False)
    assert not any((reading.pattern, reading.scores, reading.q, reading.k, reading.states))
    assert reading.logits is None
    assert list(reading.v) == list(range(LAYERS))


# -- in every architecture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_heads_layers_and_lens_of_every_architecture(tmp_path: Path, kind: str) -> None:
    layers = 4 if kind == "smollm3" else 3
    file = write_small_model(tmp_path / "model.gguf", kind, layers)
    model, tokens = Model(file, kind), np.random.default_rng(1).integers(0, 60, 24).tolist()
    heads = ((0, 1), (1, 0), (1, HEADS - 1))
    with open_live(file) as live:
        whole, reading = live.read(tokens), live.read(tokens, Ablation(heads, (2,)))
        first = live.read(tokens, Ablation(layers=(0,))) if live.facts.first_layer_alone else None
        if first is None:
            with pytest.raises(OptionError, match="Layer 0 of model cannot be switched off"):
                live.read(tokens, Ablation(layers=(0,)))
        lenses = {"whole": live.lens(whole), "changed": live.lens(reading, 7)}
    post = reading.states["resid_post"].astype(np.float64)
    before = [model.first_residual(reading.states["embed"].astype(np.float64)), *post[:-1]]
    for layer in range(layers):
        attention, mlp = (reading.states[name][layer].astype(np.float64) for name in ("attn_out", "mlp_out"))
        if layer == 2:
            assert not attention.any()
            assert not mlp.any()
            assert (reading.states["resid_mid"][2] == before[2]).all()
        elif layer == 0 and not reading.facts.first_layer_alone:
            # What its first block reads is not the embeddings, and llama.cpp does not name it.
            assert kind in {"bloom", "gpt2"}
        else:
            exact = model.attend(layer, before[layer], off=[head for at, head in heads if at == layer])
            largest = np.abs(post[layer]).max()
            assert np.abs(attention - exact.attn_out).max() < 2e-5 * largest, layer
            assert np.abs(before[layer] + attention + mlp - post[layer]).max() < CLOSE * largest
    assert np.abs(post[2] - post[1]).max() == 0
    if first is not None:
        assert (first.states["resid_post"][0] == first.states["embed"]).all()
    for given_reading, place, lens in ((whole, -1, lenses["whole"]), (reading, 7, lenses["changed"])):
        stream = given_reading.states["resid_post"][:, place].astype(np.float64)
        assert np.abs(lens - log_softmax(model.logits(stream))).max() < 1e-4
        assert np.abs(lens[-1] - given_reading.next_logprobs(place)).max() < 1e-4


def test_streams_of_more_rows_than_one_decode(live: LiveModel, file: Path) -> None:
    rows = np.random.default_rng(2).standard_normal((1100, 256), dtype=np.float32)
    logits, exact = live.unembed(rows), Model(file, "llama").logits(rows.astype(np.float64))
    assert _deviation(logits, exact) < CLOSE


def test_streams_of_more_rows_than_the_model_has_positions(tmp_path: Path) -> None:
    """GPT-2 has a table of them: llama.cpp aborts where one is missing."""
    file = write_small_model(tmp_path / "model.gguf", "gpt2", 1)
    rows = np.random.default_rng(2).standard_normal((300, 64), dtype=np.float32)
    with open_live(file) as live:
        assert live.facts.n_ctx_train < len(rows)
        assert _deviation(live.unembed(rows), Model(file, "gpt2").logits(rows.astype(np.float64))) < CLOSE


# -- for any text -----------------------------------------------------------------------------------------------------

texts = st.lists(st.integers(0, 255), min_size=1, max_size=30)


@settings(max_examples=10)
@given(texts)
def test_rows_of_a_pattern_sum_to_one(live: LiveModel, text: list[int]) -> None:
    for pattern in live.read(text).pattern.values():
        assert pattern.shape == (QUERY_HEADS, len(text), len(text))
        assert np.abs(pattern.sum(axis=2) - 1).max() < 1e-5
        assert not np.triu(pattern, 1).any()


@settings(max_examples=10)
@given(texts)
def test_nothing_off_changes_no_bit(live: LiveModel, text: list[int]) -> None:
    whole, same = live.read(text), live.read(text, Ablation((), ()))
    assert whole.states.keys() == same.states.keys()
    assert all((whole.states[name] == same.states[name]).all() for name in whole.states)
    assert whole.logits is not None
    assert (whole.logits == same.logits).all()


@settings(max_examples=10)
@given(texts, st.integers(0, LAYERS - 1))
def test_with_all_heads_off_attention_adds_nothing(live: LiveModel, text: list[int], layer: int) -> None:
    reading = live.read(text, Ablation(tuple((layer, head) for head in range(QUERY_HEADS))))
    assert not reading.states["attn_out"][layer].any()
    assert all(reading.states["attn_out"][other].any() for other in range(LAYERS) if other != layer)
    # Without attention, a token's update by the MLP is that of the token alone.
    before = reading.states["embed"] if layer == 0 else reading.states["resid_post"][layer - 1]
    assert (reading.states["resid_mid"][layer] == before).all()
