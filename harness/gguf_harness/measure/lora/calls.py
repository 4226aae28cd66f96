"""Measurements of LoRA adapters: what they change, and what of it a quantized base keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gguf_harness.engine.settings import scored_tokens
from gguf_harness.errors import NoData, visible
from gguf_harness.gguf.types import FTYPES
from gguf_harness.inputs.adapters import own_text
from gguf_harness.inputs.corpora import Corpus, load_corpus
from gguf_harness.inputs.subjects import describe_variant
from gguf_harness.measure.lora.adapter_weights import measure_changes, merge_and_quantize
from gguf_harness.measure.lora.changed_tokens import changed_tokens, read_contexts
from gguf_harness.measure.lora.tasks import EffectRequest, has_effect_codes, run_effect_pass, run_merged_pass
from gguf_harness.measure.measurement import ARRAYS, Files, Job, Measurement
from gguf_harness.measure.passes.logprobs import logprob_bytes
from gguf_harness.measure.passes.tasks import CorpusText
from gguf_harness.metrics.registry.lora import MOST_WINDOWS
from gguf_harness.store.arrays import Arrays
from gguf_harness.store.file_hashes import hash_files

if TYPE_CHECKING:
    from gguf_harness.engine.settings import Adapter
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.store.cache import Entry

__all__ = ["MOVED_PROMPTS", "SCALES", "SWEEP_WINDOWS", "LoraEffects", "with_adapters"]

_EFFECT: Final = Measurement("lora/effect", 1, run_effect_pass, "windows", ARRAYS)
_MERGED: Final = Measurement("lora/merged", 1, run_merged_pass, "windows", ARRAYS)
_CHANGES: Final = Measurement("lora/changes", 1, measure_changes, "matrices", ARRAYS)
_CONTEXTS: Final = Measurement("lora/contexts", 1, read_contexts, "tokens", ARRAYS, counted=False)
_CODES: Final[Files[Arrays]] = Files("log-probabilities", has_effect_codes)

MOVED_PROMPTS: Final = 8
"""On which patterns are compared: an adapter moves them by more than prompts differ."""
SWEEP_WINDOWS: Final = 4
"""Of each scale: scales differ by more than these windows' errors."""
SCALES: Final = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Of the sweep, times the adapters' own."""


