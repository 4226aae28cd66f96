"""Embeddings of real files: words and contexts, what quantization moves, memory of large vocabularies."""

from __future__ import annotations

import multiprocessing
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from numpy.typing import NDArray

from gguf_harness.engine.context import Context
from gguf_harness.engine.model import Model
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.taps import Taps
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import VocabularyMismatch
from gguf_harness.gguf.weights import Weights
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.models import check_same_vocabulary
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.prompts import Prompt, PromptSet
from gguf_harness.inputs.subjects import Subject
from gguf_harness.inputs.words import load_words
from gguf_harness.measure.analyses.calls import Analytics
from gguf_harness.measure.core import Core
from gguf_harness.measure.embeddings.calls import Embeddings
from gguf_harness.measure.embeddings.tasks import ContextRequest, _final_states, describe_matrix
from gguf_harness.metrics.embedding_estimates import (
    WordSpace,
    compare_neighbours,
    compare_prompts,
    compare_word_spaces,
    describe_analogies,
    describe_groups,
    describe_space,
    unpack,
)
from gguf_harness.metrics.geometry import align
from gguf_harness.metrics.kernels.nearest import nearest_by_cosine, row_blocks
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.integration.small_bert import write_small_bert
from tests.integration.small_models import write_small_model
from tests.loaded import open_context
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

WORDS = load_words()
DATA = Path(__file__).parent.parent / "data"


class _Session:
    """The models of a command line, and what is measured of them."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        given = ["-p", "no:cacheprovider", f"--gguf-results={folder}", "--gguf-threads=2", *arguments]
        options = read_options(parse_command_line(*given))
        self.core = Core(options, SilentProgress())
        self.models = {model.name: model for model in plan_ladder(options).models}

    def load(self, name: str) -> Subject:
        return self.core.subject(self.models[name])

    def embeddings(self, prompts: PromptSet = PromptSet("none", ())) -> Embeddings:  # noqa: B008 - it is frozen
        return Embeddings(self.core, WORDS, prompts, Analytics(self.core))

    def space(self, name: str) -> Any:
        return self.embeddings().space(self.load(name))

    def contexts(self, name: str, *texts: str) -> Any:
        prompts = PromptSet("test", tuple(Prompt(str(i), text) for i, text in enumerate(texts)))
        return self.embeddings(prompts).contexts(self.load(name))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Session]:
    session = _Session(tmp_path_factory.mktemp("tiny"), "--models=tiny", "--gguf-quants=Q8_0,Q2_K")
    yield session
    session.core.close()


def _matrix(file: Path) -> NDArray[np.float32]:
    (tensor,) = (t for t in GGUFReader(file).tensors if t.name == "token_embd.weight")
    return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


@pytest.mark.parametrize("name", ["tiny-F16", "tiny-Q8_0", "tiny-Q2_K"])
def test_what_is_said_is_true_of_the_matrix(tiny: _Session, name: str) -> None:
    space, matrix = tiny.space(name), _matrix(tiny.load(name).files[0])
    own = space["queries"]
    assert len(set(own.tolist())) == 1000
    near = nearest_by_cosine(matrix[own], row_blocks(matrix, 1000), 10, own)
    assert np.abs(near.cosines - space["neighbour_cosines"]).max() < 1e-6
    assert (near.rows == space["neighbours"]).mean() > 0.999
    exact = matrix.astype(np.float64) - matrix.mean(0, dtype=np.float64)
    values = np.linalg.svd(exact, compute_uv=False) ** 2
    estimates = {estimate.metric: estimate for estimate in describe_space(space)}
    assert estimates["embedding_variance_pc10"].value == pytest.approx(values[:10].sum() / values.sum(), rel=1e-6)
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    everything = (np.square(units.sum(0, dtype=np.float64)).sum() - len(units)) / (len(units) * (len(units) - 1))
    anisotropy = estimates["embedding_anisotropy"]
    assert abs(anisotropy.value - everything) < 4 * (anisotropy.se or 0)
    dog = WORDS.words.index("dog")
    assert space["word_tokens"][dog] >= 1


def test_words_are_means_of_their_tokens(tiny: _Session) -> None:
    space, file = tiny.space("tiny-Q8_0"), tiny.load("tiny-Q8_0").files[0]
    matrix = _matrix(file)
    with open_context([file], SessionSettings(n_ctx=512)) as context:
        for place, word in enumerate(WORDS.words):
            tokens = context.model.tokenize(f" {word}", add_special=False)
            if len(tokens) == 1:
                assert space["word_tokens"][place] == 1
            if space["word_tokens"][place] == len(tokens):
                assert np.abs(space["word_vectors"][place] - matrix[tokens].mean(0)).max() < 1e-6, word
        for token, text in zip(space["map_tokens"][:20].tolist(), space["map_texts"][:20].tolist(), strict=True):
            assert context.model.detokenize([token]).decode().strip() == text
    words = WordSpace(WORDS.words, space)
    assert words.several + int((space["word_tokens"] == 1).sum()) == len(words.index) == len(WORDS.words)
    assert "is" in words.index


def test_tiny_knows_its_words(tiny: _Session) -> None:
    """Trained on Python's documentation: its words are in better order than chance."""
    space = WordSpace(WORDS.words, tiny.space("tiny-F16"))
    _, purity = describe_groups(space, WORDS.group_of)
    accuracy, mrr = describe_analogies(space, WORDS.analogies)
    assert purity.value > 0.2 > 2 / len(WORDS.groups)
    assert accuracy.value > 0.2
    assert accuracy.value <= mrr.value <= 1


