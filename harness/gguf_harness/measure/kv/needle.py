"""Facts hidden in texts of the corpus: whether a subject finds them, by depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gguf_harness.inputs.needles import NeedleSet, load_needles
from gguf_harness.measure.kv.needle_tasks import NeedleRequest, run_needles
from gguf_harness.measure.measurement import ARRAYS, Job, Measurement
from gguf_harness.measure.passes.tasks import CorpusText
from gguf_harness.metrics.needle_scores import compare_needles, summarize_needles

if TYPE_CHECKING:
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.metrics.records import Estimate
    from gguf_harness.store.arrays import Arrays

__all__ = ["DEPTHS", "Needles"]

DEPTHS: Final = (0.0, 0.5, 0.9)
"""Shares of the text before the fact: at once, half way, and shortly before the question."""

_NEEDLES: Final = Measurement("kv/needles", 1, run_needles, "texts", ARRAYS)


@dataclass(frozen=True, slots=True)
class Needles:
    """Hides facts in texts of n_ctx tokens, once per subject.

    Args:
        core: runs measurements.
        corpus: what texts are cut from.
        needles: the facts.
        depths: where they are hidden.
    """

    core: Core
    corpus: Corpus
    needles: NeedleSet
    depths: tuple[float, ...] = DEPTHS

    @classmethod
    def built_in(cls, core: Core, corpus: Corpus) -> Needles:
        """With the facts that come with the package."""
        return cls(core, corpus, load_needles())

    @property
    def detail(self) -> str:
        """How many facts in how many texts, and how long these are."""
        options = self.core.options
        texts = f"{options.haystacks} texts each" if options.haystacks > 1 else "a text each"
        return f"{len(self.needles.needles)} facts in {texts} of {options.ctx} tokens"

    def __call__(self, subject: Subject) -> list[Estimate]:
        """Log-probability, lift and rank of the answers, over all depths and at each."""
        return summarize_needles(self.read(subject), self.depths)

    def compare(self, subject: Subject, reference: Subject) -> list[Estimate]:
        """Change of the answers' log-probability from a reference's, on the same texts."""
        return compare_needles(self.read(subject), self.read(reference), self.depths)

    def read(self, subject: Subject) -> Arrays:
        """What a subject makes of the texts; see `run_needles`."""
        options = self.core.options
        request = NeedleRequest(
            subject.name,
            subject.files,
            subject.settings,
            CorpusText(self.corpus.name, self.corpus.text),
            options.windows,
            self.needles.needles,
            options.haystacks,
            self.depths,
        )
        key = self.core.key(subject) | {
            "corpus": self.corpus.sha256,
            "windows": options.windows,
            "needles": self.needles.sha256,
            "haystacks": options.haystacks,
            "depths": list(self.depths),
        }
        label = f"facts in texts, {subject.name}"
        return self.core.measure(Job(_NEEDLES, label, key, lambda _: (request,), subjects=(subject,)))
