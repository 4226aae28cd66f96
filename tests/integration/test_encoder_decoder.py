"""T5 in llama.cpp against its published definition: taps of encoder and decoder, and what neither may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.tap_names import expand_taps
from gguf_harness.engine.taps import Patcher, Taps
from gguf_harness.errors import EngineError, TapNotFound
from tests.integration.small_models import BUCKETS, HEADS, WIDTH, write_small_model
from tests.loaded import open_context

pytestmark = pytest.mark.model

Array = NDArray[np.float32]
Exact = NDArray[np.float64]
Ints = NDArray[np.int32]
Flash = Literal["on", "off"]

LAYERS = 2
# Long enough for positions in every kind of bucket: exact ones, logarithmic ones, both directions.
SOURCE = (np.arange(40) * 7 % 60).astype(np.int32)
TARGET = np.concatenate([[62], np.arange(23) * 11 % 60]).astype(np.int32)
ENCODER = expand_taps(["encoder.*"], LAYERS)
DECODER = expand_taps(["*"], LAYERS)


# -- the published definition, in float64 ---------------------------------------------------------------------------
# Raffel et al. 2020 (arXiv:1910.10683), section 2.1, with the buckets, the norm and the order of operations of Hugging
# Face's T5: no scaling by 1/sqrt(d_head), no bias, RMSNorm before each part, position bias from the first layer.


def _weights(file: Path) -> dict[str, Exact]:
    return {str(tensor.name): np.asarray(tensor.data, dtype=np.float64) for tensor in GGUFReader(file).tensors}


def _norm(x: Exact, weight: Exact) -> Exact:
    scale: Exact = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
    return x * scale * weight


def _buckets(n_query: int, n_key: int, *, bidirectional: bool) -> NDArray[np.int64]:
    """[query, key] which of the learned biases each pair has."""
    relative = np.arange(n_key)[None, :] - np.arange(n_query)[:, None]
    half = BUCKETS // 2 if bidirectional else BUCKETS
    exact = half // 2
    distance = np.abs(relative) if bidirectional else np.maximum(-relative, 0)
    growth = np.log(np.maximum(distance, 1) / exact) / np.log(128 / exact) * (half - exact)
    far = np.minimum(exact + np.floor(growth).astype(np.int64), half - 1)
    buckets: NDArray[np.int64] = np.where(distance < exact, distance, far)
    return buckets + half * (relative > 0) if bidirectional else buckets


def _attention(w: Mapping[str, Exact], name: str, x: Exact, source: Exact, bias: Exact | float) -> dict[str, Exact]:
    q = (x @ w[f"{name}_q.weight"].T).reshape(-1, HEADS, WIDTH // HEADS)
    k, v = ((source @ w[f"{name}_{part}.weight"].T).reshape(-1, HEADS, WIDTH // HEADS) for part in ("k", "v"))
    scores = np.einsum("qhd,khd->hqk", q, k)
    biased = scores + bias
    exponentials = np.exp(biased - biased.max(axis=-1, keepdims=True))
    pattern = exponentials / exponentials.sum(axis=-1, keepdims=True)
    z = np.einsum("hqk,khd->qhd", pattern, v).reshape(len(x), -1)
    out = z @ w[f"{name}_o.weight"].T
    return {"q": q, "k": k, "v": v, "scores": scores, "pattern": pattern, "z": z, "out": out}


def _forward(w: Mapping[str, Exact], stack: str, tokens: Ints, encoded: Exact | None = None) -> dict[str, Exact]:
    """All taps of one stack, `enc` or `dec`, by name."""
    n = len(tokens)
    prefix = "encoder." if stack == "enc" else ""
    buckets = _buckets(n, n, bidirectional=stack == "enc")
    bias = w[f"{stack}.blk.0.attn_rel_b.weight"][buckets].transpose(2, 0, 1)
    if stack == "dec":
        bias = bias + np.where(np.tril(np.ones((n, n), dtype=bool)), 0, -np.inf)
    x = w["token_embd.weight"][tokens]
    taps = {f"{prefix}embed": x}
    for layer in range(LAYERS):
        block, names = f"{stack}.blk.{layer}", f"{prefix}blocks.{layer}."
        normed = _norm(x, w[f"{block}.attn_norm.weight"])
        attention = _attention(w, f"{block}.attn", normed, normed, bias)
        taps |= {f"{names}attn.{name}": values for name, values in attention.items() if name != "out"}
        taps[f"{names}attn_out"] = attention["out"]
        x = taps[f"{names}resid_mid"] = x + attention["out"]
        if encoded is not None:
            normed = _norm(x, w[f"{block}.cross_attn_norm.weight"])
            x = x + _attention(w, f"{block}.cross_attn", normed, encoded, 0.0)["out"]
        hidden = np.maximum(_norm(x, w[f"{block}.ffn_norm.weight"]) @ w[f"{block}.ffn_up.weight"].T, 0)
        taps[f"{names}mlp_out"] = hidden @ w[f"{block}.ffn_down.weight"].T
        x = taps[f"{names}resid_post"] = x + taps[f"{names}mlp_out"]
    taps[f"{prefix}ln_final.normalized"] = _norm(x, w[f"{stack}.output_norm.weight"])
    if stack == "dec":
        taps["logits"] = taps["ln_final.normalized"] @ w["output.weight"].T
    return taps


# -- running it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("t5") / "t5.gguf", "t5", LAYERS)


@pytest.fixture(scope="module")
def t5encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("t5") / "t5encoder.gguf", "t5encoder", LAYERS)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("t5") / "qwen2.gguf", "qwen2", LAYERS)


def _settings(flash_attention: Flash = "off", n_batch: int = 64, n_ubatch: int = 64) -> SessionSettings:
    return SessionSettings(
        n_ctx=64, n_batch=n_batch, n_ubatch=n_ubatch, threads=1, flash_attention=flash_attention,
        cache_type_k="f32", cache_type_v="f32",
    )  # fmt: skip


def _read(
    file: Path, names: tuple[str, ...], patch: Mapping[str, Patcher] | None = None, flash_attention: Flash = "off"
) -> dict[str, Array]:
    """Values by tap, of one input and (where there is a decoder) one output."""
    seen: dict[str, Array] = {}

    def keep(tap: str, values: Array) -> None:
        assert tap not in seen, f"{tap} was handed out twice"
        seen[tap] = values.copy()

    taps = Taps(file.stem, LAYERS, read=dict.fromkeys(names, keep), patch=patch)
    with open_context([file], _settings(flash_attention), taps) as context:
        context.encode(SOURCE)
        if context.model.has_decoder:
            assert (context.logits(TARGET) == seen.get("logits", context.output_logits(len(TARGET)))).all()
    return seen


def _deviation(tap: str, values: Array, exact: Exact) -> float:
    held = np.ones(exact.shape, dtype=bool)
    if tap.startswith("blocks.") and tap.endswith((".scores", ".pattern")):
        # A cache has room for more keys than there are tokens, and scores of later ones are masked afterwards.
        held = np.tril(held)
        assert tap.endswith(".scores") or not values[..., exact.shape[-1] :].any(), tap
        values = values[..., : exact.shape[-1]]
    assert values.shape == exact.shape, tap
    return float(np.abs(values - exact)[held].max())


def _assert_agree(seen: Mapping[str, Array], expected: Mapping[str, Exact]) -> None:
    for tap, values in seen.items():
        assert _deviation(tap, values, expected[tap]) < 1e-4, tap


@pytest.mark.parametrize("flash_attention", ["on", "off"])
@pytest.mark.parametrize("kind", ["t5", "t5encoder"])
def test_encoder_taps_agree_with_the_definition(
    request: pytest.FixtureRequest, kind: str, flash_attention: Flash
) -> None:
    file: Path = request.getfixturevalue(kind)
    seen = _read(file, ENCODER, flash_attention=flash_attention)
    assert seen.keys() == set(ENCODER)
    _assert_agree(seen, _forward(_weights(file), "enc", SOURCE))
    for layer in range(LAYERS):
        pattern = seen[f"encoder.blocks.{layer}.attn.pattern"]
        assert np.abs(pattern.sum(axis=-1) - 1).max() < 1e-5
        # Both ways: every token attends to those after it too.
        assert (pattern > 0).all()


@pytest.mark.parametrize("flash_attention", ["on", "off"])
def test_decoder_taps_are_those_of_self_attention(t5: Path, flash_attention: Flash) -> None:
    """Flash attention takes cross-attention's kq away, and leaves self-attention's: T5's position bias needs it.

    It rounds keys and values to F16: what comes after the first cross-attention carries errors of some 5e-3.
    """
    seen = _read(t5, DECODER, flash_attention=flash_attention)
    assert seen.keys() == set(DECODER)
    weights = _weights(t5)
    encoded = _forward(weights, "enc", SOURCE)["encoder.ln_final.normalized"]
    expected = _forward(weights, "dec", TARGET, encoded)
    before = {
        tap: values for tap, values in seen.items() if tap == "embed" or ".0.attn" in tap or ".0.resid_mid" in tap
    }
    assert len(before) == 9
    _assert_agree(before, expected)
    if flash_attention == "off":
        _assert_agree(seen, expected)
    for tap, values in seen.items():
        assert (
            _deviation(tap, values, expected[tap]) < 2e-2 * np.abs(expected[tap][np.isfinite(expected[tap])]).max()
        ), tap
    for layer in range(LAYERS):
        pattern = seen[f"blocks.{layer}.attn.pattern"][..., : len(TARGET)]
        assert np.abs(pattern.sum(axis=-1) - 1).max() < 1e-5
        assert not np.triu(pattern, 1).any()


def test_both_stacks_are_read_in_one_session(t5: Path) -> None:
    together = _read(t5, (*ENCODER, *DECODER))
    apart = _read(t5, ENCODER) | _read(t5, DECODER)
    assert together.keys() == apart.keys()
    assert all((together[tap] == apart[tap]).all() for tap in apart)


def test_identity_patches_of_everything_change_no_bit(t5: Path) -> None:
    names = ("encoder.ln_final.normalized", "logits")
    plain = _read(t5, names)
    patched = _read(t5, names, dict.fromkeys((*ENCODER, *DECODER), lambda _, values: values))
    assert all((patched[tap] == plain[tap]).all() for tap in names)


@pytest.mark.parametrize("prefix", ["encoder.", ""])
def test_values_of_zero_are_mixed_to_zero(t5: Path, prefix: str) -> None:
    block = f"{prefix}blocks.1"
    names = (f"{block}.attn.q", f"{block}.attn.k", f"{block}.attn.z", f"{block}.attn_out", "logits")
    plain = _read(t5, names)
    patched = _read(t5, names, {f"{block}.attn.v": lambda _, values: np.zeros_like(values)})
    assert plain[names[2]].any()
    assert not patched[names[2]].any()
    assert not patched[names[3]].any()
    assert all((patched[tap] == plain[tap]).all() for tap in names[:2])
    assert np.abs(patched["logits"] - plain["logits"]).max() > 1e-2


def test_a_batch_in_several_parts_hands_out_each_part(t5: Path) -> None:
    parts: dict[str, list[Array]] = {}
    names = ("blocks.0.attn.q", "blocks.1.attn.z", "blocks.1.resid_post", "logits")
    taps = Taps("t5", LAYERS, read=dict.fromkeys(names, lambda tap, x: parts.setdefault(tap, []).append(x.copy())))
    with open_context([t5], _settings(n_ubatch=8), taps) as context:
        context.encode(SOURCE[:8])
        context.logits(TARGET)
    weights = _weights(t5)
    encoded = _forward(weights, "enc", SOURCE[:8])["encoder.ln_final.normalized"]
    expected = _forward(weights, "dec", TARGET, encoded)
    assert {tap: len(values) for tap, values in parts.items()} == dict.fromkeys(names, 3)
    _assert_agree({tap: np.concatenate(values) for tap, values in parts.items()}, expected)


def test_the_decoders_last_block_keeps_all_tokens_up_to_cross_attention(t5: Path) -> None:
    rows: dict[str, int] = {}
    names = ("blocks.1.resid_mid", "blocks.1.resid_post")
    taps = Taps("t5", LAYERS, read=dict.fromkeys(names, lambda tap, x: rows.__setitem__(tap, len(x))))
    with open_context([t5], _settings(), taps) as context:
        context.encode(SOURCE)
        positions = np.arange(len(TARGET), dtype=np.int32)
        context.decode(TARGET, positions, np.zeros_like(positions), positions == len(TARGET) - 1)
    assert rows == {"blocks.1.resid_mid": len(TARGET), "blocks.1.resid_post": 1}


def test_an_input_holds_until_the_next_one(t5: Path) -> None:
    # Four windows share a batch in these settings: the cache is another one, and sequence 0 must not mind.
    with open_context([t5], _settings(n_batch=256)) as context:
        logits = []
        for source in (SOURCE, SOURCE[:9], SOURCE):
            context.encode(source)
            logits += [context.logits(TARGET), context.logits(TARGET)]
        prompt = TARGET[:1]
        for token in context.generate(prompt, 8):
            assert token == context.logits(prompt)[-1].argmax()
            prompt = np.append(prompt, np.int32(token))
            break
    for index in (1, 4, 5):
        assert (logits[index] == logits[0]).all()
    assert (logits[2] == logits[3]).all()
    assert np.abs(logits[2] - logits[0]).max() > 1e-2


# -- what cannot be asked for ---------------------------------------------------------------------------------------

DECODING: dict[str, Callable[[Context], Any]] = {
    "logits": lambda context: context.logits(TARGET),
    "score": lambda context: next(context.score(np.resize(TARGET, (2, 64)))),
    "generate": lambda context: next(context.generate(TARGET, 1)),
}


@pytest.fixture
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    with open_context([request.getfixturevalue(request.param)], _settings(n_batch=128)) as context:
        yield context


@pytest.mark.parametrize("context", ["t5encoder"], indirect=True)
@pytest.mark.parametrize("what", DECODING)
def test_an_encoder_alone_decodes_nothing(context: Context, what: str) -> None:
    context.encode(SOURCE)
    with pytest.raises(EngineError, match=r"t5encoder\.gguf is only an encoder.*\n.*encode\(\)"):
        DECODING[what](context)


@pytest.mark.parametrize("context", ["t5"], indirect=True)
@pytest.mark.parametrize("what", DECODING)
def test_nothing_is_decoded_without_an_input(context: Context, what: str) -> None:
    with pytest.raises(EngineError, match=r"no encoded input.*\n.*Call encode\(\) first"):
        DECODING[what](context)


@pytest.mark.parametrize("context", ["t5"], indirect=True)
def test_only_sequence_zero_has_an_input(context: Context) -> None:
    context.encode(SOURCE)
    with pytest.raises(EngineError, match=r"no encoded input for these sequences"):
        DECODING["score"](context)


@pytest.mark.parametrize("context", ["qwen2"], indirect=True)
def test_a_decoder_encodes_nothing(context: Context) -> None:
    assert not context.model.has_encoder
    with pytest.raises(EngineError, match=r"qwen2\.gguf has no encoder.*\n.*Decode"):
        context.encode(SOURCE)


@pytest.mark.parametrize("context", ["t5"], indirect=True)
@pytest.mark.parametrize("n", [0, 65])
def test_an_input_of_a_wrong_size_is_refused(context: Context, n: int) -> None:
    with pytest.raises(EngineError, match=f"input of {n} tokens cannot be encoded, expected 1 to 64"):
        context.encode(np.zeros(n, dtype=np.int32))


def test_an_input_that_failed_is_none(t5: Path) -> None:
    """Neither a token that does not exist, nor an exception of a reader, leaves the earlier input in place."""
    fail: list[BaseException] = []

    def read(*_: object) -> None:
        if fail:
            raise fail.pop()

    with open_context([t5], _settings(), Taps("t5", LAYERS, read={"encoder.embed": read})) as context:
        context.encode(SOURCE)
        with pytest.raises(EngineError, match="could not encode a batch of 1 tokens"):
            context.encode(np.array([10_000], dtype=np.int32))
        with pytest.raises(EngineError, match="no encoded input"):
            context.logits(TARGET)
        fail.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            context.encode(SOURCE)
        with pytest.raises(EngineError, match="no encoded input"):
            context.logits(TARGET)
        context.encode(SOURCE)
        assert np.isfinite(context.logits(TARGET)).all()


@pytest.mark.parametrize(
    ("architecture", "tap", "message"),
    [
        (
            "t5",
            "encoder.logits",
            r"an encoder has no logits\.\n.*Read 'logits', which is available while a context decodes",
        ),
        ("t5encoder", "blocks.0.attn.q", r"t5encoder has no decoder\.\n.*begin with 'encoder\.'"),
        ("qwen2", "encoder.blocks.0.attn.q", r"qwen2 has no encoder\.\n.*Read 'blocks\.0\.attn\.q'"),
        ("t5", "encoder.blocks.2.attn.q", "the model has 2 layers"),
        ("t5", "encoder.blocks.0.attn.patern", r"Did you mean 'encoder\.blocks\.0\.attn\.pattern'"),
        ("t5", "blocks.0.cross_attn.pattern", r"Unknown tap 'blocks\.0\.cross_attn\.pattern'"),
    ],
)
def test_taps_that_are_not_there_are_refused(architecture: str, tap: str, message: str) -> None:
    with pytest.raises(TapNotFound, match=message):
        Taps(architecture, LAYERS, read={tap: lambda *_: None})


def test_encoder_taps_that_are_missing_are_listed_with_their_prefix(t5: Path) -> None:
    taps = Taps("t5", LAYERS + 1, read={"encoder.blocks.2.attn.z": lambda *_: None})
    with open_context([t5], _settings(), taps) as context, pytest.raises(TapNotFound) as caught:
        context.encode(SOURCE)
    offered = {tap.replace("blocks.0.", "blocks.{i}.") for tap in ENCODER if ".1." not in tap}
    assert set(caught.value.hint.removeprefix("It offers: ").rstrip(".").split(", ")) == offered


@pytest.mark.parametrize("tap", ["blocks.0.attn.scores", "blocks.0.attn.pattern", "blocks.0.attn.z"])
def test_two_nodes_for_one_tap_are_an_error(t5: Path, tap: str) -> None:
    """With another architecture's table nothing tells T5's self-attention from its cross-attention."""
    taps = Taps("gpt2", LAYERS, read={tap: lambda *_: None})
    with open_context([t5], _settings(), taps) as context:
        context.encode(SOURCE)
        with pytest.raises(TapNotFound, match=rf"{tap} is ambiguous"):
            context.logits(TARGET)
