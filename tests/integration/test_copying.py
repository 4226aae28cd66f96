"""Copy scores from files: the whole circuit's eigenvalues, the right KV head, joint projections, and none at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from gguf_harness.inputs.sources import expand
from gguf_harness.measure.attention.copying import copy_scores
from tests.integration.small_models import HEADS, write_small_model
from tests.random_llama import write_random_llama

Array = NDArray[np.float64]

(TINY,) = expand("tiny")


def _weights(file: Path) -> dict[str, Array]:
    return {tensor.name: tensor.data.astype(np.float64) for tensor in GGUFReader(file).tensors}


def _places(layers: int, heads: int) -> NDArray[np.int64]:
    return np.array([(layer, head) for layer in range(layers) for head in range(heads)])


def _direct(weights: dict[str, Array], layer: int, w_v: Array, w_o: Array) -> float:
    """The score from W_O W_V W_E W_U, [d_model, d_model], the residual stream to itself.

    Its nonzero eigenvalues are those of W_U W_O W_V W_E over the vocabulary. Gains of norms at both ends.

    Args:
        weights: of the file, in float64.
        layer: of the head.
        w_v: [d_head, d_model].
        w_o: [d_model, d_head].
    """
    w_e = weights["token_embd.weight"] * weights[f"blk.{layer}.attn_norm.weight"]
    w_u = weights.get("output.weight", weights["token_embd.weight"]) * weights["output_norm.weight"]
    eigenvalues = np.linalg.eigvals(w_o @ w_v @ (w_e.T @ w_u))
    return float(eigenvalues.sum().real / np.abs(eigenvalues).sum())


@pytest.mark.parametrize(("layer", "head"), [(1, 1), (2, 7), (4, 2)])
def test_they_are_those_of_the_whole_circuit(layer: int, head: int) -> None:
    weights = _weights(TINY.files[0])
    scores = copy_scores(TINY.files, 5, _places(5, 8))
    assert scores.shape == (40,)
    # Heads 2 i and 2 i + 1 of queries share values i.
    w_v = weights[f"blk.{layer}.attn_v.weight"].reshape(4, 32, 256)[head // 2]
    w_o = weights[f"blk.{layer}.attn_output.weight"].reshape(256, 8, 32)[:, head]
    assert scores[8 * layer + head] == pytest.approx(_direct(weights, layer, w_v, w_o), abs=1e-5)
    # Another head's values would be seen.
    other = weights[f"blk.{layer}.attn_v.weight"].reshape(4, 32, 256)[(head // 2 + 1) % 4]
    assert abs(scores[8 * layer + head] - _direct(weights, layer, other, w_o)) > 1e-2


def test_they_are_those_of_the_circuit_over_the_vocabulary(tmp_path: Path) -> None:
    """[258, 258] of a random model: small enough for the definition as published."""
    file = write_random_llama(tmp_path / "random.gguf")
    weights = _weights(file)
    scores = copy_scores([file], 2, _places(2, 4))
    w_e = weights["token_embd.weight"] * weights["blk.1.attn_norm.weight"]
    w_u = weights["token_embd.weight"] * weights["output_norm.weight"]
    for head in range(4):
        w_v = weights["blk.1.attn_v.weight"].reshape(2, 64, 256)[head // 2]
        w_o = weights["blk.1.attn_output.weight"].reshape(256, 4, 64)[:, head]
        eigenvalues = np.linalg.eigvals(w_u @ w_o @ w_v @ w_e.T)
        expected = eigenvalues.sum().real / np.abs(eigenvalues).sum()
        assert scores[4 + head] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("kind", "kv_heads"), [("gpt2", HEADS), ("bloom", HEADS), ("phi3", HEADS // 2)])
def test_values_of_a_joint_projection(tmp_path: Path, kind: str, kv_heads: int) -> None:
    file = write_small_model(tmp_path / f"{kind}.gguf", kind, 2)
    weights = _weights(file)
    scores = copy_scores([file], 2, _places(2, HEADS))
    d_head = 64 // HEADS
    for layer in range(2):
        joint = weights[f"blk.{layer}.attn_qkv.weight"]
        values = joint[(HEADS + kv_heads) * d_head :].reshape(kv_heads, d_head, 64)
        outputs = weights[f"blk.{layer}.attn_output.weight"].reshape(64, HEADS, d_head)
        for head in range(HEADS):
            expected = _direct(weights, layer, values[head * kv_heads // HEADS], outputs[:, head])
            assert scores[HEADS * layer + head] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["gemma3", "qwen3", "smollm3"])
def test_heads_of_a_size_of_their_own(tmp_path: Path, kind: str) -> None:
    """Gemma and Qwen 3: all heads together are wider than the residual stream."""
    scores = copy_scores([write_small_model(tmp_path / "small.gguf", kind, 2)], 2, _places(2, HEADS))
    assert np.isfinite(scores).all()
    assert (np.abs(scores) <= 1).all()


def _without(source: Path, destination: Path, left_out: str) -> Path:
    """The tensors of a file but those whose name holds some words: no model, but matrices."""
    writer = GGUFWriter(destination, "llama")
    for tensor in GGUFReader(source).tensors:
        if left_out not in tensor.name:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination


@pytest.mark.parametrize(
    ("left_out", "without"),
    [("blk.0.attn_v", [0]), ("attn_v", [0, 1]), ("blk.1.attn_output", [1]), ("token_embd", [0, 1])],
)
def test_what_is_not_there_has_no_score(tmp_path: Path, left_out: str, without: list[int]) -> None:
    file = _without(write_random_llama(tmp_path / "whole.gguf"), tmp_path / "part.gguf", left_out)
    scores = copy_scores([file], 2, _places(2, 4)).reshape(2, 4)
    assert [layer for layer in range(2) if np.isnan(scores[layer]).all()] == without
    assert np.isfinite(np.delete(scores, without, axis=0)).all()


def test_an_encoder_and_decoder_has_none(tmp_path: Path) -> None:
    assert np.isnan(copy_scores([write_small_model(tmp_path / "t5.gguf", "t5", 2)], 2, _places(2, HEADS))).all()
