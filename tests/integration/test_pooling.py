"""Pooled embeddings of a BERT in llama.cpp against the published definition in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, PoolingType
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.pooling import embed, pools
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import EngineError, NoLanguageHead
from tests.integration.small_bert import HEADS, LAYERS, WIDTH, write_small_bert
from tests.loaded import open_context
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

Exact = NDArray[np.float64]
SETTINGS = SessionSettings(
    n_ctx=64, n_batch=64, n_ubatch=64, threads=1, flash_attention="off", cache_type_k="f32", cache_type_v="f32"
)


def _norm(x: Exact, w: Mapping[str, Exact], name: str) -> Exact:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled: Exact = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(x: Exact, w: Mapping[str, Exact], name: str) -> Exact:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _forward(file: Path, tokens: NDArray[np.int32]) -> Exact:
    """[tokens, d] Devlin et al. 2019, with post-norms; GELU by erf."""
    from scipy.special import erf

    w = {str(tensor.name): np.asarray(tensor.data, dtype=np.float64) for tensor in GGUFReader(file).tensors}
    x = w["token_embd.weight"][tokens] + w["position_embd.weight"][: len(tokens)] + w["token_types.weight"][0]
    x = _norm(x, w, "token_embd_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        q, k, v = (
            _linear(x, w, f"{block}.attn_{name}").reshape(len(tokens), HEADS, WIDTH // HEADS).transpose(1, 0, 2)
            for name in "qkv"
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS))
        mixed = (scores / scores.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(tokens), WIDTH)
        x = _norm(x + _linear(mixed, w, f"{block}.attn_output"), w, f"{block}.attn_output_norm")
        hidden = _linear(x, w, f"{block}.ffn_up")
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = _norm(x + _linear(hidden, w, f"{block}.ffn_down"), w, f"{block}.layer_output_norm")
    return x


@pytest.mark.parametrize("pooling", [PoolingType.MEAN, PoolingType.CLS, PoolingType.LAST])
def test_embeddings_are_pooled_as_the_file_says(tmp_path: Path, pooling: PoolingType) -> None:
    file = write_small_bert(tmp_path / "bert.gguf", pooling)
    with open_context([file], SETTINGS) as context:
        assert pools(context)
        for text in ("the dog is red", "one cat", "abc"):
            tokens = context.model.tokenize(text)
            assert tokens[0] == 2
            assert tokens[-1] == 3
            states = _forward(file, tokens)
            expected = {"MEAN": states.mean(axis=0), "CLS": states[0], "LAST": states[-1]}[pooling.name]
            # GELU is a table in F16 there.
            assert np.abs(embed(context, tokens) - expected).max() < 5e-3


def test_what_cannot_be_embedded_is_said(tmp_path: Path) -> None:
    with open_context([write_small_bert(tmp_path / "bert.gguf")], SETTINGS) as context:
        for count in (0, 65):
            with pytest.raises(EngineError, match=f"A text of {count} tokens"):
                embed(context, np.full(count, 5, dtype=np.int32))
    with open_context([write_random_llama(tmp_path / "llama.gguf")], SETTINGS) as context:
        assert not pools(context)
        with pytest.raises(EngineError, match="no pooled embeddings"):
            embed(context, np.array([1], dtype=np.int32))


def test_logits_that_were_never_written_are_not_read(tmp_path: Path) -> None:
    with open_context([write_small_bert(tmp_path / "bert.gguf")], SETTINGS) as context:
        windows = np.full((2, 64), 5, dtype=np.int32)
        with pytest.raises(NoLanguageHead, match=r"bert\.gguf has no language head.*\n.*suites/embeddings"):
            list(context.score(windows))
        with pytest.raises(NoLanguageHead):
            Context(context.model, SETTINGS).logits(windows[0])
        with pytest.raises(NoLanguageHead):
            next(context.generate(windows[0, :8], 4))
