"""The API over real models: its numbers are those of the forward pass, one decode serves several questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gguf_harness as gh
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import ModelError, OptionError, PromptError, VocabularyMismatch
from gguf_harness.inputs.prompts import Message, Prompt
from gguf_harness.measure.texts.tasks import GenerateRequest, Generation, generate_texts
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from tests.integration.small_models import write_small_model

pytestmark = pytest.mark.model

PROMPT = "The assignment statement evaluates the expression list, and the list"
KINDS = ("pattern", "scores", "q", "k", "v")
SETTINGS = SessionSettings(threads=2, n_gpu_layers=0)


@pytest.fixture(scope="module")
def tiny() -> Iterator[gh.OpenModel]:
    with gh.open("tiny", threads=2, gpu=-1) as model:
        yield model


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Iterator[gh.OpenModel]:
    with gh.open(smollm2_file, threads=2, gpu=-1) as model:
        yield model


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny` in Q2_K."""
    return gh.quantize("tiny", "Q2_K", tmp_path_factory.mktemp("quantized"), threads=2)


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_numbers_are_those_of_the_forward_pass(name: str, request: pytest.FixtureRequest) -> None:
    model: gh.OpenModel = request.getfixturevalue(name)
    truth = model._live.read(PROMPT, attention=KINDS)
    attention, states, after = model.attention(PROMPT), model.hidden_states(PROMPT), model.next_tokens(PROMPT)
    assert attention.tokens.tolist() == truth.tokens.tolist()
    assert attention.layers == tuple(truth.pattern)
    for kind in KINDS:
        np.testing.assert_array_equal(getattr(attention, kind), np.stack(list(getattr(truth, kind).values())))
    for part in ("embed", "resid_mid", "attn_out", "mlp_out", "resid_post"):
        np.testing.assert_array_equal(getattr(states, part), truth.states[part])
    assert truth.logits is not None
    logprobs = log_softmax(truth.logits[-1])
    assert after.tokens[0] == logprobs.argmax()
    np.testing.assert_array_equal(after.logprobs, np.sort(logprobs)[::-1][:64])
    assert after.logprobs.tolist() == logprobs[after.tokens].tolist()
    for result in (model, model.facts, attention, states, after, model.lens(PROMPT), model.structure()):
        assert len(repr(result)) < 500


def test_several_questions_are_one_decode(tiny: gh.OpenModel) -> None:
    """Also of a chat and of tokens; another choice of what is off is another decode."""
    first = tiny.read(PROMPT)
    assert tiny.attention(PROMPT)._reading is first
    assert tiny.hidden_states(PROMPT)._reading is first
    assert tiny.next_tokens(PROMPT, place=2)._reading is first
    assert tiny.read(PROMPT, off=gh.off()) is first
    off = tiny.read(PROMPT, off=gh.off(heads=[(1, 1), (0, 2)]))
    assert off is not first
    assert tiny.attention(PROMPT, off=gh.off(heads=[(0, 2), (1, 1)]))._reading is off
    again = tiny.read(first.tokens)
    assert again is not first
    np.testing.assert_array_equal(again.states["resid_post"], first.states["resid_post"])
    # The last four are kept.
    for each in ("one", "two", "three"):
        tiny.read(each)
    assert tiny.read(PROMPT) is not first


def test_what_is_off_is_read_as_far_as_it_was_asked_for(tiny: gh.OpenModel) -> None:
    """Trying head by head needs predictions alone; who asks for more gets all that was asked for so far."""
    off = gh.off(heads=[(3, 3)])
    after = tiny.next_tokens(PROMPT, off=off)
    assert not after._reading.pattern
    assert not after._reading.states
    attention = tiny.attention(PROMPT, off=off)
    assert attention._reading.logits is not None
    np.testing.assert_array_equal(attention._reading.next_logprobs(), after._reading.next_logprobs())
    whole = tiny.read(PROMPT, off=off)
    np.testing.assert_array_equal(attention.pattern, np.stack(list(whole.pattern.values())))
    assert tiny.next_tokens(PROMPT, off=off)._reading is whole


