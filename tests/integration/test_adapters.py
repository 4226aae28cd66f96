"""LoRA adapters: what they make of a model is what merging them into its file makes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import Adapter, SessionSettings
from gguf_harness.engine.tap_names import expand_taps
from gguf_harness.engine.taps import Taps
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import EngineError, ModelError, NoData, OptionError, TapNotFound
from gguf_harness.inputs.adapters import adapted_tensors, load_adapter
from gguf_harness.inputs.corpora import Corpus, load_corpus
from gguf_harness.inputs.ladder import PlannedSubject, plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.prompts import load_prompts
from gguf_harness.inputs.words import load_words
from gguf_harness.measure.analyses.calls import Analytics
from gguf_harness.measure.attention.tasks import AttentionRequest, observe_attention
from gguf_harness.measure.core import Core
from gguf_harness.measure.embeddings.calls import Embeddings
from gguf_harness.measure.layers.states import LayersRequest
from gguf_harness.measure.layers.tasks import STATES_FOLDER, measure_layers
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.measure.speed.calls import Served, Servers
from gguf_harness.measure.speed.tasks import bench_settings
from gguf_harness.measure.weights.calls import TensorSensitivity, WeightErrors
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.devices import near
from tests.loaded import open_context
from tests.random_llama import write_random_llama
from tests.random_lora import EVERY_MATRIX, merge_lora, write_random_lora

pytestmark = pytest.mark.model

SETTINGS = SessionSettings(
    n_ctx=64, n_batch=64, n_ubatch=64, threads=1, flash_attention="off", cache_type_k="f32", cache_type_v="f32"
)
TOKENS = np.arange(3, 35, dtype=np.int32)
SCALE = 0.7
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def lora(llama_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_lora(tmp_path_factory.mktemp("adapters") / "lora.gguf", llama_file)


def _with(*adapters: Adapter) -> SessionSettings:
    return replace(SETTINGS, adapters=adapters)


def _logits(model: Model, settings: SessionSettings = SETTINGS) -> Array:
    with Context(model, settings) as context:
        return context.logits(TOKENS).copy()


def _read(files: list[Path], settings: SessionSettings, names: list[str]) -> dict[str, Array]:
    seen: dict[str, Array] = {}

    def keep(tap: str, values: Array) -> None:
        seen[tap] = values.copy()

    with open_context(files, settings, Taps("llama", 2, read=dict.fromkeys(names, keep))) as context:
        context.logits(TOKENS)
    return seen


def test_logits_are_those_of_the_merged_model(llama_file: Path, lora: Path, tmp_path: Path) -> None:
    other = write_random_lora(tmp_path / "other.gguf", llama_file, seed=1, rank=8, alpha=3, matrices=["attn_q"])
    first, second = load_adapter(lora, tmp_path, scale=SCALE), load_adapter(other, tmp_path, scale=-1.5)
    with Model([llama_file]) as model:
        base, one, both = (_logits(model, _with(*adapters)) for adapters in ((), (first,), (first, second)))
    for logits, scaled in ((one, [(lora, SCALE)]), (both, [(lora, SCALE), (other, -1.5)])):
        with Model([merge_lora(tmp_path / "merged.gguf", llama_file, *scaled)]) as merged:
            expected = _logits(merged)
        assert np.abs(logits - expected).max() < near(1e-4, "logits")
    # What the adapters change is larger than that by far.
    assert np.abs(one - base).max() > 0.1
    assert np.abs(both - one).max() > 0.1
    print(np.abs(one - base).max(), np.abs(both - one).max(), np.abs(both - expected).max())


def test_a_scale_of_zero_is_the_base_model(llama_file: Path, lora: Path, tmp_path: Path) -> None:
    with Model([llama_file]) as model:
        assert (_logits(model, _with(load_adapter(lora, tmp_path, scale=0))) == _logits(model)).all()


def test_contexts_of_one_model_do_not_disturb_each_other(llama_file: Path, lora: Path, tmp_path: Path) -> None:
    weak, strong = (load_adapter(lora, tmp_path, scale=scale) for scale in (0.3, 1.0))
    settings = [SETTINGS, _with(weak), _with(strong)]
    with Model([llama_file]) as model:
        alone = [_logits(model, each) for each in settings]
    with Model([llama_file]) as model:
        # The first is open before the adapter is loaded.
        contexts = [Context(model, each) for each in settings]
        try:
            for index in (2, 0, 1, 0, 2):
                assert (contexts[index].logits(TOKENS) == alone[index]).all()
            assert model.memory.weights is not None
            sizes = [context.memory.weights for context in contexts]
        finally:
            for context in contexts:
                context.close()
    assert sizes[0] == model.memory.weights
    # The log has two decimals of a MiB.
    held = sum(4 * int(tensor.n_elements) for tensor in GGUFReader(lora).tensors)
    assert abs((sizes[1] or 0) - model.memory.weights - held) < 0.02 * 2**20
    assert sizes[1] == sizes[2]


def test_taps_see_what_adapters_change(llama_file: Path, lora: Path, tmp_path: Path) -> None:
    """Every tap of the merged model, those of the matrices' results before all."""
    names = expand_taps(["*"], 2)
    offered = []
    for name in names:
        try:
            _read([llama_file], SETTINGS, [name])
        except TapNotFound:
            continue
        offered.append(name)
    seen = _read([llama_file], _with(load_adapter(lora, tmp_path, scale=SCALE)), offered)
    expected = _read([merge_lora(tmp_path / "merged.gguf", llama_file, (lora, SCALE))], SETTINGS, offered)
    base = _read([llama_file], SETTINGS, offered)
    assert seen.keys() == expected.keys()
    for name, values in seen.items():
        scale = max(1.0, float(np.abs(expected[name][np.isfinite(expected[name])]).max()))
        assert np.allclose(values, expected[name], atol=near(1e-4, "taps") * scale, rtol=0), name
    changed = {name for name in seen if not np.allclose(seen[name], base[name], atol=1e-2)}
    assert {"blocks.0.attn.q", "blocks.0.attn.pattern", "blocks.1.resid_post"} <= changed
    print(len(offered), "taps,", len(changed), "changed")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"too_wide": 8}, r"tensor 'blk\.0\.attn_\w+\.weight' has incorrect shape \(hint: maybe wrong base model\?\)"),
        ({"architecture": "qwen2"}, "model arch and LoRA arch mismatch"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_reason(
    llama_file: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    file = write_random_lora(tmp_path / "bad.gguf", llama_file, matrices=["attn_q"], **change)  # type: ignore[arg-type]
    with Model([llama_file]) as model:
        with pytest.raises(EngineError, match=reason) as caught:
            Context(model, _with(load_adapter(file, tmp_path)))
        assert "bad" in caught.value.message
        # The model is as good as before.
        assert np.isfinite(_logits(model)).all()


def test_what_is_no_adapter_is_refused(llama_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no LoRA adapter: its general\.type is \w+.* adapter\.type is missing"):
        load_adapter(llama_file, tmp_path)


def test_workers_keep_contexts_by_content(worker: WorkerContext, llama_file: Path, lora: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(lora, tmp_path / "copy.gguf"))
    here, there = (load_adapter(file, tmp_path) for file in (lora, copy))
    kept = worker.context([llama_file], _with(here))
    plain = worker.context([llama_file], SETTINGS)
    assert plain is not kept
    assert plain.model is kept.model
    assert worker.context([llama_file], _with(there)) is kept


def test_adapters_are_timed_and_their_heads_have_no_copy_score(
    worker: WorkerContext, llama_file: Path, lora: Path, tmp_path: Path
) -> None:
    adapter = load_adapter(lora, tmp_path)
    assert adapted_tensors(adapter) == {f"blk.{i}.{matrix}.weight" for i in range(2) for matrix in EVERY_MATRIX}
    assert bench_settings(_with(adapter), 32).adapters == (adapter,)
    request = AttentionRequest(
        model="m", files=(llama_file,), architecture="llama", n_layer=2, settings=_with(adapter),
        prompts=load_prompts().prompts[:1], text=b"some text", folder=tmp_path / "kept", limit_bytes=10**9,
    )  # fmt: skip
    with_adapter = observe_attention(worker, request)
    base = observe_attention(worker, replace(request, settings=SETTINGS, folder=tmp_path / "base"))
    assert np.isnan(with_adapter["copy_score"]).all()
    assert np.isfinite(base["copy_score"]).all()
    assert not np.allclose(np.float64(with_adapter["sums"]), np.float64(base["sums"]), atol=0.01)


def test_the_lens_knows_what_adapters_change(worker: WorkerContext, tmp_path: Path) -> None:
    """Its unembedding is the file's: not offered where an adapter changes that, and exact where none does."""
    file = write_random_llama(tmp_path / "untied.gguf", untied=True)
    problems = []
    for matrices in (EVERY_MATRIX, ("output",)):
        adapter = load_adapter(write_random_lora(tmp_path / "some.gguf", file, matrices=matrices), tmp_path)
        request = LayersRequest(
            "m", (file,), _with(adapter), load_prompts().prompts[:1], tmp_path / STATES_FOLDER, 10**9
        )
        result = measure_layers(worker, request, None, False)
        problems.append(result.facts["lens_problem"])
        assert ("lens_top" in result.arrays) == (problems[-1] is None)
    assert problems[0] is None
    assert "the adapter some changes output.weight, which the lens reads from the model's file" in problems[1]


@pytest.fixture
def core(llama_file: Path, tmp_path: Path) -> Iterator[Core]:
    arguments = [f"--models={llama_file}", f"--gguf-cache={tmp_path / 'cache'}", "--gguf-ctx=64", "--gguf-chunks=8"]
    core = Core(read_options(parse_command_line(*arguments)), SilentProgress())
    yield core
    core.close()


def _corpus() -> Corpus:
    return Corpus("some", load_corpus("pydoc").text[:9000])


def _planned(core: Core, *adapters: Adapter) -> PlannedSubject:
    reference = plan_ladder(core.options).reference
    assert reference is not None
    return replace(reference, adapters=adapters)


def test_a_pass_with_an_adapter_is_cached_apart(core: Core, llama_file: Path, lora: Path, tmp_path: Path) -> None:
    """Lanes decode with it too: the numbers are those of the merged model."""
    adapter = load_adapter(lora, core.options.cache, scale=SCALE)
    moved = load_adapter(Path(shutil.copy(lora, tmp_path / "moved.gguf")), core.options.cache, scale=SCALE, name="lora")
    base, adapted, again = (core.subject(_planned(core, *each)) for each in ((), (adapter,), (moved,)))
    assert base.key() == {"model": base.sha256, "settings": core.options.session_settings.to_json()}
    assert adapted.key() == again.key() != base.key()
    assert adapted.name == f"{base.name} [lora=lora:0.7]"
    described = adapted.to_json()
    assert described["adapters"] == [{"name": "lora", "sha256": adapter.sha256, "scale": SCALE}]
    assert described["context"] == base.to_json()["context"]
    passes = CorpusPass(core, _corpus())
    reference = passes.reference(base, logprobs=True)
    misses = core.misses
    arrays = passes.candidate(adapted, base)
    assert core.misses == misses + 1
    assert arrays["kld"].astype(np.float64).mean() > 0.01
    assert (passes.candidate(again, base)["kld"] == arrays["kld"]).all()
    assert core.misses == misses + 1
    without = passes.candidate(core.subject(_planned(core, replace(adapter, scale=0))), base)
    assert without["kld"].astype(np.float64).max() < near(1e-6, "kl")
    merged = merge_lora(tmp_path / "merged.gguf", llama_file, (lora, SCALE))
    other = plan_ladder(replace(core.options, models=(str(merged),))).reference
    assert other is not None
    expected = passes.reference(core.subject(other), logprobs=False)
    own, base_nll, merged_nll = (each["nll"].astype(np.float64) for each in (arrays, reference, expected))
    assert np.abs(own - merged_nll).max() < near(0.005, "logits")
    assert np.abs(own - base_nll).max() > 0.1
    print("KL", arrays["kld"].astype(np.float64).mean(), "nll off by", np.abs(own - merged_nll).max())


def test_what_is_read_from_the_file_alone_is_refused(core: Core, lora: Path) -> None:
    base = core.subject(_planned(core))
    adapted = core.subject(_planned(core, load_adapter(lora, core.options.cache)))
    for candidate, reference in ((adapted, base), (base, adapted)):
        with pytest.raises(NoData, match="errors of the weights are read from the model's file, which its LoRA"):
            WeightErrors(core)(candidate, reference)
        with pytest.raises(NoData, match="mixtures of tensors are read from the model's file"):
            TensorSensitivity(core, CorpusPass(core, _corpus()))(candidate, reference)
    words = Embeddings(core, load_words(), load_prompts(), Analytics(core))
    with pytest.raises(NoData, match="token embeddings are read from the model's file"):
        words(adapted)
    with pytest.raises(NoData, match="token embeddings are read from the model's file"):
        words.aligned(adapted, base)
    servers = Servers(core)
    with pytest.raises(OptionError, match=r"\[lora=lora\] cannot be served: servers are started without LoRA"):
        Served(core, servers)(adapted)
    with pytest.raises(OptionError, match="cannot be served"):
        servers(adapted)


def test_an_adapter_that_changes_meanwhile_does_not_count(core: Core, llama_file: Path, tmp_path: Path) -> None:
    file = write_random_lora(tmp_path / "changing.gguf", llama_file)
    planned = _planned(core, load_adapter(file, core.options.cache))
    subject = core.subject(planned)
    write_random_lora(file, llama_file, seed=1)
    for measure in (
        lambda: CorpusPass(core, _corpus()).reference(subject, logprobs=False),
        lambda: core.subject(planned),
    ):
        with pytest.raises(ModelError, match=r"changing: changing\.gguf changed while it was being measured"):
            measure()
    # The model alone is measured all the same.
    assert np.isfinite(CorpusPass(core, _corpus()).reference(core.subject(_planned(core)), logprobs=False)["nll"]).all()
    file.unlink()
    with pytest.raises(ModelError, match=r"changing\.gguf has been missing since it was hashed"):
        core.subject(planned)
