"""Which measurements the cache has: the calls that tests make, asked of a core that measures nothing.

So keys are made where they always are, and nothing here has to know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gguf_harness.errors import HarnessError
from gguf_harness.measure.core import Core
from gguf_harness.measure.forecast.needs import is_compared, plain_of

if TYPE_CHECKING:
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.ladder import Ladder, PlannedSubject
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.inputs.words import WordList
    from gguf_harness.measure.attention.calls import Attention
    from gguf_harness.measure.embeddings.calls import Embeddings
    from gguf_harness.measure.forecast.needs import Piece
    from gguf_harness.measure.heads.calls import HeadAblation
    from gguf_harness.measure.kv.cache_calls import KVCache
    from gguf_harness.measure.kv.needle import Needles
    from gguf_harness.measure.layers.calls import Layers
    from gguf_harness.measure.lora.calls import LoraEffects
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
    """(name, name of the subject) of the measurement that is looked for."""

    def measure(self, job: Job[R]) -> R:
        """A stored result.

        Raises:
            _Missing: there is none.
            _There: there is one, and it is what was looked for.
        """
        if job.measurement.kind.startswith("engine/"):
            return super().measure(job)
        entry = self.entry(job)
        if self.options.fresh and not entry.is_of_this_session:
            raise _Missing
        is_wanted = self.wanted == (job.name, "" if job.topic is None else job.topic.name)
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


class _Others:
    """What a subject is compared with."""

    def __init__(self, core: Core, ladder: Ladder, planned: PlannedSubject) -> None:
        self._core = core
        self._ladder = ladder
        self._planned = planned

    @property
    def reference(self) -> Subject:
        """The reference; the subject itself, if there is none."""
        return self._core.subject(self._ladder.reference or self._planned)

    @property
    def plain(self) -> Subject:
        """The same file, run plainly."""
        return self._core.subject(plain_of(self._planned, self._ladder))

    @property
    def plain_reference(self) -> Subject:
        """The reference with a full cache."""
        return self._core.subject(self._ladder.with_full_cache(self._ladder.reference or self._planned))

    @property
    def of_depth(self) -> Subject:
        """For a pass that scores every position, as in `CacheCost`."""
        return self.plain_reference if is_compared(self._planned, self._ladder) else self.plain

    @property
    def of_texts(self) -> Subject:
        """For texts: with adapters, the same file without them."""
        return self.plain if self._planned.adapters else self.reference


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
        try:
            subject = self.core.subject(piece.subject)
            others = _Others(self.core, self._inputs.ladder, piece.subject)
            self.core.wanted = (piece.name, subject.name)
            CALLS[piece.name](self, subject, others)
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

    @cached_property
    def depth(self) -> CorpusPass:
        """As in `Depth`, which the fixture `cache_cost` asks."""
        from gguf_harness.measure.passes.calls import CorpusPass
        from gguf_harness.metrics.by_position import FIRST_POSITION

        return CorpusPass(self.core, self._inputs.corpus, score_from=FIRST_POSITION)

    @cached_property
    def kv_cache(self) -> KVCache:
        """As the fixture `kv_cache`."""
        from gguf_harness.measure.kv.cache_calls import KVCache

        return KVCache(self.core, self._inputs.prompts)

    @cached_property
    def needles(self) -> Needles:
        """As the fixture `needles`."""
        from gguf_harness.measure.kv.needle import Needles

        return Needles.built_in(self.core, self._inputs.corpus)

    @cached_property
    def lora(self) -> LoraEffects:
        """As the fixture `lora`."""
        from gguf_harness.measure.lora.calls import LoraEffects

        ladder = self._inputs.ladder
        reference = None if ladder.reference is None else self.core.subject(ladder.reference)
        return LoraEffects(self.core, self._inputs.corpus, reference, compared=bool(ladder.adapted_candidates))

    # -- calls of several steps ----------------------------------------------------------------------------------------

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

    def few(self) -> Attention:
        """As the test of heads that an adapter moves."""
        from gguf_harness.measure.lora.calls import MOVED_PROMPTS

        return self.attention.on_first(MOVED_PROMPTS)

    def effect(self, adapted: Subject, base: Subject, *, own: bool) -> object:
        """As `lora.effect` on the adapter's own text, or on the corpus."""
        return self.lora.effect(adapted, base, self.lora.own_text(adapted) if own else self.lora.corpus)


