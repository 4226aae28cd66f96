"""The reference model of our own: llama.cpp computes what PyTorch computed, and quantization hurts it as it should.

`tests/data/tiny-*.npz` was written by `python -m fixtures.train.truth`: PyTorch in float64, on the weights of the file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.quantize import quantize_file
from gguf_harness.engine.settings import CacheType, SessionSettings
from gguf_harness.engine.tap_names import expand_taps
from gguf_harness.engine.taps import Taps
from gguf_harness.fixtures.train.tokenizer import load_tokenizer
from gguf_harness.inputs.corpora import Corpus, load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.sources import expand
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.metrics.divergence import summarize_divergence
from gguf_harness.metrics.perplexity import perplexity
from gguf_harness.metrics.stats import mean_with_errors
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from tests.command_line import parse_command_line
from tests.loaded import open_context

pytestmark = pytest.mark.model

Array = NDArray[np.float32]

DATA = Path(__file__).parent.parent / "data"
PROMPTS = ("text", "repetition")
(TINY,) = expand("tiny")
CARD: dict[str, Any] = json.loads(TINY.files[0].with_name("tiny.json").read_text(encoding="utf-8"))
LAYERS = int(CARD["config"]["layers"])
QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@pytest.fixture(scope="module")
def tiny_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in F32."""
    file = tmp_path_factory.mktemp("tiny") / "tiny-F32.gguf"
    quantize_file(TINY.files, file, "F32", threads=2)
    return file


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with open_context(TINY.files, SessionSettings(n_ctx=512)) as context:
        yield context


def _taps_of(file: Path, cache: CacheType, prompt: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """What llama.cpp has in its graph, and what PyTorch had."""
    with np.load(DATA / f"tiny-{prompt}.npz") as stored:
        expected = {name: stored[name] for name in stored.files}
    tokens = expected.pop("tokens")
    seen: dict[str, Array] = {}
    taps = Taps("llama", LAYERS, read=dict.fromkeys(expected, lambda tap, values: seen.update({tap: values.copy()})))
    settings = SessionSettings(
        n_ctx=256, n_batch=256, threads=2, flash_attention="off", cache_type_k=cache, cache_type_v=cache
    )
    with open_context([file], settings, taps) as context:
        context.logits(tokens)
    return {tap: v[..., : len(tokens)] if tap.endswith("pattern") else v for tap, v in seen.items()}, expected


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    ("precision", "cache", "logits", "pattern", "relative"),
    # llama.cpp multiplies F16 weights with activations rounded to F16; its default cache rounds keys and values too.
    [("F16", "f16", 2e-2, 1e-2, 1e-2), ("F16", "f32", 2e-2, 5e-3, 1e-2), ("F32", "f32", 1e-3, 1e-4, 1e-4)],
)
def test_llama_cpp_computes_what_pytorch_computed(
    tiny_f32: Path, prompt: str, precision: str, cache: CacheType, logits: float, pattern: float, relative: float
) -> None:
    seen, expected = _taps_of(tiny_f32 if precision == "F32" else TINY.files[0], cache, prompt)
    # Every tap there is, but for raw scores: PyTorch's attention has them scaled.
    assert set(expected) == {tap for tap in expand_taps(["*"], LAYERS) if not tap.endswith("attn.scores")}
    assert seen.keys() == expected.keys()
    for tap, values in expected.items():
        assert seen[tap].shape == values.shape, tap
        limit = {"logits": logits, "pattern": pattern}.get(
            tap.rpartition(".")[2], relative * float(np.abs(values).max())
        )
        assert float(np.abs(seen[tap] - values).max()) < limit, tap


def _patterns(tokens: NDArray[np.int32]) -> list[Array]:
    """[head, pos, key] of every layer."""
    seen: dict[str, Array] = {}
    wanted = expand_taps(["blocks.*.attn.pattern"], LAYERS)
    taps = Taps("llama", LAYERS, read=dict.fromkeys(wanted, lambda tap, values: seen.update({tap: values.copy()})))
    with open_context(TINY.files, SessionSettings(n_ctx=256, n_batch=256, flash_attention="off"), taps) as context:
        context.logits(tokens)
    return [seen[tap] for tap in wanted]