class LoraEffects:
    """Effects of adapters on the corpus and on a text of their own.

    Args:
        core: runs measurements.
        corpus: the text of the session.
        reference: on which the effect of an adapter is what other bases are to keep of it; None if there is none.
        compared: whether there are other bases, which need the reference's distributions.
    """

    def __init__(self, core: Core, corpus: Corpus, reference: Subject | None = None, *, compared: bool = False) -> None:
        self._core = core
        self.corpus = corpus
        self._reference = reference
        self._compared = compared

    def own_text(self, adapted: Subject) -> Corpus:
        """The text that the adapters of a subject are for.

        Raises:
            NoData: it is not known; the message says which option gives it.
        """
        path = own_text(self._core.options, adapted.adapters)
        if path is None:
            raise NoData(
                "There is no text that the adapter is for.",
                "Give one with --gguf-lora-corpus=FILE, such as held-out text.",
            )
        text = self._core.once(("lora text", str(path)), lambda: load_corpus(str(path)))
        # Its name is shown and stored: not the folder of this machine.
        return Corpus(visible(path.name), text.text)

    def effect(self, adapted: Subject, base: Subject, text: Corpus) -> Arrays:
        """Losses and KL of a subject and its base, token by token, compared with the reference's effect.

        See `run_effect_pass`.
        """
        return self._core.measure(self._job(adapted, base, text))

    def on_reference(self, adapted: Subject, text: Corpus) -> Arrays:
        """The effect of a subject's adapters on the reference, of the same tokens.

        Raises:
            NoData: there is no reference of this vocabulary.
        """
        if self._reference is None or self._reference.info.vocab_sha256 != adapted.info.vocab_sha256:
            raise NoData(f"{adapted.name} has no reference of its vocabulary whose effect it could keep.")
        return self._core.measure(self._of_reference(self._reference, adapted, text))

    def sweep(self, adapted: Subject, base: Subject, text: Corpus) -> dict[float, Arrays]:
        """The effect at each of `SCALES` times the adapters' own scales."""
        found = {}
        for scale in SCALES:
            job = self._effect(scaled(adapted, scale), base, text, most=SWEEP_WINDOWS)
            found[scale] = self._core.measure(replace(job, about=adapted, part="lora/sweep"))
        return found

    def alone(self, adapted: Subject, base: Subject, text: Corpus) -> list[Arrays]:
        """The effect of each adapter of a subject alone."""
        each = [with_adapters(adapted, (adapter,)) for adapter in adapted.adapters]
        return [self._core.measure(self._effect(one, base, text)) for one in each]

    def changes(self, adapted: Subject) -> Arrays:
        """Rank and size of the changes of each matrix; see `measure_changes`."""
        adapters = tuple((adapter.file, adapter.scale) for adapter in adapted.adapters)
        return self._core.measure(
            Job(
                _CHANGES,
                f"matrices of {adapted.name}",
                {"model": adapted.sha256, "adapters": [adapter.to_json() for adapter in adapted.adapters]},
                lambda _: (adapted.files, adapters),
                subjects=(adapted,),
            )
        )

    def merged(self, adapted: Subject, base: Subject, reference: Subject, text: Corpus) -> Arrays:
        """The adapters merged into the reference and quantized to the base's type; see `run_merged_pass`.

        Raises:
            NoData: the type of the base is not one that llama.cpp makes.
        """
        quant = base.info.quantization
        if quant is None or quant not in FTYPES:
            raise NoData(
                f"The type of {base.name} is none that llama.cpp quantizes to: nothing can be merged first and then"
                " quantized like it."
            )
        on_reference = self._of_reference(reference, adapted, text)
        entry = self._core.entry(on_reference)
        imatrix = self._core.options.imatrix
        recipe = {
            "reference": entry.digest,
            "quant": quant,
            "imatrix": hash_files([imatrix], self._core.options.cache) if imatrix else None,
        }
        written: list[Path] = []

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            with self._core.cache.scratch() as folder, self._core.new_worker(f"{base.name} merged") as worker:
                made = worker.call(
                    merge_and_quantize,
                    None,
                    reference.files,
                    tuple((adapter.file, adapter.scale) for adapter in adapted.adapters),
                    folder,
                    quant,
                    self._core.options.threads,
                    imatrix,
                )
                written[:] = [made]
                yield

        return self._core.measure(
            Job(
                _MERGED,
                f"{base.name} with its adapter merged",
                self._core.key(base) | recipe,
                lambda own: (
                    replace(self._request(adapted, base, text, own), files=tuple(written)),
                    (entry.folder, entry.arrays_file),
                ),
                subjects=(),
                about=adapted,
                reads=(on_reference,),
                around=around,
                worker=lambda: self._core.shared_worker(f"{base.name} in parts"),
            )
        )

    def tokens(self, adapted: Subject, base: Subject, text: Corpus) -> Arrays:
        """The tokens that adapters changed most, with what stands before them; see `changed_tokens`."""
        arrays = self.effect(adapted, base, text)
        chosen = changed_tokens(arrays)
        job = Job(
            _CONTEXTS,
            f"words of {adapted.name}",
            {"of": self._core.entry(self._job(adapted, base, text)).digest},
            lambda _: (adapted.files, adapted.settings.n_gpu_layers, chosen),
            subjects=(adapted,),
        )
        return chosen | self._core.measure(job)

    def note(self, adapted: Subject, name: str, said: str, arrays: Arrays) -> None:
        """Store arrays of a subject with the run, for its pictures."""
        self._core.notes.add_arrays(adapted.name, name, said, arrays)

    # -- jobs -------------------------------------------------------------------------------------------------------

    def _job(self, adapted: Subject, base: Subject, text: Corpus) -> Job[Arrays]:
        reference = self._reference
        if reference is None or reference.info.vocab_sha256 != base.info.vocab_sha256:
            return self._effect(adapted, base, text)
        if base.name == reference.name:
            return self._of_reference(reference, adapted, text)
        return self._effect(adapted, base, text, reference=self._of_reference(reference, adapted, text))

    def _of_reference(self, reference: Subject, adapted: Subject, text: Corpus) -> Job[Arrays]:
        of = with_adapters(reference, adapted.adapters)
        return self._effect(of, reference, text, keep=self._compared)

    def _effect(
        self,
        adapted: Subject,
        base: Subject,
        text: Corpus,
        *,
        keep: bool = False,
        reference: Job[Arrays] | None = None,
        most: int = MOST_WINDOWS,
    ) -> Job[Arrays]:
        windows = min(most, self._core.options.chunks or most)
        entry = None if reference is None else self._core.entry(reference)
        stored = None if entry is None else (entry.folder, entry.arrays_file)
        key = self._core.key(base) | {
            "adapted": adapted.settings.to_json(),
            "corpus": text.sha256,
            "chunks": windows,
            "windows": self._core.options.windows,
            "reference": None if entry is None else entry.digest,
        }

        def make_room(own: Entry) -> None:
            size = logprob_bytes(2 * windows, scored_tokens(base.settings.n_ctx), base.info.n_vocab or 0)
            self._core.cache.make_room(min(size, self._core.entry_limit), own)

        # With the reference's distributions there is more to compare.
        what, on = "effect" if reference is None else "retained", "corpus" if text is self.corpus else "own"
        return Job(
            _EFFECT,
            f"{adapted.name} on {text.name}",
            key,
            lambda own: (self._request(adapted, base, text, own, windows), keep, stored),
            subjects=(base, adapted),
            about=adapted,
            part=f"lora/{what}-{on}",
            reads=() if reference is None else (reference,),
            files=_CODES if keep else None,
            prepare=make_room if keep else None,
        )

    def _request(
        self, adapted: Subject, base: Subject, text: Corpus, entry: Entry, windows: int = MOST_WINDOWS
    ) -> EffectRequest:
        return EffectRequest(
            model=adapted.name,
            files=base.files,
            base=base.settings,
            adapted=adapted.settings,
            text=CorpusText(text.name, text.text),
            windows=windows,
            folder=entry.folder,
            limit_bytes=self._core.entry_limit,
            order=self._core.options.windows,
        )


def with_adapters(subject: Subject, adapters: Sequence[Adapter]) -> Subject:
    """The same file, run with other adapters."""
    settings = replace(subject.settings, adapters=tuple(adapters))
    return replace(subject, settings=settings, variant=describe_variant(None, adapters))


def scaled(subject: Subject, scale: float) -> Subject:
    """The same subject with its adapters at another scale, times their own."""
    return with_adapters(subject, [replace(each, scale=scale * each.scale) for each in subject.adapters])
