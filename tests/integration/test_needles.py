"""Facts in long texts on real models: the numbers are those of a plain decode, and a model that can finds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import CorpusError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.needles import Needle, load_needles
from gguf_harness.measure.kv.needle_tasks import NeedleRequest, run_needles
from gguf_harness.measure.passes.tasks import CorpusText, window_order
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from gguf_harness.metrics.needle_scores import compare_needles, summarize_needles
from tests.loaded import open_context
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

NEEDLES = (Needle("a", "The code of it is", "41 7"), Needle("b", "The name of the dog is", "Rex"))
DEPTHS = (0.0, 0.6, 1.0)
TINY = Path(__file__).parents[2] / "fixtures" / "data" / "tiny-F16.gguf"


def _request(file: Path, needles: tuple[Needle, ...], n_ctx: int, haystacks: int) -> NeedleRequest:
    text = CorpusText("pydoc", load_corpus("pydoc").text[:20_000])
    how = SessionSettings(n_ctx=n_ctx, n_batch=n_ctx)
    return NeedleRequest("m", (file,), how, text, "sampled", needles, haystacks, DEPTHS)


@pytest.mark.parametrize("add_bos", [False, True])
def test_answers_have_the_probability_of_a_plain_decode(worker: WorkerContext, tmp_path: Path, add_bos: bool) -> None:
    """Texts put together here, token by token, and decoded whole."""
    file = write_random_llama(tmp_path / "m.gguf", add_bos=add_bos)
    request = _request(file, NEEDLES, 96, 2)
    found = run_needles(worker, request)
    assert found["logprob"].shape == found["rank"].shape == (2, 2, 4)
    with open_context([file], request.settings) as context:
        model = context.model

        def tokens(text: str) -> list[int]:
            return [int(token) for token in model.tokenize(text, add_special=False)]

        stream = model.tokenize(request.corpus.text, add_special=False)
        windows = stream[: len(stream) // 96 * 96].reshape(-1, 96)
        order = window_order(len(windows), request.corpus.text, "sampled")
        start = [model.vocabulary.bos] if add_bos else []
        for needle, haystack in np.ndindex(2, 2):
            statement, answer = (
                tokens(each) for each in (f"\n{NEEDLES[needle].statement}", f" {NEEDLES[needle].answer}")
            )
            fact = [*statement, *answer, *tokens(".\n")]
            room = 96 - len(start) - len(fact) - len(statement) - len(answer)
            text = windows[order[2 * needle + haystack]][:room].tolist()
            assert found["answer_tokens"][needle] == len(answer)
            for place in range(4):
                whole = [*start, *text, *statement, *answer]
                if place:
                    cut = int(found["at"][needle, haystack, place - 1]) - len(start)
                    assert 0 <= round(DEPTHS[place - 1] * room) - cut < 32
                    whole = [*start, *text[:cut], *fact, *text[cut:], *statement, *answer]
                    assert len(whole) == 96
                logits = context.logits(np.array(whole, dtype=np.int32))[len(whole) - len(answer) - 1 : -1]
                logprobs = [log_softmax(row) for row in logits]
                expected = sum(row[token] for row, token in zip(logprobs, answer, strict=True))
                assert found["logprob"][needle, haystack, place] == pytest.approx(expected, abs=2e-3)
                likelier = sorted(logprobs[0], reverse=True)
                rank = int(found["rank"][needle, haystack, place])
                assert abs(likelier[rank - 1] - logprobs[0][answer[0]]) < 1e-3


def test_facts_stand_between_sentences(worker: WorkerContext) -> None:
    request = _request(TINY, NEEDLES, 192, 2)
    found = run_needles(worker, request)
    model = worker.model(request.files, request.settings.n_gpu_layers)
    stream = model.tokenize(request.corpus.text, add_special=False)
    windows = stream[: len(stream) // 192 * 192].reshape(-1, 192)
    order = window_order(len(windows), request.corpus.text, "sampled")
    cuts = (found["at"][..., 1].ravel() - 1).tolist()  # without BOS
    before = [model.detokenize(windows[order[i]][cut - 1 : cut]) for i, cut in enumerate(cuts)]
    assert [piece for piece in before if not piece.rstrip(b" ").endswith((b".", b"\n", b"!", b"?"))] == []


def test_a_language_model_finds_facts_and_a_rough_cache_loses_some(worker: WorkerContext, smollm2_file: Path) -> None:
    request = replace(_request(smollm2_file, load_needles().needles[:3], 80, 1), depths=(0.0, 1.0))
    plain = run_needles(worker, request)
    lifts = [each for each in summarize_needles(plain, request.depths) if each.metric == "needle_lift"]
    assert [each.place.part for each in lifts] == [None, "0 %", "100 %"]
    for estimate in lifts:
        assert estimate.low is not None
        assert estimate.low > 2
    rough = replace(request.settings, cache_type_k="q4_0", cache_type_v="q4_0", rotate_kv=False)
    (change, *_) = compare_needles(run_needles(worker, replace(request, settings=rough)), plain, request.depths)
    assert change.value < 0


@pytest.mark.parametrize(
    ("n_ctx", "haystacks", "message"),
    [(24, 1, "has no room for a fact"), (96, 500, r"2 facts in 500 texts each need 1000")],
)
def test_texts_that_cannot_be_made(
    worker: WorkerContext, llama_file: Path, n_ctx: int, haystacks: int, message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        run_needles(worker, _request(llama_file, NEEDLES, n_ctx, haystacks))
