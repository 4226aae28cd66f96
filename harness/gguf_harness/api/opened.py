"""A model that is loaded once and asked again and again."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

from gguf_harness.api.arguments import AnyPrompt, ablation_of, place_of, prompt_of, real, whole
from gguf_harness.api.attention_results import Attention, attention_of
from gguf_harness.api.generated import Generated, StreamedToken, collect, streamed
from gguf_harness.api.head_results import HeadBehaviour
from gguf_harness.api.loading import Loader, Loras
from gguf_harness.api.prediction_results import LogitLens, NextTokens, lens_of, next_tokens_of
from gguf_harness.api.readings import ATTENTION, EVERYTHING, Readings
from gguf_harness.api.state_results import HiddenStates, hidden_states_of
from gguf_harness.api.structure_results import Structure
from gguf_harness.api.token_texts import ModelVocabulary
from gguf_harness.api.word_results import WordEmbeddings
from gguf_harness.errors import OptionError
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.models import ModelInfo
from gguf_harness.inputs.prompts import load_prompts
from gguf_harness.inputs.words import load_words
from gguf_harness.measure.attention.tasks import AttentionRequest, observe_attention
from gguf_harness.measure.embeddings.tasks import EmbeddingRequest, measure_words
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import Ablation, ModelFacts, Sampling

__all__ = ["OpenModel", "open"]

_LIMIT_BYTES: Final = 8_000_000_000
_ATTENTION: Final = frozenset(ATTENTION)
_STATES: Final = frozenset({"states"})
_LOGITS: Final = frozenset({"logits"})


def open(  # noqa: A001 - gguf_harness.open
    model: str | Path,
    *,
    kv: str | None = None,
    lora: Loras | None = None,
    rope: str | None = None,
    threads: int | None = None,
    gpu: int = 0,
) -> OpenModel:
    """Load a model, to ask it several things: in a process of its own, so that a broken file harms nobody.

        with gguf_harness.open("model-Q4_K_M.gguf") as model:
            model.attention("The cat sat on the mat").plot()
            model.next_tokens("The cat sat on the")
        gguf_harness.open("tiny", kv="q8_0/q4_0", lora="style.gguf:0.5")

    Args:
        model: a path, an alias (`tiny`) or hf:org/repo:file, as for --models.
        kv: types of its KV cache as for --gguf-kv, `q8_0/q4_0` or `q4_0/q4_0+norot`; f16/f16 if not given. With a
            quantized V there is no attention pattern to read.
        lora: LoRA adapters in GGUF that are applied to it: a path, `FILE:SCALE`, or a list of those.
        rope: how positions are scaled, as for --gguf-rope: `yarn:4`; as its file says if not given.
        threads: CPU threads; the physical cores if not given.
        gpu: NVIDIA GPU, -1 for none; ignored where there is none.

    Raises:
        TypeError: an argument is of another type.
        HarnessError: there is no such model, or it cannot be loaded.
    """
    return OpenModel(Loader(model, threads, gpu, kv=kv, lora=lora, rope=rope))


class OpenModel:
    """A loaded model: what `gguf_harness.open` returns. A context manager; closed also when nothing refers to it.

    A `prompt` is a text, which is continued as it is; a chat, a list of {"role": ..., "content": ...}, which goes
    through the model's own chat template; or token ids. `off` is what is switched off, see `gguf_harness.off`.
    Questions about the same prompt cost one decode: what was read of the last ones is kept.

    Args:
        loader: the model, and how it is run.

    Attributes:
        loader: as given.
        vocabulary: texts of its tokens.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._live = loader.load()
        try:
            self._facts = self._live.facts
        except BaseException:
            self._live.close()
            raise
        loader.use(self._live)
        self._readings = Readings(self._live)
        self.vocabulary = ModelVocabulary(loader)
        self._closing = weakref.finalize(self, self._live.close)

    @property
    def name(self) -> str:
        """As it is shown."""
        return self._facts.name

    @property
    def info(self) -> ModelInfo:
        """Facts about its files."""
        return self.loader.info

    @property
    def facts(self) -> ModelFacts:
        """What can be read of it: layers, heads, their groups, its window; and what cannot be, and why."""
        return self._facts

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return not self._closing.alive

    def read(self, prompt: AnyPrompt, *, off: Ablation | None = None) -> Reading:
        """All that can be read of a prompt, as the other methods have it: arrays by layer.

        Raises:
            TypeError: an argument is of another type.
            HarnessError: the model cannot take the prompt, or what is to be off is not there.
        """
        return self._read(prompt, off, EVERYTHING)

    def attention(
        self,
        prompt: AnyPrompt,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        off: Ablation | None = None,
    ) -> Attention:
        """What every head attends to while it reads a prompt.

        Memory for n tokens is 8 n^2 bytes per head, and twice that during the transfer; for longer texts, use
        suites/attention, which sums up the behaviour of heads.

        Args:
            prompt: see the class.
            layers: those in the result; all with attention if not given.
            heads: those in the result, of each layer; all if not given.
            off: what is switched off.

        Raises:
            TypeError: an argument is of another type.
            ModelError: attention of this model cannot be read, or the layers do not fit into one array.
            HarnessError: the model cannot take the prompt, or a layer or head is not there.
        """
        return attention_of(self._read(prompt, off, _ATTENTION), layers, heads)

    def hidden_states(self, prompt: AnyPrompt, *, off: Ablation | None = None) -> HiddenStates:
        """The residual stream around every block.

        Memory for n tokens is 16 n d_model bytes per layer.

        Raises:
            TypeError: an argument is of another type.
            ModelError: the stream of this model cannot be read.
            HarnessError: the model cannot take the prompt, or what is to be off is not there.
        """
        return hidden_states_of(self._read(prompt, off, _STATES))

    def next_tokens(self, prompt: AnyPrompt, *, place: int = -1, off: Ablation | None = None) -> NextTokens:
        """The distribution of the token after a prompt, or after one of its tokens.

        Args:
            prompt: see the class.
            place: after which token, counted from 0; negative ones from the end.
            off: what is switched off.

        Raises:
            TypeError: an argument is of another type.
            NoData: the model predicts no tokens.
            HarnessError: the model cannot take the prompt, or the place is not in it.
        """
        reading = self._read(prompt, off, _LOGITS)
        return next_tokens_of(reading, self.vocabulary, place_of(place, len(reading.tokens)))

    def lens(self, prompt: AnyPrompt, *, place: int = -1, off: Ablation | None = None) -> LogitLens:
        """What each layer would predict after a prompt, or after one of its tokens: the logit lens.

        Args:
            prompt: see the class.
            place: after which token, counted from 0; negative ones from the end.
            off: what is switched off.

        Raises:
            TypeError: an argument is of another type.
            NoData: the stream of this model cannot be read.
            HarnessError: the model cannot take the prompt, or the place is not in it.
        """
        reading = self._read(prompt, off, _STATES)
        at = place_of(place, len(reading.tokens))
        return lens_of(reading, self._live.lens(reading, at), self.vocabulary, at)

    def stream(
        self,
        prompt: AnyPrompt,
        *,
        limit: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        off: Ablation | None = None,
        attention: bool = False,
    ) -> Iterator[StreamedToken]:
        """Continue a prompt token by token, as the tokens come.

            for token in model.stream("Once upon a time"):
                print(token.text, end="")

        Args:
            prompt: see the class.
            limit: most tokens.
            temperature: 0 takes the likeliest token each time.
            top_k: sample from so many of the likeliest tokens; 0 for no limit.
            top_p: sample from the likeliest tokens that have this probability together; 1 for no limit.
            min_p: sample from tokens with this share of the likeliest one's probability; 0 for no limit.
            seed: the same seed gives the same text.
            off: what is switched off.
            attention: whether each token says what the one before it attended to.

        Raises:
            TypeError: an argument is of another type.
            NoData: the model predicts no tokens.
            HarnessError: the model cannot take the prompt, or a number is out of its range.
        """
        live, tokens = self._alive(), prompt_of(prompt)
        sampling = Sampling(
            temperature=real(temperature, "temperature"),
            top_k=whole(top_k, "top_k"),
            top_p=real(top_p, "top_p"),
            min_p=real(min_p, "min_p"),
            seed=whole(seed, "seed"),
        )
        ablation, most = ablation_of(off), whole(limit, "limit", 1)
        given = live.tokenize(tokens)[0].tolist()
        return streamed(live.steps(given, most, ablation, sampling, attention=attention))

    def generate(
        self,
        prompt: AnyPrompt,
        *,
        limit: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        off: Ablation | None = None,
    ) -> Generated:
        """Continue a prompt until the model ends its text, or the limit; arguments and errors as of `stream`."""
        tokens, _ = self._alive().tokenize(prompt_of(prompt))
        steps = self.stream(
            tokens.tolist(),
            limit=limit,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            off=off,
        )
        return collect(steps, tokens, limit, self.name)

    def heads(self, prompts: str | Path | None = None) -> HeadBehaviour:
        """What each head does with a set of prompts: its scores and its kind.

        Args:
            prompts: a TOML file of prompts; the built-in set if not given.

        Raises:
            ModelError: tokens attend to later ones, as in an encoder.
            HarnessError: attention cannot be read, or the prompts cannot.
        """
        live, info = self._alive(), self.info
        text = load_corpus("pydoc", held_out_topics=info.held_out_topics).text
        with tempfile.TemporaryDirectory() as folder:
            request = AttentionRequest(
                model=info.name,
                files=info.files,
                architecture=info.architecture,
                n_layer=info.n_layer or 0,
                settings=live.settings,
                prompts=load_prompts(None if prompts is None else Path(prompts)).prompts,
                text=text,
                folder=Path(folder),
                limit_bytes=_LIMIT_BYTES,
            )
            return HeadBehaviour.named(live.call(observe_attention, request), self.name)

    def word_embeddings(self, words: str | Path | None = None) -> WordEmbeddings:
        """The token embeddings of a word list, as in suites/embeddings.

        Args:
            words: a TOML file, see `gguf_harness.inputs.words`; the built-in list if not given.

        Raises:
            HarnessError: the model has no token embeddings, or the list cannot be read.
        """
        live, listed = self._alive(), load_words(None if words is None else Path(words))
        arrays = live.call(measure_words, EmbeddingRequest(self.info.files, live.settings, listed.words))
        there = arrays["word_tokens"] > 0
        known = tuple(word for word, written in zip(listed.words, there.tolist(), strict=True) if written)
        return WordEmbeddings(
            words=known,
            groups=tuple(listed.group_of.get(word) for word in known),
            vectors=arrays["word_vectors"][there],
            missing=tuple(word for word in listed.words if word not in known),
            counts=arrays["word_tokens"][there],
            _model=self.name,
        )

    def structure(self) -> Structure:
        """Every tensor of its files; asks the files, not the loaded model."""
        tensors = [tensor for file in self.info.files for tensor in read_header(file).tensors]
        return Structure(self.name, tuple(tensors))

    def close(self) -> None:
        """Free the model. What it has answered stays. May be called twice."""
        self.loader.use(None)
        self._readings.clear()
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        bits = f"{self.info.bits_per_weight:.2f} bits per weight"
        return f"<{self.name}, {self._facts.architecture}, {bits}{', closed' if self.closed else ''}>"

    def _read(self, prompt: AnyPrompt, off: Ablation | None, parts: frozenset[str]) -> Reading:
        self._alive()
        return self._readings.get(prompt_of(prompt), ablation_of(off), parts)

    def _alive(self) -> LiveModel:
        if self.closed:
            raise OptionError(f"{self.name} is closed.", "Open it again: gguf_harness.open(...).")
        return self._live