def test_heads_that_repeat_are_missed_where_they_are_off(smollm2: gh.OpenModel) -> None:
    """Words in no order that come twice: heads that attend to what followed the same word before predict them.

    Olsson et al. (2022), "In-context Learning and Induction Heads". Heads of the same layers that attend elsewhere are
    not missed.
    """
    known = smollm2.vocabulary.all()[:6000]
    words = [token for token, text in enumerate(known) if text[:1] == b" " and len(text) > 4 and text[1:].islower()]
    chosen = np.random.default_rng(1).choice([each for each in words if known[each][1:].isalpha()], 10, replace=False)
    prompt, count = [*chosen.tolist()] * 2, len(chosen)
    queries = np.arange(count, 2 * count - 1)
    scores = smollm2.attention(prompt).pattern[:, :, queries, queries - count + 1].mean(axis=-1)
    ranked = np.column_stack(np.unravel_index(np.argsort(-scores, axis=None), scores.shape))
    repeating = [(int(layer), int(head)) for layer, head in ranked[:4]]
    others = [(layer, int(scores[layer].argmin())) for layer, _ in repeating]

    def probability(off: gh.Ablation | None) -> float:
        return float(np.exp(-smollm2.read(prompt, off=off).nll()[count + 1 :]).mean())

    usual, without, control = (probability(off) for off in (None, gh.off(heads=repeating), gh.off(heads=others)))
    assert usual > 0.05
    assert without < usual / 5
    assert control > usual / 2


def test_a_layer_that_is_off_adds_nothing(tiny: gh.OpenModel) -> None:
    usual, off = tiny.hidden_states(PROMPT), tiny.hidden_states(PROMPT, off=gh.off(layers=[2]))
    np.testing.assert_array_equal(off.resid_post[1], usual.resid_post[1])
    np.testing.assert_array_equal(off.resid_post[2], off.resid_post[1])
    assert np.abs(off.resid_post[3] - usual.resid_post[3]).max() > 1
    assert tiny.attention(PROMPT, off=gh.off(layers=[2])).plot().title == "Attention of tiny-F16 with layer 2 off"


def test_the_lens_ends_with_the_prediction(tiny: gh.OpenModel) -> None:
    for place in (3, -1):
        lens, after = tiny.lens(PROMPT, place=place), tiny.next_tokens(PROMPT, place=place)
        assert lens.tokens.shape == (5, 16)
        assert lens.tokens[-1, 0] == after.tokens[0]
        # The unembedding is computed in a batch of another size, and rounds otherwise.
        assert lens.logprobs[-1] == pytest.approx(after.logprobs[:16], abs=5e-3)
        assert lens.place == after.place == place % len(tiny.read(PROMPT).tokens)
    frame = lens.to_frame()
    assert [str(dtype) for dtype in frame.dtypes] == ["Int64", "Int64", "Int64", "string", "float64", "float64"]
    assert frame.query("layer == 4 and rank == 1")["piece"].item() == after.pieces[0]
    likeliest = lens.pieces[-1][0]
    np.testing.assert_allclose(
        lens.probability(likeliest)[-1], tiny.next_tokens(PROMPT).probability(likeliest), rtol=0.01
    )
    assert lens.probability(likeliest).shape == (len(lens.tokens),)
    with pytest.raises(gh.HarnessError, match="No token of tiny-F16"):
        lens.probability("no such token at all")


@pytest.mark.parametrize(("name", "limit"), [("tiny", 24), ("smollm2", 6)])
def test_a_text_is_what_the_texts_suite_measures(name: str, limit: int, request: pytest.FixtureRequest) -> None:
    """A text, and a chat through the model's own template."""
    model: gh.OpenModel = request.getfixturevalue(name)
    given = PROMPT if name == "tiny" else [{"role": "user", "content": "Name a colour."}]
    prompt = Prompt("p", PROMPT) if name == "tiny" else Prompt("p", None, (Message("user", "Name a colour."),))
    asked = GenerateRequest(model.name, model.info.files, SETTINGS, (prompt,), limit)
    truth = model._live.call(generate_texts, asked).generations["p"]
    assert isinstance(truth, Generation)
    made = model.generate(given, limit=limit)
    assert made.tokens.tolist() == truth.tokens
    assert made.text == truth.text
    assert made.prompt_tokens.tolist() == truth.prompt_tokens
    assert made.end == ("limit" if truth.end is None else "end")
    assert made.logprobs == pytest.approx(truth.logprobs, abs=2e-2)
    if name == "tiny":
        assert "".join(token.text for token in model.stream(given, limit=limit)) == made.text
    else:
        assert model.read(given).texts[0] == "<|im_start|>"