def test_a_head_looks_at_the_previous_token_as_the_card_says(context: Context) -> None:
    scores = np.array(CARD["previous_token_on_text"])
    assert scores.max() > 0.8
    text = load_corpus("pydoc", held_out_topics=load_info(TINY).held_out_topics).text
    patterns = _patterns(context.model.tokenize(text)[:128])
    layer, head = np.unravel_index(int(scores.argmax()), scores.shape)
    position = np.arange(2, 128)
    assert patterns[layer][head][position, position - 1].mean() == pytest.approx(scores.max(), abs=0.1)


def test_a_head_looks_for_an_earlier_occurrence_as_the_card_says() -> None:
    scores = np.array(CARD["induction"])
    assert scores.max() > 0.3
    random, period = np.random.default_rng(3), 64
    patterns = _patterns(np.concatenate([[0], np.tile(random.integers(2, 4096, period), 2)]).astype(np.int32))
    layer, head = np.unravel_index(int(scores.argmax()), scores.shape)
    position = np.arange(period + 1, 2 * period + 1)
    assert patterns[layer][head][position, position - period + 1].mean() == pytest.approx(scores.max(), abs=0.15)


@given(st.text())
def test_any_text_has_tokens_and_gives_itself_back(context: Context, text: str) -> None:
    tokens = context.model.tokenize(text, add_special=False)
    assert context.model.detokenize(tokens) == text.encode()


TOKENIZER = load_tokenizer(TINY.files[0])


@given(st.text())
def test_token_ids_are_those_of_tokenizers(context: Context, text: str) -> None:
    assert context.model.tokenize(text, add_special=False).tolist() == TOKENIZER.encode(text).ids


def test_a_real_text_has_the_same_tokens(context: Context) -> None:
    text = load_corpus("pydoc").text.decode()
    tokens = context.model.tokenize(text)
    assert tokens[0] == context.model.vocabulary.bos == 0
    assert tokens[1:].tolist() == TOKENIZER.encode(text).ids


@dataclass
class Ladder:
    """The ladder, measured once for all tests here."""

    models: list[Subject]
    candidates: dict[str, Arrays]


def _opened(cache: Path, *arguments: str) -> tuple[Core, list[Subject], Corpus]:
    """A core, the models that are asked for, and the text that `tiny` was not trained on."""
    options = read_options(parse_command_line("--models=tiny", f"--gguf-cache={cache}", *arguments))
    core = Core(options, SilentProgress())
    models = [core.subject(planned) for planned in plan_ladder(options).models]
    return core, models, load_corpus("pydoc", held_out_topics=models[0].info.held_out_topics)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ladder]:
    arguments = [f"--gguf-quants={','.join(QUANTS)}", "--gguf-chunks=16"]
    core, models, corpus = _opened(tmp_path_factory.mktemp("cache"), *arguments)
    reference, *candidates = models
    CorpusPass(core, corpus).reference(reference, logprobs=True)
    passes = {model.name: CorpusPass(core, corpus).candidate(model, reference) for model in candidates}
    yield Ladder(models, passes)
    core.close()


def test_divergence_rises_as_bits_fall(ladder: Ladder) -> None:
    means = [summarize_divergence(a["kld"], a["kld_reverse"])[0].value for a in ladder.candidates.values()]
    assert means == sorted(means)
    assert means[0] > 0
    # Each step down costs something that can be told from noise, token by token on the same windows.
    arrays = list(ladder.candidates.values())
    for better, worse in itertools.pairwise(arrays):
        step = mean_with_errors(worse["kld"].astype(np.float64) - better["kld"].astype(np.float64))
        assert step.se is not None
        assert step.value > 2 * step.se


def test_no_tensor_falls_back(ladder: Ladder) -> None:
    bits = [model.info.bits_per_weight for model in ladder.models]
    assert bits == sorted(bits, reverse=True)
    for model in ladder.models:
        assert model.info.fallbacks == ()
        assert model.info.warnings == ()


def test_the_card_states_what_llama_cpp_measures(tmp_path: Path) -> None:
    """Over the whole text."""
    core, (model,), corpus = _opened(tmp_path, "--gguf-chunks=all")
    measured = CorpusPass(core, corpus).reference(model, logprobs=False)
    core.close()
    assert perplexity(measured["nll"]).value == pytest.approx(CARD["held_out_perplexity"], rel=0.02)


def test_the_file_is_small_and_its_rows_hold_whole_blocks() -> None:
    info = load_info(TINY)
    assert 8e6 <= info.bytes <= 16e6
    assert info.parameters == CARD["parameters"]
    assert info.quantization == "F16"
    assert info.held_out_topics