def test_contexts_are_pytorchs(tiny: _Session) -> None:
    texts, expected = [], []
    with open_context(tiny.load("tiny-F16").files, SessionSettings(n_ctx=512)) as context:
        for name in ("text", "repetition"):
            with np.load(DATA / f"tiny-{name}.npz") as stored:
                tokens, states = stored["tokens"], stored["ln_final.normalized"]
            text = context.model.detokenize(tokens).decode()
            if context.model.tokenize(text).tolist() == tokens.tolist():
                texts.append(text)
                expected.append(states)
    assert texts
    contexts = tiny.contexts("tiny-F16", *texts, "far too long " * 500)
    assert contexts["prompt_tokens"].tolist() == [*map(len, expected), 0]
    for row, states in enumerate(expected):
        # The cache is F16.
        assert np.abs(contexts["prompt_mean"][row] - states.mean(0)).max() < 2e-2
        assert np.abs(contexts["prompt_last"][row] - states[-1]).max() < 5e-2
    assert not contexts["prompt_mean"][-1].any()
    assert compare_prompts(contexts, contexts)[0].n == len(texts)


def test_quantization_moves_the_space(tiny: _Session) -> None:
    """llama.cpp keeps tiny's matrix in Q6_K whatever is asked for below Q8_0; contexts have no such floor."""
    reference, texts = tiny.space("tiny-F16"), ("def f(x):", "The function returns", "A list of strings")
    assert [tiny.space(name)["matrix_type"].item() for name in tiny.models] == ["F16", "Q8_0", "Q6_K"]
    measured = []
    for name in ("tiny-F16", "tiny-Q8_0", "tiny-Q2_K"):
        recall, correlation = compare_neighbours(tiny.space(name), reference)
        aligned = tiny.embeddings().aligned(tiny.load(name), tiny.load("tiny-F16"))
        error, cka = (unpack(metric, aligned[metric]) for metric in ("procrustes_error", "embedding_cka"))
        contexts = compare_prompts(tiny.contexts(name, *texts), tiny.contexts("tiny-F16", *texts))
        measured.append([recall, correlation, cka, *contexts, error])
    same, near, far = measured
    assert [estimate.value for estimate in same[:-1]] == pytest.approx([1, 1, 1, 1, 1], abs=1e-12)
    assert same[0].value == same[1].value == same[3].value == 1
    assert same[-1].value < 1e-7
    for one, other in zip(near[:-1], far[:-1], strict=True):
        assert 1 > one.value > other.value, one.metric
    assert same[-1].value < near[-1].value < far[-1].value
    assert far[0].value < near[0].value - 3 * (near[0].se or 0)


def test_the_aligned_space_is_that_of_the_matrices(tiny: _Session) -> None:
    found = tiny.embeddings().aligned(tiny.load("tiny-Q2_K"), tiny.load("tiny-F16"))
    candidate, reference = (_matrix(tiny.load(name).files[0]) for name in ("tiny-Q2_K", "tiny-F16"))
    aligned = align(candidate, reference)
    assert unpack("procrustes_error", found["procrustes_error"]).value == pytest.approx(
        aligned.procrustes_error.value, rel=1e-6
    )
    space = tiny.space("tiny-Q2_K")
    vectors = np.concatenate([space["word_vectors"], space["map_vectors"]])
    assert np.abs(found["map_vectors"] - aligned.apply(vectors)).max() < 1e-4


def test_measurements_come_from_the_cache(tiny: _Session) -> None:
    tiny.space("tiny-F16")
    again = _Session(tiny.core.options.results, "--models=tiny", "--gguf-quants=Q8_0,Q2_K")
    space = again.space("tiny-F16")
    assert (again.core.hits, again.core.misses) == (1, 0)
    assert {name: array.tolist() for name, array in space.items()} == {
        name: array.tolist() for name, array in tiny.space("tiny-F16").items()
    }
    again.core.close()


# -- other architectures, other vocabularies --------------------------------------------------------------------------


