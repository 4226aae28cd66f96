"""Attention on prompts: one decode per subject serves all tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import OptionError, PromptError, VocabularyMismatch
from gguf_harness.measure.attention.activations import ActivationReader
from gguf_harness.measure.attention.drift import compare_attention
from gguf_harness.measure.attention.pattern_results import AttentionDrift, HeadBehaviour
from gguf_harness.measure.attention.tasks import AttentionRequest, KeptPatterns, observe_attention
from gguf_harness.measure.measurement import ARRAYS, Files, Format, Job, Measurement
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.ladder import PlannedSubject
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.store.cache import Entry

__all__ = ["Attention"]

_KEPT_PROMPTS: Final = 2
_OWN, _DRIFT = "own.", "drift."


def _pack(both: tuple[Arrays, Arrays]) -> tuple[dict[str, Any], Arrays]:
    own, drift = ({f"{prefix}{name}": values for name, values in arrays.items()}
                  for prefix, arrays in zip((_OWN, _DRIFT), both, strict=True))  # fmt: skip
    return {}, own | drift


def _unpack(_: dict[str, Any], arrays: Arrays) -> tuple[Arrays, Arrays]:
    own, drift = ({name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
                  for prefix in (_OWN, _DRIFT))  # fmt: skip
    return own, drift


_OBSERVED: Final = Measurement("attention/observed", 4, observe_attention, "prompts", ARRAYS)
_COMPARED: Final = Measurement("attention/compared", 5, compare_attention, "prompts", Format(_pack, _unpack))
_ACTIVATIONS: Final[Files[Arrays]] = Files("activations", lambda folder, _: ActivationReader.is_there(folder))


class Attention:
    """Behaviour of heads on a set of prompts, and the distance of a candidate's attention from the reference's.

    Args:
        core: runs measurements.
        prompts: prompts to read.
        corpus: determines which tokens are rare.
        reference: the model on whose tokens candidates are measured; None if there is none.
        few: only the first prompts of the session are read.
    """

    def __init__(
        self,
        core: Core,
        prompts: PromptSet,
        corpus: Corpus,
        reference: PlannedSubject | None = None,
        *,
        few: bool = False,
    ) -> None:
        self._core = core
        self._few = few
        self._prompts = prompts
        self._corpus = corpus
        self._reference = reference

    def __call__(self, model: Subject) -> HeadBehaviour:
        """Behaviour of each head of a subject on the prompts."""
        reference = self._reference_of(model)
        if reference is None:
            own = self.observe(model)
        else:
            # The same decode also gives the comparison, which another test of the candidate will need.
            try:
                own, _ = self.compare(model, reference)
            except (PromptError, VocabularyMismatch):
                # Other tokens, or a single one: the subject can still be measured alone.
                own = self.observe(model)
        self._keep(model, own)
        if model.adapters:
            self._core.notes.warn(
                f"{model.name}: its heads have no copy score, which is read from the model's file: LoRA adapters do not"
                " change that."
            )
        behaviour = HeadBehaviour.of(own)
        self._core.notes.add_heads(
            model.name,
            [
                {"layer": layer, "head": head, "kind": kind.kind, "reason": kind.reason}
                for (layer, head), kind in zip(behaviour.heads, behaviour.kinds, strict=True)
            ],
        )
        return behaviour

    def drift(self, candidate: Subject, reference: Subject) -> AttentionDrift:
        """Distance of a candidate's attention from the reference's, on the same tokens."""
        own, drift = self.compare(candidate, reference)
        self._keep(candidate, own)
        self._keep(reference, self.observe(reference))
        return AttentionDrift.of(drift)

    def on_first(self, most: int) -> Attention:
        """The same on the first prompts only, for comparisons that need no more."""
        prompts = replace(self._prompts, prompts=self._prompts.prompts[:most])
        return Attention(self._core, prompts, self._corpus, self._reference, few=True)

    def observe(self, model: Subject) -> Arrays:
        """Behaviour of each head; see `observe_attention`. The activations stay in the cache, for candidates."""
        return self._core.measure(self._observed(model))

    def compare(self, model: Subject, reference: Subject) -> tuple[Arrays, Arrays]:
        """(behaviour of each head of a candidate, distance of its attention from the reference's)."""
        base_job = self._observed(reference)
        base = self._core.entry(base_job)
        job = Job(
            _COMPARED,
            f"attention of {model.name}",
            self._key(model) | {"reference": base.digest},
            lambda entry: (self._request(model, entry), base.folder, self._core.measure(base_job)),
            subjects=(model,),
            reads=(base_job,),
            part=self._part(_COMPARED),
        )
        return self._core.measure(job)

    def _observed(self, model: Subject) -> Job[Arrays]:
        return Job(
            _OBSERVED,
            f"attention of {model.name}",
            self._key(model),
            lambda entry: (self._request(model, entry),),
            subjects=(model,),
            files=_ACTIVATIONS,
            part=self._part(_OBSERVED),
        )

    def _part(self, measurement: Measurement[Any]) -> str | None:
        return f"{measurement.kind}-few" if self._few else None

    def _key(self, model: Subject) -> dict[str, Any]:
        key = self._core.key(model) | {"prompts": self._prompts.sha256, "text": self._corpus.sha256}
        kept = self._kept(model)
        if (kept.layers, kept.heads) != (None, None):
            key["kept"] = {"layers": kept.layers, "heads": kept.heads}
        return key

    def _kept(self, model: Subject) -> KeptPatterns:
        """The patterns to show, for layers and heads that the model has."""
        asked = self._core.options.layers, self._core.options.heads
        counts = model.info.n_layer, model.info.n_head
        for what, numbers, count in zip(("layer", "head"), asked, counts, strict=True):
            beyond = [number for number in numbers or () if count is not None and number >= count]
            if beyond:
                raise OptionError(
                    f"--gguf-{what}s names {what} {beyond[0]}, {model.name} has {count} {what}s.",
                    f"They are counted from 0 to {(count or 0) - 1}.",
                )
        return KeptPatterns(_KEPT_PROMPTS, *asked)

    def _request(self, model: Subject, entry: Entry) -> AttentionRequest:
        return AttentionRequest(
            model=model.name,
            files=model.files,
            architecture=model.info.architecture,
            n_layer=model.info.n_layer or 0,
            settings=model.settings,
            prompts=self._prompts.prompts,
            text=self._corpus.text,
            folder=entry.folder,
            limit_bytes=self._core.entry_limit,
            kept=self._kept(model),
        )

    def _reference_of(self, model: Subject) -> Subject | None:
        reference = self._core.reference_of(model, self._reference)
        if reference is None:
            return None
        ours, theirs = ((info.vocab_sha256, info.n_layer, info.n_head) for info in (model.info, reference.info))
        return reference if ours == theirs else None

    def _keep(self, model: Subject, arrays: Arrays) -> None:
        notes = self._core.notes
        self._core.note_prompts(self._prompts)
        problems = [str(problem) for problem in arrays["problems"]]
        notes.warn_of_prompts(model.name, problems, len(self._prompts.prompts))
        kept = {name: values for name, values in arrays.items() if name.startswith(("kept", "pattern_", "pieces_"))}
        if kept:
            notes.add_arrays(model.name, "attention", "attention patterns of some prompts", kept)
        steps = {name: values for name, values in arrays.items() if name.startswith("step_")}
        if steps:
            told = "queries, keys and values of the first of these prompts"
            notes.add_arrays(model.name, "attention_steps", told, steps)
