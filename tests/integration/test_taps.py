"""Taps on llama.cpp's real graphs of several architectures: what is handed out is what its name says."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.tap_names import expand_taps, graph_nodes
from gguf_harness.engine.taps import Patcher, Taps
from gguf_harness.errors import EngineError, TapNotFound
from tests.devices import near
from tests.integration.small_models import ARCHITECTURES, UNNAMED, architecture_of, write_small_model
from tests.loaded import open_context

pytestmark = pytest.mark.model

Array = NDArray[np.float32]
Flash = Literal["on", "off"]
N = 12
TOKENS = np.arange(3, 3 + N, dtype=np.int32)


def _settings(flash_attention: Flash = "off", n_batch: int = 64) -> SessionSettings:
    return SessionSettings(
        n_ctx=64, n_batch=n_batch, n_ubatch=n_batch, threads=1, flash_attention=flash_attention,
        cache_type_k="f32", cache_type_v="f32",
    )  # fmt: skip


def _layers(kind: str) -> int:
    return 4 if kind == "smollm3" else 2


def _offered(kind: str) -> list[str]:
    """The taps that the graph of this model has."""
    unnamed = UNNAMED.get(kind, set())
    return [tap for tap in expand_taps(["*"], _layers(kind)) if tap.rpartition(".")[2] not in unnamed]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("small")

    def write(kind: str) -> Path:
        file = folder / f"{kind}.gguf"
        return file if file.exists() else write_small_model(file, kind, _layers(kind))

    return write


def _run(
    file: Path, kind: str, read: list[str], patch: Mapping[str, Patcher] | None = None, flash_attention: Flash = "off"
) -> tuple[dict[str, Array], Array]:
    """Values by tap, and the logits. A tap that is handed out twice in one decode is an error."""
    seen: dict[str, Array] = {}

    def keep(tap: str, values: Array) -> None:
        assert tap not in seen, f"{tap} was handed out twice"
        seen[tap] = values.copy()

    taps = Taps(architecture_of(kind), _layers(kind), read=dict.fromkeys(read, keep), patch=patch)
    with open_context([file], _settings(flash_attention), taps) as context:
        logits = context.logits(TOKENS)
    return seen, logits


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_taps_of_an_architecture_fit_together(model: Callable[[str], Path], kind: str) -> None:
    seen, logits = _run(model(kind), kind, _offered(kind))
    assert seen.keys() == set(_offered(kind))
    assert (seen["logits"] == logits).all()
    before = seen["embed"]
    for layer in range(_layers(kind)):
        block = f"blocks.{layer}."
        taps = {tap.removeprefix(block): values for tap, values in seen.items() if tap.startswith(block)}
        q, k, v, pattern = (taps[f"attn.{name}"] for name in ("q", "k", "v", "pattern"))
        groups = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
        # Scores are q k^T up to a factor: some graphs scale the queries first.
        lower = np.tril(np.ones((N, N), dtype=bool))
        products = np.einsum("qhd,khd->hqk", q, k)[:, lower]
        scores = taps["attn.scores"][:, :, :N][:, lower]
        factor = float((scores * products).sum() / (products * products).sum())
        assert factor > 0
        assert np.abs(scores - factor * products).max() < near(1e-4, "taps") * np.abs(scores).max() + 1e-5
        assert np.abs(pattern.sum(axis=-1) - 1).max() < 1e-5
        assert not pattern[:, :, :N][:, ~lower].any()
        z = np.einsum("hqk,khd->qhd", pattern[:, :, :N], v).reshape(N, -1)
        assert np.abs(z - taps["attn.z"]).max() < near(1e-4, "taps")
        # GPT-2 adds positions to the embeddings, and BLOOM norms them.
        if "resid_mid" in taps and "attn_out" in taps:
            assert np.abs(before + taps["attn_out"] - taps["resid_mid"]).max() < near(1e-4, "taps")
        if "resid_mid" in taps and "mlp_out" in taps:
            assert np.abs(taps["resid_mid"] + taps["mlp_out"] - taps["resid_post"]).max() < near(1e-4, "taps")
        before = taps["resid_post"]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_views_have_the_values_of_copies(model: Callable[[str], Path], kind: str) -> None:
    copies, _ = _run(model(kind), kind, _offered(kind))
    seen: dict[str, tuple[Array, bool]] = {}

    def keep(tap: str, values: Array) -> None:
        seen[tap] = values.copy(), values.flags.writeable

    taps = Taps(architecture_of(kind), _layers(kind), read=dict.fromkeys(copies, keep), views=set(copies) - {"embed"})
    with open_context([model(kind)], _settings("off"), taps) as context:
        context.logits(TOKENS)
    assert seen.keys() == copies.keys()
    assert all((seen[tap][0] == values).all() for tap, values in copies.items())
    assert {tap for tap, (_, writeable) in seen.items() if writeable} == {"embed"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_identity_patches_of_everything_change_no_bit(model: Callable[[str], Path], kind: str) -> None:
    _, plain = _run(model(kind), kind, [])
    patches: dict[str, Patcher] = dict.fromkeys(_offered(kind), lambda _, values: values)
    _, patched = _run(model(kind), kind, [], patches)
    assert (patched == plain).all()


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "qwen2", "mixtral"])
@pytest.mark.parametrize("flash_attention", ["on", "off"])
def test_values_of_zero_are_mixed_to_zero_and_queries_stay(
    model: Callable[[str], Path], kind: str, flash_attention: Flash
) -> None:
    """V is a view into the joint projection in GPT-2 and Phi-3: writing it must leave Q and K alone."""
    read = ["blocks.1.attn.q", "blocks.1.attn.k", "blocks.1.attn.z"]
    plain, _ = _run(model(kind), kind, read, flash_attention=flash_attention)
    patched, _ = _run(
        model(kind), kind, read, {"blocks.1.attn.v": lambda _, values: np.zeros_like(values)}, flash_attention
    )
    assert plain["blocks.1.attn.z"].any()
    assert not patched["blocks.1.attn.z"].any()
    assert (patched["blocks.1.attn.q"] == plain["blocks.1.attn.q"]).all()
    assert (patched["blocks.1.attn.k"] == plain["blocks.1.attn.k"]).all()


def test_queries_of_zero_attend_evenly(model: Callable[[str], Path]) -> None:
    patch: dict[str, Patcher] = {"blocks.0.attn.q": lambda _, values: np.zeros_like(values)}
    seen, _ = _run(model("gemma3"), "gemma3", ["blocks.0.attn.pattern"], patch)
    even = np.tril(np.ones((N, N))) / np.arange(1, N + 1)[:, None]
    assert np.abs(seen["blocks.0.attn.pattern"][:, :, :N] - even).max() < near(1e-6, "pattern")


def test_z_is_there_with_flash_attention(model: Callable[[str], Path]) -> None:
    """llama.cpp rounds K and V to F16 for flash attention, whatever the cache: first block, where both see the same."""
    names = ["blocks.0.attn.z", "blocks.0.attn.v"]
    off, _ = _run(model("qwen3"), "qwen3", names)
    on, _ = _run(model("qwen3"), "qwen3", names, flash_attention="on")
    assert (on["blocks.0.attn.v"] == off["blocks.0.attn.v"]).all()
    bound = near(4 * float(np.finfo(np.float16).eps), "taps") * float(np.abs(off["blocks.0.attn.v"]).max())
    assert np.abs(on["blocks.0.attn.z"] - off["blocks.0.attn.z"]).max() < bound


def test_z_of_zero_skips_attention_in_a_real_model(smollm2_file: Path) -> None:
    seen: dict[str, Array] = {}
    taps = Taps(
        "llama", 30,
        read=dict.fromkeys(["blocks.2.resid_post", "blocks.3.attn_out", "blocks.3.resid_mid"], seen.__setitem__),
        patch={"blocks.3.attn.z": lambda _, values: np.zeros_like(values)},
    )  # fmt: skip
    with open_context([smollm2_file], _settings(), taps) as context:
        context.logits(context.model.tokenize(b"The capital of France is"))
    assert not seen["blocks.3.attn_out"].any()
    assert (seen["blocks.3.resid_mid"] == seen["blocks.2.resid_post"]).all()


def test_the_last_block_keeps_only_the_tokens_with_logits(model: Callable[[str], Path]) -> None:
    rows: dict[str, list[int]] = {}
    names = ["blocks.0.resid_post", "blocks.1.attn.z", "blocks.1.resid_post", "logits"]
    taps = Taps("qwen2", 2, read=dict.fromkeys(names, lambda tap, x: rows.setdefault(tap, []).append(len(x))))
    with open_context([model("qwen2")], _settings(n_batch=16), taps) as context:
        windows = np.resize(TOKENS, (1, 64)).astype(np.int32)
        assert sum(len(block.targets) for block in context.score(windows)) == 31
    assert rows["blocks.0.resid_post"] == rows["blocks.1.attn.z"] == [16] * 4
    assert rows["blocks.1.resid_post"] == rows["logits"] == [0, 0, 16, 15]


def test_a_missing_tap_lists_what_there_is(model: Callable[[str], Path]) -> None:
    taps = Taps("qwen2", 2, read={"blocks.0.attn_out": lambda *_: None})
    with open_context([model("qwen2")], _settings(), taps) as context, pytest.raises(TapNotFound) as caught:
        context.logits(TOKENS)
    offered = {tap.replace("blocks.0.", "blocks.{i}.") for tap in _offered("qwen2") if not tap.startswith("blocks.1.")}
    assert set(caught.value.hint.removeprefix("It offers: ").rstrip(".").split(", ")) == offered


def test_after_a_failure_no_more_is_read_and_the_next_decode_is_whole(model: Callable[[str], Path]) -> None:
    calls: list[str] = []

    def fail_once(tap: str, _: Array) -> None:
        calls.append(tap)
        if len(calls) == 1:
            raise KeyboardInterrupt

    taps = Taps("qwen2", 2, read=dict.fromkeys(["blocks.0.resid_mid", "blocks.1.resid_mid"], fail_once))
    with open_context([model("qwen2")], _settings(), taps) as context:
        with pytest.raises(KeyboardInterrupt):
            context.logits(TOKENS)
        assert calls == ["blocks.0.resid_mid"]
        context.logits(TOKENS)
    assert calls[1:] == ["blocks.0.resid_mid", "blocks.1.resid_mid"]


@pytest.mark.parametrize("change", [lambda x: x.T, lambda x: x[None], lambda x: x.ravel()])
def test_a_patch_of_the_right_size_in_another_shape_is_refused(
    model: Callable[[str], Path], change: Callable[[Array], Array]
) -> None:
    taps = Taps("qwen2", 2, patch={"blocks.0.attn.z": lambda _, values: change(values)})
    with (
        open_context([model("qwen2")], _settings(), taps) as context,
        pytest.raises(EngineError, match="cannot be patched"),
    ):
        context.logits(TOKENS)


def test_with_nothing_wanted_llama_cpp_does_not_call() -> None:
    def address(taps: Taps) -> int | None:
        return ctypes.cast(taps.callback, ctypes.c_void_p).value

    assert address(Taps("llama", 2)) is None
    assert address(Taps("llama", 2, read={"logits": lambda *_: None}))


def test_taps_change_between_decodes(model: Callable[[str], Path]) -> None:
    """In one context, what a context with these taps alone gives, to the bit."""
    file = model("qwen2")
    patches: list[dict[str, Patcher]] = [{}, *({f"blocks.{i}.attn.z": lambda _, z: 0 * z} for i in range(2)), {}]
    alone = [_run(file, "qwen2", ["blocks.1.resid_post"], patch) for patch in patches]
    taps, seen = Taps("qwen2", 2, changing=True), dict[str, Array]()
    with open_context([file], _settings(), taps) as context:
        for patch, (values, logits) in zip(patches, alone, strict=True):
            seen.clear()
            taps.watch(read={"blocks.1.resid_post": seen.__setitem__}, patch=patch)
            assert (context.logits(TOKENS) == logits).all()
            assert (seen["blocks.1.resid_post"] == values["blocks.1.resid_post"]).all()
            assert len(seen) == 1
        taps.watch()
        seen.clear()
        assert (context.logits(TOKENS) == alone[0][1]).all()
        assert not seen
    with pytest.raises(EngineError, match="cannot be changed"):
        Taps("qwen2", 2).watch()


def test_every_unnamed_tensor_is_refused_or_missing() -> None:
    with pytest.raises(TapNotFound, match="does not name"):
        Taps("gemma2", 2, read={"blocks.0.mlp_out": lambda *_: None})
    assert graph_nodes("blocks.0.mlp_out", "gemma3", 2)[0].name == "ffn_post_norm-0"
