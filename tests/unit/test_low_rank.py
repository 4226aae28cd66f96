"""Sizes of low-rank changes, and adapters merged into a model's file: against plain products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.errors import NoData
from gguf_harness.gguf.lora_files import read_lora
from gguf_harness.gguf.merged import write_merged
from gguf_harness.gguf.weights import Weights
from gguf_harness.metrics.low_rank import change_estimates, effective_rank, measure_low_rank
from gguf_harness.metrics.records import WHOLE, Place
from tests.random_llama import write_random_llama
from tests.random_lora import merge_lora, write_lora, write_random_lora


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 30), st.integers(1, 30))
def test_norm_and_singular_values_are_those_of_the_product(seed: int, rank: int, rows: int, columns: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((rank, columns)), random.standard_normal((rows, rank))
    size = measure_low_rank(a, b)
    product = np.linalg.svd(b @ a, compute_uv=False)
    assert size.norm == pytest.approx(np.linalg.norm(b @ a))
    shared = min(len(product), len(size.singular))
    assert size.singular[:shared] == pytest.approx(product[:shared], abs=1e-9 * product[0])
    assert 1 - 1e-9 <= effective_rank(size.singular) <= min(rank, rows, columns) + 1e-6


def test_effective_rank() -> None:
    assert effective_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(np.array([5.0, 0.0])) == 1
    with pytest.raises(NoData, match="has no rank"):
        effective_rank(np.zeros(3))


def test_estimates_of_changes() -> None:
    arrays = {
        "tensor": np.array(["blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight"]),
        "role": np.array(["attn_q", "attn_q", "output"]),
        "layer": np.array([0, 1, -1]),
        "rank": np.array([2, 4, 4]),
        "effective_rank": np.array([1.5, 3.0, np.nan]),
        "norm": np.array([3.0, 4.0, 0.0]),
        "weights": np.array([10.0, 20.0, 20.0]),
    }
    found = {(each.metric, each.place): each.value for each in change_estimates(arrays)}
    assert found["lora_rank", WHOLE] == 4
    assert found["lora_relative_norm", WHOLE] == pytest.approx(5 / 30)
    assert found["lora_effective_rank", WHOLE] == 2.25
    assert found["lora_relative_norm", Place(1)] == pytest.approx(0.2)
    assert found["lora_relative_norm", Place(part="output")] == 0
    assert ("lora_effective_rank", Place(part="output")) not in found


def test_merged_files_are_those_of_a_plain_product(llama_file: Path, tmp_path: Path) -> None:
    first = write_random_lora(tmp_path / "a.gguf", llama_file)
    second = write_random_lora(tmp_path / "b.gguf", llama_file, seed=1, rank=8, alpha=3, matrices=["attn_q"])
    folder = tmp_path / "merged"
    folder.mkdir()
    (merged,) = write_merged([llama_file], [(read_lora(first), 0.7), (read_lora(second), -1.5)], folder)
    expected = merge_lora(tmp_path / "expected.gguf", llama_file, (first, 0.7), (second, -1.5))
    own, other = GGUFReader(merged), GGUFReader(expected)
    assert {f for f in own.fields if not f.startswith("GGUF.")} == {
        f for f in other.fields if not f.startswith("GGUF.")
    }
    values = {tensor.name: tensor for tensor in other.tensors}
    assert len(own.tensors) == len(values)
    for tensor in own.tensors:
        assert tensor.tensor_type == values[tensor.name].tensor_type
        np.testing.assert_allclose(tensor.data, values[tensor.name].data, atol=1e-6)
    changed = {each.name for each in own.tensors} - {
        each.name for each in GGUFReader(llama_file).tensors if (each.data == Weights([merged]).tensor(each.name)).all()
    }
    assert changed == set(read_lora(first).pairs)


def test_experts_and_embeddings_are_merged_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (30, 8), "blk.0.ffn_up_exps.weight": (3, 6, 8)}
    model, lora = tmp_path / "model.gguf", tmp_path / "lora.gguf"
    weights = {
        name: random.standard_normal(shape, dtype=np.float32).astype(np.float16) for name, shape in shapes.items()
    }
    writer = GGUFWriter(model, "llama")
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    factors = {
        "token_embd.weight.lora_a": (30, 2), "token_embd.weight.lora_b": (8, 2),
        "blk.0.ffn_up_exps.weight.lora_a": (3, 2, 8), "blk.0.ffn_up_exps.weight.lora_b": (3, 6, 2),
    }  # fmt: skip
    a = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in factors.items()}
    write_lora(lora, a, alpha=4)
    folder = tmp_path / "merged"
    folder.mkdir()
    merged = Weights(write_merged([model], [(read_lora(lora), 0.5)], folder))
    embeddings = a["token_embd.weight.lora_a"] @ a["token_embd.weight.lora_b"].T
    experts = a["blk.0.ffn_up_exps.weight.lora_b"] @ a["blk.0.ffn_up_exps.weight.lora_a"]
    for name, change in (("token_embd.weight", embeddings), ("blk.0.ffn_up_exps.weight", experts)):
        assert merged.type(name) == "F16"
        np.testing.assert_allclose(merged.tensor(name), weights[name].astype(np.float32) + change, rtol=2e-3, atol=2e-3)


def test_quantized_matrices_become_f16_and_others_stay(tmp_path: Path) -> None:
    from gguf_harness.engine.quantize import quantize_file

    source = write_random_llama(tmp_path / "model.gguf")
    quantize_file([source], tmp_path / "q8.gguf", "Q8_0", threads=1)
    lora = write_random_lora(tmp_path / "lora.gguf", source, matrices=["attn_q"])
    folder = tmp_path / "merged"
    folder.mkdir()
    (merged,) = write_merged([tmp_path / "q8.gguf"], [(read_lora(lora), 1.0)], folder)
    before, after = Weights([tmp_path / "q8.gguf"]), Weights([merged])
    assert after.type("blk.0.attn_q.weight") == "F16"
    assert after.type("blk.0.attn_k.weight") == before.type("blk.0.attn_k.weight") == "Q8_0"
    assert (after.tensor("blk.0.attn_k.weight") == before.tensor("blk.0.attn_k.weight")).all()
