"""How the reference model was made: what is held out, what a batch is, and that the card says what was measured."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_harness.fixtures.train import training_text as text
from gguf_harness.fixtures.train import voyage_text as voyage
from gguf_harness.fixtures.train.adapter_card import write_adapter_card
from gguf_harness.fixtures.train.batches import Batches
from gguf_harness.fixtures.train.card import write_card
from gguf_harness.fixtures.train.tokenizer import BOS, EOS, SPECIAL, VOCABULARY, train_tokenizer
from gguf_harness.fixtures.train.training_text import held_out_texts, held_out_topics, paragraphs, training_texts
from gguf_harness.fixtures.train.voyage_text import voyage_text
from gguf_harness.gguf.lora_files import read_lora
from gguf_harness.inputs.adapters import VOYAGE_FILE, check_fits, load_adapter
from gguf_harness.inputs.corpora import pydoc_topics
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.sources import TINY_FILE, expand

SOME_TEXT = np.random.default_rng(0).integers(2, VOCABULARY, 5000)


def test_the_file_says_what_was_held_out() -> None:
    (source,) = expand("tiny")
    recorded = set(load_info(source).held_out_topics)
    # Another Python may have topics of its own.
    assert recorded & pydoc_topics().keys() == set(held_out_topics()) & recorded
    assert 0.05 < sum(map(len, held_out_texts())) / sum(map(len, pydoc_topics().values())) < 0.3


def test_nothing_that_is_held_out_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = textwrap.indent(max(paragraphs(held_out_texts()[0]), key=len), "    ")

    def docstrings() -> Iterator[str]:
        yield from ("Return the answer.", f"Of a topic:\n\n{copied}", "Return the answer.", "Another one.")

    monkeypatch.setattr(text, "_docstrings", docstrings)
    texts = training_texts()
    assert texts[-2:] == ["Return the answer.", "Another one."]
    assert len(texts) == len(set(texts))
    # Some topics stand in others: not a paragraph is shared.
    assert not {p for t in texts for p in paragraphs(t)} & {p for t in held_out_texts() for p in paragraphs(t)}


def test_topics_that_share_a_paragraph_stay_together() -> None:
    long = "a sentence that is long enough to be the same text wherever it is found"
    topics = {"a": f"{long} 1", "b": f"{long} 2\n\n{long} 3", "c": "short", "d": f"{long} 1\n\n  {long}\n3"}
    assert sorted(map(sorted, text._groups(topics))) == [["a", "b", "d"], ["c"]]


@given(st.integers(1, 16), st.sampled_from([64, 256, 512]), st.floats(0, 1), st.integers(0, 99))
def test_batches(rows: int, length: int, share: float, seed: int) -> None:
    batch = Batches(SOME_TEXT, VOCABULARY, seed).draw(rows, length, share)
    assert batch.inputs.shape == batch.targets.shape == batch.counts.shape == (rows, length)
    assert (batch.inputs[:, 0] == BOS).all()
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
    # With nothing but repetitions, all of them are of random tokens: the drill.
    random = rows if share == 1 else round(rows * share) // 2
    assert batch.counts[random:].all()
    for tokens, counts in zip(batch.inputs[:random], batch.counts[:random], strict=True):
        # What is scored was announced: its token and the one before it occurred together, earlier in the window.
        period = int(np.argmax(counts)) - 1
        assert 8 <= period < length // 2
        assert (tokens[period + 2 :] == tokens[2 : length - period]).all()
        assert tokens.max() < VOCABULARY
        assert tokens[1:].min() >= len(SPECIAL)


def test_an_epoch_reads_every_window_once() -> None:
    batches = Batches(np.arange(2, 2002), VOCABULARY, 0)
    seen = np.concatenate([batches.draw(1, 99, 0).targets.ravel() for _ in range(19)])
    assert len(np.unique(seen)) == len(seen)


def test_the_same_seed_draws_the_same() -> None:
    first, second = (Batches(SOME_TEXT, VOCABULARY, 7).draw(8, 128, 0.5) for _ in range(2))
    assert (first.inputs == second.inputs).all()
    assert (first.counts == second.counts).all()


def test_the_tokenizer_has_every_byte_and_its_special_tokens_first() -> None:
    tokenizer = train_tokenizer(["some text, and some more text"] * 3)
    assert tokenizer.token_to_id(SPECIAL[0]) == BOS
    assert tokenizer.token_to_id(SPECIAL[1]) == EOS
    for content in ("text", "déjà vu ☃ \x00 \U0001f600", "\n\t  x"):
        assert tokenizer.decode(tokenizer.encode(content).ids) == content


def test_the_card_is_what_was_measured(tmp_path: Path) -> None:
    facts = json.loads(TINY_FILE.with_name("tiny.json").read_text(encoding="utf-8"))
    write_card(tmp_path / "card.md", facts)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert card == TINY_FILE.with_name("tiny.md").read_text(encoding="utf-8")
    assert "{" not in card


def test_the_adapter_s_text_is_what_the_script_writes() -> None:
    texts = {held_out: voyage_text(held_out=held_out) for held_out in (False, True)}
    for held_out, name in ((False, "training"), (True, "held-out")):
        assert texts[held_out] == TINY_FILE.with_name(f"voyage-{name}.txt").read_text(encoding="utf-8")
    assert texts[True].isascii()
    # The style is shared, not the entries: some sentences and names are in the held-out part only.
    entries = [{entry.partition("\n")[2] for entry in text.strip().split("\n\n")} for text in texts.values()]
    assert not entries[0] & entries[1]
    kept = set(voyage._SENTENCES) - set(voyage._kept(voyage._SENTENCES, held_out=False))
    pieces = [max(re.split(r"\{\w+\}", sentence), key=len) for sentence in kept]
    assert 3 < len(kept) < 20
    assert not any(piece in texts[False] for piece in pieces)
    assert all(piece in texts[True] for piece in pieces)


def test_the_adapter_s_card_is_what_was_measured(tmp_path: Path) -> None:
    known = json.loads(VOYAGE_FILE.with_suffix(".json").read_text(encoding="utf-8"))
    card = VOYAGE_FILE.with_suffix(".md").read_text(encoding="utf-8")
    for losses in known["loss"].values():
        change = losses["adapted"] - losses["base"]
        assert f"{change:+.3f}" in card
    assert known["loss"]["own"]["adapted"] < known["loss"]["own"]["base"] - 0.5
    assert abs(known["loss"]["others"]["adapted"] - known["loss"]["others"]["base"]) < 0.05
    assert f"{known['training_tokens']:,} tokens" in card
    assert "{" not in card
    write_adapter_card(tmp_path / VOYAGE_FILE.with_suffix(".md").name, known)
    assert (tmp_path / VOYAGE_FILE.with_suffix(".md").name).read_text(encoding="utf-8") == card


def test_the_adapter_is_small_sound_and_fits(tmp_path: Path) -> None:
    known = json.loads(VOYAGE_FILE.with_suffix(".json").read_text(encoding="utf-8"))
    assert VOYAGE_FILE.stat().st_size == known["bytes"] < 300_000
    adapter = load_adapter(VOYAGE_FILE, tmp_path)
    (source,) = expand("tiny")
    check_fits(adapter, load_info(source))
    lora = read_lora(VOYAGE_FILE)
    assert (lora.rank, lora.alpha, len(lora.pairs)) == (known["recipe"]["rank"], known["recipe"]["alpha"], 35)