def test_a_seed_makes_a_text(tiny: gh.OpenModel) -> None:
    texts = [tiny.generate(PROMPT, limit=12, temperature=0.9, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    (token,) = tiny.stream(PROMPT, limit=1, attention=True)
    assert token.attention is not None
    # The first token is chosen after the whole prompt was read.
    rows = np.concatenate(list(tiny.read(PROMPT).pattern.values()))[:, -1]
    assert token.attention == pytest.approx(rows, abs=1e-3)
    with pytest.raises(OptionError, match="temperature is -1"):
        tiny.stream(PROMPT, temperature=-1)
    with pytest.raises(TypeError, match="temperature is a number, got 'hot'"):
        tiny.generate(PROMPT, temperature="hot")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="limit is 0"):
        tiny.stream(PROMPT, limit=0)


def test_files_and_words_are_those_of_the_model(tiny: gh.OpenModel) -> None:
    structure = tiny.structure()
    frame = structure.to_frame()
    assert frame["bytes"].sum() == structure.bytes < tiny.info.bytes
    assert frame["weights"].sum() == tiny.info.parameters
    assert (frame["layer"].isna() == ~frame["name"].str.startswith("blk.")).all()
    assert frame["bits"].to_numpy() == pytest.approx(8 * frame["bytes"].to_numpy() / frame["weights"].to_numpy())
    words = tiny.word_embeddings()
    near = words.nearest("dog", 3)
    assert [str(dtype) for dtype in near.dtypes] == ["string", "string", "float64"]
    a, b = (words.vectors[words.words.index(word)].astype(float) for word in ("dog", near["word"][0]))
    assert near["cosine"][0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert len(words.to_frame()) == len(words.words) == len(words.counts)
    with pytest.raises(OptionError, match="'Xyz' is not in the list"):
        words.nearest("Xyz")


def test_a_comparison_is_of_the_distributions(tiny: gh.OpenModel, coarse: Path) -> None:
    with gh.open(coarse, threads=2, gpu=-1) as candidate:
        found = gh.compare(tiny, candidate, PROMPT)
        base, own = tiny.read(PROMPT), candidate.read(PROMPT)
    assert base.logits is not None
    assert own.logits is not None
    p, q = (np.stack([log_softmax(row) for row in logits]) for logits in (base.logits, own.logits))
    # It is computed from logits in single precision.
    assert found.kld == pytest.approx((np.exp(p) * (p - q)).sum(axis=1), rel=1e-5)
    assert found.kld_mean > 0.05
    assert found.same_top.tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    rows, following = np.arange(len(p) - 1), base.tokens[1:]
    assert found.delta_p[:-1] == pytest.approx(np.exp(q[rows, following]) - np.exp(p[rows, following]))
    assert np.isnan(found.delta_p[-1])
    at = found.heads.index((2, 7))
    apart = np.abs(own.pattern[2][7].astype(float) - base.pattern[2][7]).sum(-1) / 2
    assert found.attention_moved[at] == pytest.approx(apart)
    assert found.attention_moved.max() <= 1
    a, b = (each.states["resid_post"][3].astype(float) for each in (base, own))
    assert found.stream_error[3] == pytest.approx((np.linalg.norm(b - a, axis=1) / np.linalg.norm(a, axis=1)).mean())
    frame = found.to_frame()
    kinds = ["Int64", "string", "string", "float64", "boolean", "float64", "string", "string", *["float64"] * 3]
    assert [str(dtype) for dtype in frame.dtypes] == kinds
    assert (frame["p_candidate"] - frame["p_reference"])[:-1].to_numpy() == pytest.approx(found.delta_p[:-1])
    assert frame["total_variation"].to_numpy() == pytest.approx(found.attention_moved.mean(0))
    assert len(repr(found)) < 500
    assert "<table>" in found._repr_html_()


def test_models_by_name_are_loaded_when_they_are_needed(tiny: gh.OpenModel, coarse: Path) -> None:
    """And give what open ones give; the lens loads them again."""
    found = gh.compare(tiny, coarse, PROMPT, threads=2, gpu=-1)
    assert (found.reference, found.candidate) == ("tiny-F16", "tiny-Q2_K")
    lenses = found.lens(4)
    assert ["tiny-F16" in each.title for each in lenses.pictures] == [True, False]
    off = gh.off(heads=[(1, 1)])
    same = gh.compare("tiny", "tiny", PROMPT, off=off, threads=2, gpu=-1)
    assert same.candidate == "tiny-F16, head 1.1 off"
    np.testing.assert_array_equal(same.kld, gh.compare(tiny, tiny, PROMPT, off).kld)
    assert same.kld.any()
    none = gh.compare(tiny, tiny, PROMPT)
    assert not none.kld.any()
    assert not none.attention_moved.any()
    assert none.top_agreement == 1


def test_what_was_answered_stays_when_the_model_is_closed() -> None:
    """And what is asked of it too: the texts of all tokens are loaded again."""
    with gh.open("tiny", threads=2, gpu=-1) as model:
        after = model.next_tokens(PROMPT)
    assert after.plot().view == "next_tokens"
    assert after.probability(after.pieces[3]) == pytest.approx(after.probabilities[3])
    assert model.closed
    assert repr(model).endswith(", closed>")
    with pytest.raises(OptionError, match="tiny-F16 is closed"):
        model.attention(PROMPT)
    model.close()


def test_what_cannot_be_is_a_message(tiny: gh.OpenModel, smollm2: gh.OpenModel, tmp_path: Path) -> None:
    with pytest.raises(VocabularyMismatch, match="different vocabularies") as told:
        gh.compare(tiny, smollm2, PROMPT)
    assert "--reference" not in str(told.value)
    with pytest.raises(PromptError, match="do not fit into the model's context of 512") as long:
        tiny.next_tokens("word " * 600)
    assert long.value.hint == "Give a prompt of at least one token that fits into the context."
    with pytest.raises(OptionError, match="The prompt has 1 tokens, and none at 1"):
        tiny.next_tokens("", place=1)
    with pytest.raises(OptionError, match=r"has no head 1\.8"):
        tiny.attention(PROMPT, off=gh.off(heads=[(1, 8)]))
    with pytest.raises(OptionError, match="There is no layer 5"):
        tiny.attention(PROMPT, layers=[5])
    with pytest.raises(OptionError, match=r"has no head 7\.0"):
        tiny.attention(PROMPT).steps(7, 0)
    encoder = write_small_model(tmp_path / "encoder.gguf", "t5encoder", 2)
    with gh.open(encoder, threads=2, gpu=-1) as model:
        assert model.facts.missing
        with pytest.raises(ModelError, match="attention cannot be read"):
            model.attention([1, 2, 3])
        with pytest.raises(ModelError, match="residual stream cannot be read"):
            model.hidden_states([1, 2, 3])
        assert len(model.structure().tensors) > 2


def test_a_model_that_nothing_refers_to_is_freed() -> None:
    import gc

    import psutil

    before = {child.pid for child in psutil.Process().children()}
    model = gh.open("tiny", threads=2, gpu=-1)
    answer = model.next_tokens(PROMPT)
    (own,) = {child.pid for child in psutil.Process().children()} - before
    del model
    gc.collect()
    psutil.wait_procs([psutil.Process(own)] if psutil.pid_exists(own) else [], timeout=10)
    assert own not in {child.pid for child in psutil.Process().children()}
    assert answer.plot().view == "next_tokens"
