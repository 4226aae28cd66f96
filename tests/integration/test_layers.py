"""Hidden states, logit lens, attribution and patching on real models, against PyTorch and against llama.cpp itself."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.quantize import quantize_file
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.taps import Patcher, Taps
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import CorpusError, NoData, PromptError
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.prompts import Prompt, PromptSet, load_prompts
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.core import Core
from gguf_harness.measure.layers.calls import Layers
from gguf_harness.measure.layers.patching import measure_importance, measure_interchange
from gguf_harness.measure.layers.states import MOST_TOKENS, LayersRequest, PromptTokens, StateFiles, decode_states
from gguf_harness.measure.layers.tasks import STATES_FOLDER, LayersResult, _lens, _stream, measure_layers
from gguf_harness.measure.layers.unembedding import ModelFile, find_head
from gguf_harness.metrics.clusters import by_layer
from gguf_harness.metrics.lens import head_logits
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.cache import Cache, Entry
from tests.command_line import parse_command_line
from tests.devices import near, near_taps
from tests.integration.small_models import ARCHITECTURES, write_small_model
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

F32 = NDArray[np.float32]

DATA = Path(__file__).parent.parent / "data"
(TINY,) = expand("tiny")
PROMPTS = (Prompt("fox", "The quick brown fox"), Prompt("long", "What is a list comprehension? " * 40))
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
# F32 caches: what differs then is the models.
SETTINGS = SessionSettings(threads=2, flash_attention="off", cache_type_k="f32", cache_type_v="f32")


@pytest.fixture(scope="module")
def tiny_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of tiny in F32."""
    file = tmp_path_factory.mktemp("tiny") / "tiny-F32.gguf"
    quantize_file(TINY.files, file, "F32", threads=2)
    return file


def _request(file: Path, folder: Path, prompts: Sequence[Prompt] = PROMPTS) -> LayersRequest:
    return LayersRequest(file.stem, (file,), SETTINGS, tuple(prompts), folder / STATES_FOLDER, 10**9)


def _measure(worker: WorkerContext, file: Path, folder: Path, reference: Path | None = None) -> LayersResult:
    """Measured and stored, states included."""
    result = measure_layers(worker, _request(file, folder), reference, True)
    Entry(Cache(folder), folder, {}).save(result.facts, result.arrays)
    return result


def _given(*parts: NDArray[np.int32]) -> PromptTokens:
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return PromptTokens(tuple(f"p{i}" for i in range(len(parts))), np.concatenate(parts), starts, {})


def _decode(worker: WorkerContext, file: Path, folder: Path, given: PromptTokens, lanes: int = 2) -> StateFiles:
    return decode_states(worker, worker.model([file], SETTINGS.n_gpu_layers), lanes, _request(file, folder), given)


@pytest.mark.parametrize(("precision", "limit"), [("F16", 1e-2), ("F32", 1e-4)])
def test_states_are_pytorchs(
    worker: WorkerContext, tiny_f32: Path, tmp_path: Path, precision: str, limit: float
) -> None:
    stored = [dict(np.load(DATA / f"tiny-{name}.npz")) for name in ("text", "repetition")]
    file = tiny_f32 if precision == "F32" else TINY.files[0]
    files = _decode(worker, file, tmp_path, _given(*(truth["tokens"].astype(np.int32) for truth in stored)))

    def compare(found: F32, tap: str) -> None:
        expected = np.concatenate([truth[tap] for truth in stored])
        assert np.abs(found - expected).max() < near(limit, "taps") * np.abs(expected).max(), tap

    compare(files.load("embed"), "embed")
    compare(files.load("final"), "ln_final.normalized")
    assert np.abs(files.load("logits") - np.concatenate([truth["logits"] for truth in stored])).max() < near(
        2e-2, "logits"
    )
    for kind, layer in itertools.product(files.kinds, range(5)):
        compare(files.load(kind)[layer], f"blocks.{layer}.{kind}")
    assert len(files.kinds) == 4