@pytest.fixture
def others(tmp_path: Path) -> Iterator[_Session]:
    """Models that share neither vocabulary nor size nor architecture."""
    write_random_llama(tmp_path / "one.gguf")
    write_random_llama(tmp_path / "two.gguf", extra_tokens=5, width=512, seed=3)
    write_small_bert(tmp_path / "bert.gguf")
    session = _Session(tmp_path / "results", f"--models={tmp_path}/*.gguf", f"--reference={tmp_path}/one.gguf")
    yield session
    session.core.close()


def test_words_of_two_vocabularies_are_compared(others: _Session) -> None:
    one, two = (WordSpace(WORDS.words, others.space(name)) for name in ("one", "two"))
    assert one.vectors.shape[1] != two.vectors.shape[1]
    assert one.several > 0.9 * len(WORDS.words)
    found = {estimate.metric: (estimate, chance) for estimate, chance in compare_word_spaces(two, one)}
    recall, chance = found["word_neighbour_recall"]
    # The bytes are random, but both models write the same words with them: words that share bytes are neighbours.
    assert chance + 3 * (recall.se or 0) < recall.value < 1
    assert all(0 <= estimate.value <= 1 for estimate, _ in found.values())
    with pytest.raises(VocabularyMismatch):
        check_same_vocabulary(others.load("two").info, others.load("one").info)


def test_an_embedding_model_pools(others: _Session) -> None:
    contexts = others.contexts("bert", "the dog is red", "one cat")
    assert contexts.keys() == {"prompt_tokens", "prompt_pooled"}
    assert contexts["prompt_pooled"].shape == (2, 64)
    (estimate,) = compare_prompts(contexts, contexts)
    assert (estimate.metric, estimate.value) == ("pooled_cosine", 1)
    space = others.space("bert")
    words = WordSpace(WORDS.words, space)
    assert {"dog", "red", "three"} <= set(words.index)
    # What its vocabulary has no letters for is no word of it.
    assert "0" not in words.index


def test_an_encoder_has_contexts(tmp_path: Path) -> None:
    """Its own tap; the small model has no words, so that it is given tokens."""
    file = write_small_model(tmp_path / "t5.gguf", "t5", 2)
    texts = [np.array(tokens, dtype=np.int32) for tokens in ([1, 2, 3], [], [5])]
    ours, _theirs = multiprocessing.Pipe()
    settings = SessionSettings(n_ctx=64, n_batch=64, n_ubatch=64)
    seen: list[NDArray[np.float32]] = []
    reader = {"encoder.ln_final.normalized": lambda _, values: seen.append(values.copy())}
    with Model([file]) as model, Context(model, settings, Taps("t5", 2, read=reader)) as other:
        request = ContextRequest((file,), "t5", 2, settings, ())
        states = _final_states(WorkerContext(ours), model, request, texts)
        other.encode(texts[0])
    assert [None if state is None else state.shape for state in states] == [(3, 64), None, (1, 64)]
    assert states[0] is not None
    assert np.array_equal(states[0], seen[0])


# -- large vocabularies -----------------------------------------------------------------------------------------------


def write_vocabulary(path: Path, rows: int, d: int) -> Path:
    """A file of nothing but random token embeddings in Q8_0: 34 bytes for each 32 numbers."""
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    raw = np.empty((rows, d // 32, 34), dtype=np.uint8)
    for start in range(0, rows, 8192):
        part = raw[start : start + 8192]
        part[..., :2] = np.full((*part.shape[:2], 1), 0.01, dtype=np.float16).view(np.uint8)
        part[..., 2:] = random.integers(0, 256, size=(*part.shape[:2], 32), dtype=np.uint8)
    writer.add_tensor("token_embd.weight", raw.reshape(rows, -1), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def peak_bound(rows: int, d: int) -> int:
    """The formula of `describe_matrix`, and some for what is small."""
    s, q, b = min(16384, rows), min(1000, rows), 1024
    return 4 * s * d + max(8 * (4 * b * d + 3 * d * d), 4 * (2 * q * d + 5 * b * d + 5 * q * b)) + 8_000_000


def test_a_large_vocabulary_is_read_in_blocks(tmp_path: Path) -> None:
    rows, d = 65536, 512
    weights = Weights([write_vocabulary(tmp_path / "large.gguf", rows, d)])
    assert peak_bound(rows, d) < 0.6 * 4 * rows * d
    tracemalloc.start()
    arrays = describe_matrix(weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < peak_bound(rows, d)
    matrix = weights.tensor("token_embd.weight")
    for place in range(3):
        query = arrays["queries"][place]
        cosines = matrix @ matrix[query].astype(np.float64)
        cosines /= np.linalg.norm(matrix, axis=1).astype(np.float64) * np.linalg.norm(matrix[query].astype(np.float64))
        cosines[query] = -np.inf
        assert arrays["neighbours"][place].tolist() == np.argsort(-cosines)[:10].tolist()