_Call = Callable[[Stored, Any, _Others], object]
CALLS: Final[Mapping[str, _Call]] = {
    "models/quantized": lambda *_: None,
    "passes/reference": lambda stored, model, _: stored.passes.reference(model, logprobs=True),
    "passes/candidate": lambda stored, model, others: stored.passes.candidate(model, others.reference),
    "passes/floor": lambda stored, model, _: stored.passes.floor(model),
    "passes/mixture": lambda stored, model, others: stored.mixture(model, others.reference),
    "texts/generations": lambda stored, model, _: stored.texts.generations(model),
    "texts/scores": lambda stored, model, others: stored.texts.scores(model, others.of_texts),
    "texts/compared": lambda stored, model, others: stored.texts.compared(model, others.of_texts),
    "speed/speed-alone": lambda stored, model, _: stored.speed.beside(model),
    "speed/speed-beside": lambda stored, model, others: stored.speed.beside(model, others.reference),
    "speed/served": lambda stored, model, _: stored.served(model),
    "attention/observed": lambda stored, model, _: stored.attention.observe(model),
    "attention/compared": lambda stored, model, others: stored.attention.compare(model, others.reference),
    "heads/screen": lambda stored, model, _: stored.heads.screen(model),
    "heads/sweep": lambda stored, model, _: stored.heads.sweep(model),
    "heads/interchange": lambda stored, model, others: stored.heads.interchange(model, others.reference),
    "heads/removal": lambda stored, model, _: stored.heads.removal(model),
    "heads/path": lambda stored, model, others: stored.heads.removal(model, along=others.reference),
    "layers/alone": lambda stored, model, _: stored.layers.alone(model, keep=True),
    "layers/compared": lambda stored, model, others: stored.layers.compared(model, others.reference),
    "layers/importance": lambda stored, model, _: stored.layers.importance(model),
    "layers/interchange": lambda stored, model, others: stored.exchanged(model, others.reference),
    "weights/errors": lambda stored, model, others: stored.weights(model, others.reference),
    "embeddings/space": lambda stored, model, _: stored.embeddings.space(model),
    "embeddings/contexts": lambda stored, model, _: stored.embeddings.contexts(model),
    "embeddings/aligned": lambda stored, model, others: stored.embeddings.alignment(model, others.reference),
    "passes/reference-depth": lambda stored, model, _: stored.depth.reference(model, logprobs=True),
    "passes/candidate-depth": lambda stored, model, others: stored.depth.candidate(model, others.of_depth),
    "passes/joint": lambda stored, model, others: stored.depth.joint(model, (others.plain, others.plain_reference)),
    "kv/bytes": lambda stored, model, _: stored.kv_cache.bytes(model),
    "kv/compared": lambda stored, model, others: stored.kv_cache.compare(model, others.plain),
    "kv/layers": lambda stored, model, _: stored.kv_cache.layers(model),
    "kv/needles": lambda stored, model, _: stored.needles.read(model),
    "speed/depth-alone": lambda stored, model, _: stored.speed.at_depth(model),
    "speed/depth-beside": lambda stored, model, others: stored.speed.at_depth(model, others.plain),
    "attention/observed-few": lambda stored, model, _: stored.few().observe(model),
    "attention/compared-few": lambda stored, model, others: stored.few().compare(model, others.reference),
    "lora/effect-own": lambda stored, model, others: stored.effect(model, others.plain, own=True),
    "lora/effect-corpus": lambda stored, model, others: stored.effect(model, others.plain, own=False),
    "lora/retained-own": lambda stored, model, others: stored.effect(model, others.plain, own=True),
    "lora/retained-corpus": lambda stored, model, others: stored.effect(model, others.plain, own=False),
    "lora/merged": lambda stored, model, others: stored.lora.merged(
        model, others.plain, others.reference, stored.lora.own_text(model)
    ),
    "lora/sweep": lambda stored, model, others: stored.lora.sweep(model, others.plain, stored.lora.own_text(model)),
    "lora/changes": lambda stored, model, _: stored.lora.changes(model),
}