@pytest.mark.parametrize("name", ["tiny", "smollm2-135m"])
def test_the_stream_is_the_sum_of_what_is_added(
    worker: WorkerContext, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    file = TINY.files[0] if name == "tiny" else request.getfixturevalue("smollm2_file")
    files = StateFiles(_measured(worker, file, tmp_path) / STATES_FOLDER)
    post = files.load("resid_post")
    for layer in range(len(post)):
        middle = files.load("resid_mid")[layer]
        for whole, parts in (
            (middle, files.inputs(layer) + files.load("attn_out")[layer]),
            (post[layer], middle + files.load("mlp_out")[layer]),
        ):
            # llama.cpp adds these very tensors, also where entries are some ten thousand (SmolLM2's first token).
            assert np.abs(whole - parts).max() < 1e-3


def _measured(worker: WorkerContext, file: Path, folder: Path) -> Path:
    result = measure_layers(worker, _request(file, folder, PROMPTS[:1]), None, True)
    Entry(Cache(folder), folder, {}).save(result.facts, result.arrays)
    return folder


@pytest.mark.parametrize(
    ("quant", "limit"),
    # llama.cpp rounds activations to F16 for F16 weights, and to 8 bits for quantized ones.
    [("F32", 2e-4), ("F16", 2e-2), ("Q8_0", 0.3), ("Q4_K_M", 0.3)],
)
def test_the_lens_of_the_last_layer_is_the_models_output(
    worker: WorkerContext, tmp_path: Path, quant: str, limit: float
) -> None:
    file = tmp_path / f"{quant}.gguf"
    quantize_file(TINY.files, file, quant, threads=2)
    result = _measure(worker, file, tmp_path / quant)
    files = StateFiles(tmp_path / quant / STATES_FOLDER)
    final, logits = files.load("resid_post")[-1], files.load("logits")
    head = find_head(ModelFile([file]), final, files.load("final"), logits)
    largest = float(np.abs(head_logits(head, final) - logits).max())
    print(f"{quant}: largest difference of a logit {largest:.2g}")
    assert largest < near(limit, "logits")
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in result.arrays.items()}
    whole = arrays["direct_embed"] + arrays["direct_attn"].sum(0) + arrays["direct_mlp"].sum(0)
    assert np.abs(whole - arrays["direct_logit"]).max() < 1e-4
    predicted = np.take_along_axis(logits, result.arrays["lens_top"][-1][:, None].astype(np.int64), 1)[:, 0]
    assert np.abs(arrays["direct_logit"] - predicted).max() < near(limit, "logits")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_lens_is_what_llama_cpp_makes_of_an_earlier_stream(
    worker: WorkerContext, tmp_path: Path, kind: str
) -> None:
    """The stream of each layer, put into llama.cpp behind the last block: norm, unembedding, cap are its own."""
    layers = 4 if kind == "smollm3" else 3
    file = write_small_model(tmp_path / "model.gguf", kind, layers)
    tokens = np.arange(3, 15, dtype=np.int32)
    files = _decode(worker, file, tmp_path, _given(tokens), lanes=1)
    post = files.load("resid_post")
    weights = ModelFile([file])
    head = find_head(weights, post[-1], files.load("final"), files.load("logits"))
    assert (head.norm, head.softcap) == (
        "layer" if kind in {"gpt2", "bloom"} else "rms",
        30.0 if kind == "gemma2" else None,
    )
    settings = replace(SETTINGS, n_ctx=12, n_batch=12, n_ubatch=12)
    model = worker.model([file], SETTINGS.n_gpu_layers)
    for layer in range(layers):
        patch: dict[str, Patcher] = {f"blocks.{layers - 1}.resid_post": lambda *_, layer=layer: post[layer]}
        with Context(model, settings, Taps(weights.architecture, layers, patch=patch)) as context:
            expected = context.logits(tokens)
        assert np.abs(head_logits(head, post[layer]) - expected).max() < near(1e-4, "logits")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parts_sum_to_logits_in_every_architecture(worker: WorkerContext, tmp_path: Path, kind: str) -> None:
    """Also where llama.cpp does not name what attention or the MLP adds."""
    file = write_small_model(tmp_path / "model.gguf", kind, 4 if kind == "smollm3" else 2)
    # This vocabulary has no texts.
    given = _given(np.arange(3, 15, dtype=np.int32), np.arange(20, 28, dtype=np.int32))
    files = _decode(worker, file, tmp_path, given)
    measured = _stream(files, given) | _lens(_request(file, tmp_path), files)
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in measured.items()}
    whole = np.nansum(arrays["direct_attn"], 0) + np.nansum(arrays["direct_mlp"], 0)
    whole += arrays["direct_embed"] + arrays["direct_constant"]
    assert np.abs(whole - arrays["direct_logit"]).max() < 1e-4
    # GPT-2 adds positions, and BLOOM norms the embeddings: attention's part of the first stream is not known.
    unknown = kind in {"gpt2", "bloom"}
    assert np.isnan(arrays["attn_share"][0]).all() == unknown
    assert not np.isnan(arrays["attn_share"][1:]).any()
    assert not np.isnan(arrays["mlp_share"]).any()


