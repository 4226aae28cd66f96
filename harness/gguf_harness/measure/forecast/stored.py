"""Which measurements the cache has: the calls that tests make, asked of a core that measures nothing.

So keys are made where they always are, and nothing here has to know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gguf_harness.errors import HarnessError
from gguf_harness.measure.core import Core

if TYPE_CHECKING:
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.ladder import Ladder
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.inputs.words import WordList
    from gguf_harness.measure.attention.calls import Attention
    from gguf_harness.measure.embeddings.calls import Embeddings
    from gguf_harness.measure.forecast.needs import Piece
    from gguf_harness.measure.heads.calls import HeadAblation
    from gguf_harness.measure.layers.calls import Layers
    from gguf_harness.measure.measurement import Job
    from gguf_harness.measure.passes.calls import CorpusPass
    from gguf_harness.measure.speed.calls import Served, Speed
    from gguf_harness.measure.texts.calls import Texts
    from gguf_harness.metrics.windows import WindowLimit
    from gguf_harness.store.cache import Entry

__all__ = ["CALLS", "Inputs", "Looking", "Stored"]

R = TypeVar("R")


class _Missing(Exception):
    """The cache has no result of a job."""


class _There(Exception):
    """It has the one that was looked for."""


class Looking(Core):
    """A core that measures nothing but what keys need: which llama.cpp this is. Its options may be changed."""

    wanted: tuple[str, str] | None = None
    """(kind, name of the subject) of the measurement that is looked for."""

    def measure(self, job: Job[R]) -> R:
        """A stored result.

        Raises:
            _Missing: there is none.
            _There: there is one, of the kind that was looked for.
        """
        if job.measurement.kind.startswith("engine/"):
            return super().measure(job)
        entry = self.entry(job)
        if self.options.fresh and not entry.is_of_this_session:
            raise _Missing
        is_wanted = self.wanted == (job.measurement.kind, "" if job.topic is None else job.topic.name)
        if is_wanted and job.files is None:
            # Its content does not matter: arrays are not read.
            raise _There if entry.stamp is not None else _Missing
        stored = self._load(job, entry)
        if stored is None:
            raise _Missing
        if is_wanted:
            raise _There
        return stored[0]

    def forget_if_stale(self, entry: Entry) -> None:
        """Nothing is removed here."""


class Inputs:
    """What measurements are made of, besides the options; each is read when it is first needed.

    Args:
        ladder: the models.
        corpus: reads the text.
        prompts: the prompts.
        words: reads the words.
        limits: what stops passes early.
    """

    def __init__(
        self,
        ladder: Ladder,
        corpus: Callable[[], Corpus],
        prompts: PromptSet,
        words: Callable[[], WordList],
        limits: tuple[WindowLimit, ...] = (),
    ) -> None:
        self.ladder = ladder
        self.prompts = prompts
        self.limits = limits
        self._corpus, self._words = corpus, words

    @cached_property
    def corpus(self) -> Corpus:
        """The text."""
        return self._corpus()

    @cached_property
    def words(self) -> WordList:
        """The words whose embeddings are compared."""
        return self._words()


class Stored:
    """Looks for measurements in the cache.

    Args:
        core: with the options of the measurements.
        inputs: what is measured.
    """

    def __init__(self, core: Looking, inputs: Inputs) -> None:
        self.core = core
        self._inputs = inputs

    def has(self, piece: Piece) -> bool:
        """Whether a measurement is stored. One that cannot be made takes no time either."""
        self.core.wanted = None
        reference = self._inputs.ladder.reference
        try:
            subject = self.core.subject(piece.subject)
            base = subject if reference is None else self.core.subject(reference)
            self.core.wanted = (piece.kind, subject.name)
            CALLS[piece.name](self, subject, base)
        except _Missing:
            return False
        except (_There, HarnessError):
            return True
        return True

    # -- what makes the jobs ------------------------------------------------------------------------------------------

    @cached_property
    def passes(self) -> CorpusPass:
        """As the fixture `corpus_pass`."""
        from gguf_harness.measure.passes.calls import CorpusPass

        return CorpusPass(self.core, self._inputs.corpus, divergence=True, limits=self._inputs.limits)

    @cached_property
    def texts(self) -> Texts:
        """As the fixture `generation`."""
        from gguf_harness.measure.texts.calls import Texts

        return Texts(self.core, self._inputs.prompts)

    @cached_property
    def speed(self) -> Speed:
        """As the fixture `speed`."""
        from gguf_harness.measure.speed.calls import Speed

        return Speed(self.core, self._inputs.ladder.reference)

    @cached_property
    def served(self) -> Served:
        """As the fixture `served`."""
        from gguf_harness.measure.speed.calls import Served, Servers

        return Served(self.core, Servers(self.core))

    @cached_property
    def attention(self) -> Attention:
        """As the fixture `attention`."""
        from gguf_harness.measure.attention.calls import Attention

        inputs = self._inputs
        return Attention(self.core, inputs.prompts, inputs.corpus, inputs.ladder.reference)

    @cached_property
    def heads(self) -> HeadAblation:
        """As the fixture `head_ablation`."""
        from gguf_harness.measure.heads.calls import HeadAblation

        reference = self._inputs.ladder.reference
        return HeadAblation(self.core, self._inputs.corpus, None if reference is None else self.core.subject(reference))

    @cached_property
    def layers(self) -> Layers:
        """As the fixture `layers_of`."""
        from gguf_harness.measure.layers.calls import Layers

        ladder = self._inputs.ladder
        return Layers(self.core, self._inputs.prompts, ladder.reference, compared=bool(ladder.candidates))

    @cached_property
    def embeddings(self) -> Embeddings:
        """As the fixture `embeddings`."""
        from gguf_harness.measure.analyses.calls import Analytics
        from gguf_harness.measure.embeddings.calls import Embeddings

        return Embeddings(self.core, self._inputs.words, self._inputs.prompts, Analytics(self.core))

    def mixture(self, candidate: Subject, reference: Subject) -> object:
        """As the fixture `sensitivity`, of the first mixture."""
        from gguf_harness.measure.weights.calls import TensorSensitivity

        return TensorSensitivity(self.core, self.passes)(candidate, reference)

    def weights(self, candidate: Subject, reference: Subject) -> object:
        """As the fixture `weight_errors`."""
        from gguf_harness.measure.weights.calls import WeightErrors

        return WeightErrors(self.core)(candidate, reference)

    def exchanged(self, candidate: Subject, reference: Subject) -> object:
        """As `layers_of.interchange`."""
        return self.layers.exchanged(candidate, reference, self.layers.selected(candidate))


_Call = Callable[[Stored, Any, Any], object]
CALLS: Final[Mapping[str, _Call]] = {
    "models/quantized": lambda *_: None,
    "passes/reference": lambda stored, model, _: stored.passes.reference(model, logprobs=True),
    "passes/candidate": lambda stored, model, base: stored.passes.candidate(model, base),
    "passes/floor": lambda stored, model, _: stored.passes.floor(model),
    "passes/mixture": lambda stored, model, base: stored.mixture(model, base),
    "texts/generations": lambda stored, model, _: stored.texts.generations(model),
    "texts/scores": lambda stored, model, base: stored.texts.scores(model, base),
    "texts/compared": lambda stored, model, base: stored.texts.compared(model, base),
    "speed/alone": lambda stored, model, _: stored.speed.beside(model),
    "speed/beside": lambda stored, model, base: stored.speed.beside(model, base),
    "speed/served": lambda stored, model, _: stored.served(model),
    "attention/observed": lambda stored, model, _: stored.attention.observe(model),
    "attention/compared": lambda stored, model, base: stored.attention.compare(model, base),
    "heads/screen": lambda stored, model, _: stored.heads.screen(model),
    "heads/sweep": lambda stored, model, _: stored.heads.sweep(model),
    "heads/interchange": lambda stored, model, base: stored.heads.interchange(model, base),
    "heads/removal": lambda stored, model, _: stored.heads.removal(model),
    "heads/path": lambda stored, model, base: stored.heads.removal(model, along=base),
    "layers/alone": lambda stored, model, _: stored.layers.alone(model, keep=True),
    "layers/compared": lambda stored, model, base: stored.layers.compared(model, base),
    "layers/importance": lambda stored, model, _: stored.layers.importance(model),
    "layers/interchange": lambda stored, model, base: stored.exchanged(model, base),
    "weights/errors": lambda stored, model, base: stored.weights(model, base),
    "embeddings/space": lambda stored, model, _: stored.embeddings.space(model),
    "embeddings/contexts": lambda stored, model, _: stored.embeddings.contexts(model),
    "embeddings/aligned": lambda stored, model, base: stored.embeddings.alignment(model, base),
}
