"""The engine on real llama.cpp: sessions, taps, tensors, quantization."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.engine import binding
from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.parameters import context_parameters
from gguf_harness.engine.quantize import load_imatrix, quantize_file
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.tap_names import TAPS
from gguf_harness.engine.taps import Taps
from gguf_harness.errors import EngineError, OptionError, QuantizeError, TapNotFound, UnsupportedEngine
from gguf_harness.gguf.header import read_header
from tests.devices import near, near_taps
from tests.loaded import open_context
from tests.random_llama import BOS, write_random_llama

pytestmark = pytest.mark.model

SETTINGS = SessionSettings(
    n_ctx=64, n_batch=128, threads=2, flash_attention="off", cache_type_k="f32", cache_type_v="f32"
)
TEXT = b"the quick brown fox jumps over the lazy dog, and the fox is quick"
N_LAYER = 2

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def context(llama_file: Path) -> Iterator[Context]:
    with open_context([llama_file], SETTINGS) as context:
        yield context


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


class _NumpyLlama:
    """A llama forward pass from the paper's equations, in float64 (Touvron et al., 2023; RoPE on adjacent pairs)."""

    def __init__(self, path: Path, heads: int = 4) -> None:
        self.weights = {tensor.name: np.asarray(tensor.data, dtype=np.float64) for tensor in GGUFReader(path).tensors}
        self.heads = heads
        self.seen: dict[str, NDArray[np.float64]] = {}

    def _norm(self, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * self.weights[name])

    @staticmethod
    def _rope(x: NDArray[np.float64]) -> NDArray[np.float64]:
        n, _, size = x.shape
        angle = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
        cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
        turned = np.empty_like(x)
        turned[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
        turned[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
        return turned

    def __call__(self, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
        x = self.weights["token_embd.weight"][tokens]
        n, width = x.shape
        size = width // self.heads
        self.seen["embed"] = x
        for layer in range(N_LAYER):
            w = {name.split(".", 2)[2]: v for name, v in self.weights.items() if name.startswith(f"blk.{layer}.")}
            tap = f"blocks.{layer}"
            h = self._norm(x, f"blk.{layer}.attn_norm.weight")
            q, k, v = (((h @ w[f"attn_{name}.weight"].T).reshape(n, -1, size)) for name in "qkv")
            q, k = self._rope(q), self._rope(k)
            groups = self.heads // k.shape[1]
            scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, groups, axis=1))
            masked = np.where(np.tril(np.ones((n, n), dtype=bool)), scores / np.sqrt(size), -np.inf)
            pattern = _softmax(masked)
            z = np.einsum("hqk,khd->qhd", pattern, np.repeat(v, groups, axis=1)).reshape(n, width)
            attn_out = z @ w["attn_output.weight"].T
            mid = x + attn_out
            h = self._norm(mid, f"blk.{layer}.ffn_norm.weight")
            gate = h @ w["ffn_gate.weight"].T
            mlp_out = (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up.weight"].T)) @ w["ffn_down.weight"].T
            x = mid + mlp_out
            self.seen |= {
                f"{tap}.attn.q": q, f"{tap}.attn.k": k, f"{tap}.attn.v": v, f"{tap}.attn.scores": scores,
                f"{tap}.attn.pattern": pattern, f"{tap}.attn.z": z, f"{tap}.attn_out": attn_out,
                f"{tap}.resid_mid": mid, f"{tap}.mlp_out": mlp_out, f"{tap}.resid_post": x,
            }  # fmt: skip
        self.seen["ln_final.normalized"] = self._norm(x, "output_norm.weight")
        self.seen["logits"] = self.seen["ln_final.normalized"] @ self.weights["token_embd.weight"].T
        return self.seen["logits"]


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_logits_equal_a_numpy_forward(context: Context, llama_file: Path) -> None:
    tokens = context.model.tokenize(TEXT)[:48]
    assert np.abs(context.logits(tokens) - _NumpyLlama(llama_file)(tokens)).max() < near(2e-3, "logits")


def test_tokens_round_trip(context: Context) -> None:
    text = "Grüße, 世界! \t\x00 <|bos|>".encode()
    tokens = context.model.tokenize(text)
    assert context.model.detokenize(tokens) == text
    assert BOS not in tokens
    assert context.model.tokenize(b"<|bos|>", parse_special=True).tolist() == [BOS]
    assert context.model.tokenize(b"").tolist() == []


def test_windows_score_what_one_by_one_decoding_scores(context: Context) -> None:
    """Two windows share a batch, a third stands alone: the same logits as each window alone in full."""
    windows = np.resize(context.model.tokenize(TEXT), (3, 64)).astype(np.int32)
    blocks = {block.window: (block.logits.copy(), block.targets) for block in context.score(windows)}
    assert sorted(blocks) == [0, 1, 2]
    for window, (logits, targets) in blocks.items():
        alone = context.logits(windows[window])
        assert logits.shape == (31, context.model.vocabulary.n_tokens)
        assert np.abs(logits - alone[32:63]).max() < near(1e-4, "logits")
        assert (targets == windows[window, 33:]).all()


def test_a_window_longer_than_a_batch_is_scored_in_parts(llama_file: Path, context: Context) -> None:
    windows = np.resize(context.model.tokenize(TEXT), (2, 64)).astype(np.int32)
    whole = np.concatenate([block.logits.copy() for block in context.score(windows)])
    settings = SessionSettings(
        n_ctx=64, n_batch=24, n_ubatch=24, threads=2, cache_type_k="f32", cache_type_v="f32", flash_attention="off"
    )
    with open_context([llama_file], settings) as small:
        blocks = [(b.window, b.row, b.logits.copy(), b.targets.copy()) for b in small.score(windows)]
    assert len(blocks) == 4
    assert np.abs(np.concatenate([logits for _, _, logits, _ in blocks]) - whole).max() < near(1e-4, "logits")
    targets = np.concatenate([targets for *_, targets in blocks])
    assert (targets == windows[:, 33:].ravel()).all()


@pytest.mark.parametrize("n_batch", [128, 24])
def test_any_position_can_be_the_first_that_is_scored(llama_file: Path, context: Context, n_batch: int) -> None:
    windows = np.resize(context.model.tokenize(TEXT), (3, 64)).astype(np.int32)
    alone = [context.logits(window) for window in windows]
    with open_context([llama_file], replace(SETTINGS, n_batch=n_batch)) as other:
        for first in (0, 1, 50, 62):
            found: dict[int, list[tuple[int, NDArray[np.float32], NDArray[np.int32]]]] = {}
            for block in other.score(windows, score_from=first):
                found.setdefault(block.window, []).append((block.row, block.logits.copy(), block.targets.copy()))
            for window, parts in found.items():
                assert [row for row, *_ in parts] == np.cumsum([0, *(len(logits) for _, logits, _ in parts)])[
                    :-1
                ].tolist()
                scored = np.concatenate([logits for _, logits, _ in parts])
                assert np.abs(scored - alone[window][first:63]).max() < near(1e-4, "logits")
                assert (np.concatenate([targets for *_, targets in parts]) == windows[window, first + 1 :]).all()
            assert sorted(found) == [0, 1, 2]


def test_bos_replaces_the_first_token_where_asked_for(tmp_path: Path) -> None:
    file = write_random_llama(tmp_path / "bos.gguf", add_bos=True)
    with open_context([file], SETTINGS) as context:
        assert context.model.vocabulary.add_bos
        tokens = context.model.tokenize(TEXT)
        assert tokens[0] == BOS
        windows = np.resize(tokens[1:], (1, 64)).astype(np.int32)
        (block,) = context.score(windows)
        scored = block.logits.copy()
        replaced = windows[0].copy()
        replaced[0] = BOS
        assert np.abs(scored - context.logits(replaced)[32:63]).max() < near(1e-4, "logits")
        assert (windows[0, 0] != BOS).all()


def test_greedy_generation_follows_the_logits(context: Context) -> None:
    prompt = context.model.tokenize(TEXT[:20])
    generated = list(context.generate(prompt, 6))
    tokens = prompt.tolist()
    for token in generated:
        assert token == int(context.logits(np.array(tokens, dtype=np.int32))[-1].argmax())
        tokens.append(token)
    assert list(context.generate(prompt, 6)) == generated


def test_memory_is_what_llama_cpp_reports(context: Context, llama_file: Path) -> None:
    memory = context.memory
    assert memory.weights == pytest.approx(llama_file.stat().st_size, rel=near(0.05, "weights"))
    # Two sequences of 64 (padded to 256 cells), 2 layers, K and V of 2 heads of 64, four bytes each.
    assert memory.kv_cache is not None
    assert memory.kv_cache % (N_LAYER * 2 * 128 * 4) == 0
    assert memory.compute


@pytest.mark.parametrize(("layers", "offloads"), [(0, False), (-1, True), (3, True)])
def test_without_layers_on_a_gpu_no_product_is_sent_there(context: Context, layers: int, offloads: bool) -> None:
    """What llama.cpp is asked for: on a CPU it is the same, and no GPU has been asked yet."""
    parameters = context_parameters(replace(SETTINGS, n_gpu_layers=layers), context.model.pointer)
    assert bool(parameters.op_offload) == offloads


def test_what_llama_cpp_refuses_is_one_message(tmp_path: Path, llama_file: Path) -> None:
    content = llama_file.read_bytes().replace(
        b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama",
        b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00lamma",
    )
    file = tmp_path / "unknown.gguf"
    file.write_bytes(content)
    with pytest.raises(EngineError, match=r"could not load unknown\.gguf: .*unknown model architecture: 'lamma'"):
        Model([file])


@pytest.mark.parametrize("changes", [{"n_ctx": 0}, {"threads": 0}, {"n_ctx": 100, "n_batch": 256}])
def test_impossible_settings_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        SessionSettings(**changes)  # type: ignore[arg-type]


# -- taps -------------------------------------------------------------------------------------------------------------


def test_every_tap_equals_a_numpy_forward(llama_file: Path) -> None:
    names = [tap.replace("{i}", str(layer)) for tap in TAPS for layer in range(N_LAYER)]
    seen: dict[str, Array] = {}
    taps = Taps("llama", N_LAYER, read=dict.fromkeys(names, seen.__setitem__))
    forward = _NumpyLlama(llama_file)
    with open_context([llama_file], SETTINGS, taps) as context:
        tokens = context.model.tokenize(TEXT)[:40]
        context.logits(tokens)
    forward(tokens)
    for name, expected in forward.seen.items():
        found = seen[name][..., :40] if name.endswith(("scores", "pattern")) else seen[name]
        if name.endswith("scores"):
            lower = np.tril(np.ones((40, 40), dtype=bool))
            assert np.abs((found - expected)[:, lower]).max() < near_taps(1e-2, expected[:, lower]), name
            continue
        assert found.shape == expected.shape, name
        allowed = near(1e-4, "pattern") if name.endswith("pattern") else near_taps(2e-3, expected)
        assert np.abs(found - expected).max() < allowed, name
    pattern = seen["blocks.1.attn.pattern"]
    assert np.abs(pattern.sum(axis=-1) - 1).max() < 1e-5
    assert not pattern[:, :, 40:].any()


def test_an_identity_patch_changes_no_bit(llama_file: Path, context: Context) -> None:
    tokens = context.model.tokenize(TEXT)[:40]
    plain = context.logits(tokens)
    names = ["blocks.0.attn.z", "blocks.1.resid_mid", "blocks.1.attn.q", "blocks.0.attn.pattern"]
    taps = Taps("llama", N_LAYER, patch=dict.fromkeys(names, lambda _, values: values))
    with open_context([llama_file], SETTINGS, taps) as patched:
        assert (patched.logits(tokens) == plain).all()


def test_zeroing_a_head_equals_zeroing_its_columns(llama_file: Path, tmp_path: Path) -> None:
    """Ablation in the graph against a file whose output projection does not see the head."""

    def zero_head(_: str, values: Array) -> Array:
        changed = values.copy()
        changed[:, 64:128] = 0
        return changed

    taps = Taps("llama", N_LAYER, patch={"blocks.1.attn.z": zero_head})
    with open_context([llama_file], SETTINGS, taps) as context:
        tokens = context.model.tokenize(TEXT)[:40]
        ablated = context.logits(tokens)
    copy = tmp_path / "ablated.gguf"
    copy.write_bytes(llama_file.read_bytes())
    tensor = next(t for t in GGUFReader(copy, "r+").tensors if t.name == "blk.1.attn_output.weight")
    tensor.data[:, 64:128] = 0
    tensor.data.flush()  # type: ignore[attr-defined]
    with open_context([copy], SETTINGS) as context:
        assert np.abs(context.logits(tokens) - ablated).max() < near(1e-3, "logits")


def test_an_exception_in_a_reader_is_raised_after_the_decode(llama_file: Path) -> None:
    def fail(name: str, _: Array) -> None:
        raise ValueError(f"reader of {name}")

    taps = Taps("llama", N_LAYER, read={"blocks.0.resid_mid": fail})
    with open_context([llama_file], SETTINGS, taps) as context:
        tokens = context.model.tokenize(TEXT)[:8]
        with pytest.raises(ValueError, match=r"reader of blocks\.0\.resid_mid"):
            context.logits(tokens)


def test_a_patch_of_another_shape_is_refused(llama_file: Path) -> None:
    taps = Taps("llama", N_LAYER, patch={"blocks.0.attn.z": lambda _, values: values[:, :7]})
    with open_context([llama_file], SETTINGS, taps) as context, pytest.raises(EngineError, match="cannot be patched"):
        context.logits(context.model.tokenize(TEXT)[:8])


def test_a_pattern_under_flash_attention_is_said(llama_file: Path) -> None:
    taps = Taps("llama", N_LAYER, read={"blocks.0.attn.pattern": lambda *_: None})
    settings = SessionSettings(n_ctx=64, n_batch=64, threads=2, flash_attention="on")
    with open_context([llama_file], settings, taps) as context, pytest.raises(TapNotFound, match="flash attention off"):
        context.logits(context.model.tokenize(TEXT)[:8])


# -- tensors of the engine


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.3.1")
    with pytest.raises(UnsupportedEngine, match=r"llama-cpp-python 0\.3\.1 is installed; .* supports 0\.3\.36"):
        binding.require_supported_engine()


def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ggml whose tensors have one more field in front: nothing may be read from it."""

    class Moved(ctypes.Structure):
        _fields_ = (("new", ctypes.c_int64), *binding.Tensor._fields_)

    arguments, _ = binding._SIGNATURES["ggml_view_4d"]
    pointer = ctypes.POINTER(Moved)
    signatures = {
        "ggml_new_tensor_4d": (binding._SIGNATURES["ggml_new_tensor_4d"][0], pointer),
        "ggml_view_4d": ([ctypes.c_void_p, ctypes.c_void_p, *arguments[2:]], pointer),
        "ggml_set_name": ([ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p),
        "ggml_set_input": ([ctypes.c_void_p], None),
    }
    for name, signature in signatures.items():
        monkeypatch.setitem(binding._SIGNATURES, name, signature)
    monkeypatch.setattr(binding, "Tensor", Moved)
    binding.library.cache_clear()
    binding.check_layout.cache_clear()
    try:
        with pytest.raises(UnsupportedEngine, match="has another tensor layout than expected"):
            binding.check_layout()
    finally:
        monkeypatch.undo()
        binding.library.cache_clear()
        binding.check_layout.cache_clear()


def test_the_engine_describes_itself() -> None:
    info = binding.engine_info()
    assert info.llama_cpp_python == "0.3.36"
    assert "CPU" in [backend["name"] for backend in info.backends]
    assert info.system_info


# -- quantization


def test_q8_0_equals_the_gguf_package(llama_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "q8.gguf"
    steps: list[tuple[int, int]] = []
    quantize_file([llama_file], file, "Q8_0", threads=2, progress=lambda done, total: steps.append((done, total)))
    source = {tensor.name: tensor for tensor in GGUFReader(llama_file).tensors}
    for tensor in GGUFReader(file).tensors:
        values = np.asarray(source[tensor.name].data)
        if tensor.tensor_type == GGMLQuantizationType.Q8_0:
            assert (np.asarray(tensor.data) == quantize(values, GGMLQuantizationType.Q8_0)).all(), tensor.name
        else:
            assert (np.asarray(tensor.data) == values).all(), tensor.name
    assert steps[-1] == (len(source), len(source))


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "IQ4_XS", "Q2_K", "TQ1_0"])
def test_every_type_is_what_its_header_says(llama_file: Path, tmp_path: Path, quant: str) -> None:
    file = tmp_path / f"{quant}.gguf"
    quantize_file([llama_file], file, quant, threads=2)
    original = {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(llama_file).tensors}
    reader = GGUFReader(file)
    assert read_header(file).file_bytes < llama_file.stat().st_size
    error = total = 0.0
    for tensor in reader.tensors:
        values = dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(original[tensor.name].shape)
        error += float(((values - original[tensor.name]) ** 2).sum())
        total += float((original[tensor.name] ** 2).sum())
    bound = {"F16": 1e-6, "BF16": 1e-4, "Q6_K": 1e-3, "Q5_K_M": 4e-3, "Q4_K_M": 0.01}.get(quant, 0.5)
    assert error / total < bound
    assert list(tmp_path.iterdir()) == [file]


def test_types_can_be_chosen_by_tensor(llama_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "mixed.gguf"
    quantize_file([llama_file], file, "Q8_0", threads=2, tensor_types={r"blk\.0\.ffn_up": "q4_0"})
    types = {tensor.name: tensor.type for tensor in read_header(file).tensors}
    assert types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["blk.1.ffn_up.weight"] == "Q8_0"


def test_an_importance_matrix_changes_the_file(llama_file: Path, tmp_path: Path) -> None:
    from gguf import GGUFWriter

    matrix = tmp_path / "imatrix.gguf"
    writer = GGUFWriter(matrix, "imatrix")
    importance = np.linspace(1, 100, 256, dtype=np.float32)[None, :]
    writer.add_type("imatrix")
    names = [t.name for t in read_header(llama_file).tensors if t.name.startswith("blk") and len(t.shape) == 2]
    for name in names:
        columns = 512 if "ffn_down" in name else 256
        writer.add_tensor(f"{name}.in_sum2", np.resize(importance, (1, columns)).astype(np.float32) * 3)
        writer.add_tensor(f"{name}.counts", np.full((1, 1), 3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load_imatrix(matrix)
    assert loaded[names[0]] == pytest.approx(np.resize(importance, loaded[names[0]].size))
    with_matrix, without = tmp_path / "with.gguf", tmp_path / "without.gguf"
    quantize_file([llama_file], with_matrix, "IQ2_XS", threads=2, imatrix=matrix)
    quantize_file([llama_file], without, "Q2_K", threads=2)
    assert read_header(with_matrix).file_bytes < read_header(without).file_bytes


@pytest.mark.parametrize("quant", ["IQ2_XXS", "IQ1_S"])
def test_a_missing_importance_matrix_is_said_before_llama_cpp_is_asked(
    llama_file: Path, tmp_path: Path, quant: str
) -> None:
    with pytest.raises(QuantizeError, match=f"{quant} needs an importance matrix"):
        quantize_file([llama_file], tmp_path / "x.gguf", quant, threads=1)


def test_a_type_that_needs_one_for_some_tensors_says_so(llama_file: Path, tmp_path: Path) -> None:
    """IQ3_XS gives some tensors of this model a type that llama.cpp makes only with an importance matrix."""
    with pytest.raises(QuantizeError, match="requires an imatrix") as caught:
        quantize_file([llama_file], tmp_path / "x.gguf", "IQ3_XS", threads=1)
    assert "--gguf-imatrix" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(llama_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="Unknown tensor type"):
        quantize_file([llama_file], tmp_path / "x.gguf", "Q8_0", threads=1, tensor_types={"a": "Q99"})
    with pytest.raises(QuantizeError, match="contains no importance matrix"):
        quantize_file([llama_file], tmp_path / "x.gguf", "Q8_0", threads=1, imatrix=llama_file)
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_said_before_starting(llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(QuantizeError, match=r"0\.0 GB are free"):
        quantize_file([llama_file], tmp_path / "x.gguf", "Q8_0", threads=1)


@given(st.text())
def test_every_text_comes_back_byte_for_byte(context: Context, text: str) -> None:
    """Spaces before punctuation too: this vocabulary is of the kind for which llama_detokenize drops them."""
    for content in (text, f" {text} . , ?"):
        assert context.model.detokenize(context.model.tokenize(content, add_special=False)) == content.encode()