def test_identical_files_differ_by_nothing(worker: WorkerContext, llama_file: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    _measure(worker, llama_file, base)
    arrays = _measure(worker, llama_file, tmp_path / "twin", base).arrays
    for name, values in arrays.items():
        if name.startswith("error_") or name == "kld":
            assert (values == 0).all(), name
        if name.startswith("cosine_"):
            assert (values == 1).all(), name
    assert arrays["cka"] == pytest.approx(1, abs=1e-12)
    changed = measure_interchange(worker, _request(llama_file, tmp_path / "twin"), base, [0, 1])
    assert not changed["kld"].any()
    assert not changed["replaced"].any()


def _without(file: Path, destination: Path, layer: int) -> Path:
    """A copy whose block adds nothing: the weights of its outputs are zero."""
    shutil.copy(file, destination)
    header = read_header(file)
    with destination.open("r+b") as copy:
        for tensor in header.tensors:
            if tensor.name in {f"blk.{layer}.attn_output.weight", f"blk.{layer}.ffn_down.weight"}:
                copy.seek(header.data_offset + tensor.offset)
                copy.write(bytes(tensor.bytes))
    return destination


@pytest.mark.parametrize("layer", [0, 2])
def test_skipping_a_block_is_a_file_whose_block_adds_nothing(worker: WorkerContext, tmp_path: Path, layer: int) -> None:
    file = write_random_llama(tmp_path / "model.gguf", n_layer=3)
    empty = _without(file, tmp_path / "empty.gguf", layer)
    arrays = measure_importance(worker, _request(file, tmp_path / "a"), None, [layer])
    expected = measure_importance(worker, _request(empty, tmp_path / "b"), None, [])
    assert expected["skipped"].shape == (0, len(expected["nll"]))
    assert (arrays["skipped"][0] == expected["nll"]).all()
    assert np.abs(arrays["skipped"][0] - arrays["nll"]).max() > 0.01


def test_interchange_finds_the_layer_that_differs(worker: WorkerContext, tmp_path: Path) -> None:
    """Only block 1 of 4 differs: behind it the reference's stream mends everything, before it nothing."""
    file = write_random_llama(tmp_path / "model.gguf", n_layer=4)
    empty = _without(file, tmp_path / "empty.gguf", 1)
    base = tmp_path / "base"
    _measure(worker, file, base)
    arrays = measure_interchange(worker, _request(empty, tmp_path / "other"), base, [0, 1, 2, 3])
    assert arrays["kld"].mean() > 1e-3
    assert (arrays["embed"] == arrays["kld"]).all()
    assert (arrays["replaced"][0] == arrays["kld"]).all()
    assert not arrays["replaced"][1:].any()


def test_physical_batches_and_lanes_are_put_together(worker: WorkerContext, llama_file: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 50).astype(np.int32)
    given = _given(tokens[:21], tokens[21:], tokens[:1])
    whole = _decode(worker, llama_file, tmp_path / "whole", given)
    model = worker.model([llama_file], SETTINGS.n_gpu_layers)
    request = replace(_request(llama_file, tmp_path / "parts"), settings=replace(SETTINGS, n_ubatch=8))
    parts = decode_states(worker, model, 1, request, given)
    for name in ("embed", "attn_out", "resid_mid", "mlp_out", "resid_post", "final", "logits"):
        allowed = near(1e-4, "logits") if name == "logits" else near_taps(1e-4, whole.load(name))
        assert np.abs(whole.load(name) - parts.load(name)).max() < allowed, name
    base = tmp_path / "base"
    _measure(worker, llama_file, base)
    for n_ubatch in (8, 512):
        twin = replace(_request(llama_file, tmp_path / "twin"), settings=replace(SETTINGS, n_ubatch=n_ubatch))
        assert measure_interchange(worker, twin, base, [0])["replaced"].max() < near(1e-6, "kl")


def test_long_prompts_are_cut_and_impossible_ones_left_out(
    worker: WorkerContext, llama_file: Path, tmp_path: Path
) -> None:
    prompts = (Prompt("empty", ""), Prompt("long", "x" * 400), Prompt("too long", "x" * 4000))
    result = measure_layers(worker, _request(llama_file, tmp_path, prompts), None, False)
    assert result.facts["prompts"] == ["long"]
    assert set(result.facts["problems"]) == {"empty", "too long"}
    assert result.arrays["starts"].tolist() == [0, MOST_TOKENS]
    assert not (tmp_path / STATES_FOLDER).exists()
    with pytest.raises(PromptError, match="no tokens"):
        measure_layers(worker, _request(llama_file, tmp_path, prompts[:1]), None, False)


def test_states_beyond_the_limit_are_refused(worker: WorkerContext, llama_file: Path, tmp_path: Path) -> None:
    request = replace(_request(llama_file, tmp_path), limit_bytes=1000)
    with pytest.raises(CorpusError, match=r"hidden states of \d+ tokens of 2 prompts would take"):
        measure_layers(worker, request, None, True)


def test_a_head_that_does_not_fit_is_not_offered(worker: WorkerContext, llama_file: Path, tmp_path: Path) -> None:
    _measure(worker, llama_file, tmp_path)
    files, weights = StateFiles(tmp_path / STATES_FOLDER), ModelFile([llama_file])
    final, normalized, logits = (files.load("resid_post")[-1], files.load("final"), files.load("logits"))
    find_head(weights, final, normalized, logits)
    with pytest.raises(NoData, match="not offered for this model of the architecture llama: no norm"):
        find_head(weights, final, normalized + 1, logits)
    with pytest.raises(NoData, match=r"not offered .* logits that differ"):
        find_head(weights, final, normalized, logits[:, ::-1])
    with pytest.raises(NoData, match="no unembedding of the shape"):
        find_head(weights, final, normalized, logits[:, :-1])


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0", "Q4_K_M", "Q2_K"])
def test_rows_are_those_of_ggufs_reader(tmp_path: Path, quant: str) -> None:
    file = tmp_path / "model.gguf"
    quantize_file(TINY.files, file, quant, threads=2)
    weights = ModelFile([file])
    for tensor in GGUFReader(file).tensors:
        if tensor.name in {"token_embd.weight", "output.weight", "blk.0.ffn_down.weight"}:
            expected = dequantize(tensor.data, tensor.tensor_type)
            rows = weights.matrix(tensor.name)
            assert rows.shape == expected.shape
            some = np.array([5, 0, len(expected) - 1])
            assert (rows.take(some) == expected[some]).all()
            assert (rows.take(slice(2, 9)) == expected[2:9]).all()


def test_errors_of_every_layer_fall_with_bits(tmp_path: Path) -> None:
    arguments = ["--models=tiny", f"--gguf-quants={','.join(QUANTS)}", f"--gguf-cache={tmp_path}"]
    options = read_options(parse_command_line(*arguments))
    prompts = PromptSet("some", load_prompts().prompts[:12])
    core, plan = Core(options, SilentProgress()), plan_ladder(options)
    try:
        reference, *candidates = (core.subject(planned) for planned in plan.models)
        found = [Layers(core, prompts).compared(model, reference).arrays for model in candidates]
    finally:
        core.close()
    for kind in ("resid_post", "resid_mid", "attn_out", "mlp_out"):
        means = [by_layer("resid_relative_error", a[f"error_{kind}"], a["starts"], range(5)) for a in found]
        for layer in range(5):
            errors = [mean[layer].value for mean in means]
            print(kind, layer, *(f"{error:.4f}" for error in errors))
            # No ties on this model: each step down costs.
            assert errors == sorted(set(errors)), (kind, layer)
            assert errors[0] > 0
