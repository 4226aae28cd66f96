"""Passes over the corpus: one decode of each subject serves all tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from gguf_harness.errors import HarnessError
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.measurement import ARRAYS, Job, Measurement
from gguf_harness.measure.passes.growing import planned_windows
from gguf_harness.measure.passes.jobs import CANDIDATE, FLOOR, MIXTURE, PassJobs
from gguf_harness.measure.passes.logprobs import logprob_bytes
from gguf_harness.measure.passes.side_by_side import reference_part
from gguf_harness.measure.passes.strip import read_pieces, strip_of, tokens_of, typical_window
from gguf_harness.measure.passes.tasks import (
    MIN_WINDOWS,
)
from gguf_harness.metrics.windows import EarlyDecisions, decided_so_far, window_means
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.measure.core import Core
    from gguf_harness.metrics.windows import WindowLimit
    from gguf_harness.store.cache import Entry

__all__ = ["CorpusPass", "Mixture", "TextRead"]

_PIECES: Final = Measurement("passes/pieces", 1, read_pieces, "tokens", ARRAYS, counted=False)

_FLOOR_WINDOWS: Final = 4
"""Windows of the noise floor: a check of llama.cpp and the machine, for which any few windows are enough."""
_CURVE_POINTS: Final = 401


@dataclass(frozen=True, slots=True)
class Mixture:
    """A model whose files exist only while it is decoded.

    Attributes:
        label: for the line of progress.
        sha256: hash of what it is made of.
        worker: name of the worker process that decodes it, the same for many mixtures.
        written: writes the files, and removes them at the end of the block.
    """

    label: str
    sha256: str
    worker: str
    written: Callable[[], contextlib.AbstractContextManager[Sequence[Path]]]


@dataclass(slots=True)
class TextRead:
    """Facts about the corpus that became known while it was read.

    Attributes:
        text_bytes: of the text.
        windows: how many the text has; None until a pass was made.
        window_bytes: of a window's log-probabilities; 0 where none are kept.
        beyond: by subject, a note on numbers measured beyond its context.
        early: by subject and metric, what a pass decided on its way, with --gguf-until-decided.
    """

    text_bytes: int = 0
    windows: int | None = None
    window_bytes: int = 0
    beyond: dict[str, str] = field(default_factory=dict)
    early: EarlyDecisions = field(default_factory=dict)


class CorpusPass:
    """Decodes the corpus, once per subject.

    Args:
        core: runs measurements.
        corpus: the text.
        reference: what candidates are compared with; None where there is nothing to compare with, or it has an error.
        divergence: some test compares a candidate with the reference: its distributions are kept.
        limits: what stops a candidate's pass once all of it is decided; none for all windows.
        text: takes what becomes known of the corpus.
        score_from: first position of each window that is scored; None for n_ctx/2, as llama-perplexity.
    """

    def __init__(
        self,
        core: Core,
        corpus: Corpus,
        reference: Subject | None = None,
        *,
        divergence: bool = False,
        limits: tuple[WindowLimit, ...] = (),
        text: TextRead | None = None,
        score_from: int | None = None,
    ) -> None:
        self.corpus = corpus
        self._core = core
        self._reference = reference
        self._divergence = divergence
        self._limits = limits
        self._text = text or TextRead()
        self._jobs = PassJobs(core, corpus, limits, score_from)

    def __call__(self, model: Subject, *, against: Subject | None = None, windows_of: Arrays | None = None) -> Arrays:
        """Per-token values of a subject, each [windows, scored tokens].

        Args:
            model: the subject to decode.
            against: the reference to compare with.
            windows_of: values of a candidate: only its windows. With --gguf-until-decided these are not all; without,
                it changes nothing.

        Returns:
            nll (nats) and top (token ids); with `against` also kld and kld_reverse (nats); and window, [windows]: which
            windows of the text these are. They are drawn from all of it (--gguf-windows).
        """
        self._warn_beyond_context(model)
        if against is not None:
            arrays = self._compared(model, against)
            self._keep_curve(model.name, arrays)
            self._core.once(("token strip", model.name), lambda: self._keep_strip(model, against, arrays))
        elif windows_of is not None and self._jobs.was_beside(model, windows_of):
            arrays = reference_part(windows_of)
        else:
            arrays = self._alone(model)
        if windows_of is not None and len(windows_of["nll"]) < len(arrays["nll"]):
            # A pass that stopped early has the first windows of the same order.
            arrays = {name: arrays[name][: len(windows_of["nll"])] for name in ("nll", "top", "window")}
        return arrays

    def describe(self, model: Subject) -> None:
        """Tell the run which windows of the text are measured; those of a pass that keeps a subject's distributions."""
        self._warn_beyond_context(model)
        self._describe(self.reference(model, logprobs=True))

    def floor(self, reference: Subject) -> tuple[Arrays, Arrays]:
        """The reference with one window a batch and a smaller physical batch, against itself: what differs is noise.

        Returns:
            (per-token values of the second decode, those of the first on the same windows).
        """
        settings, options = reference.settings, self._core.options
        other = replace(
            settings,
            n_batch=min(settings.n_ctx, settings.n_batch),
            n_ubatch=max(8, min(settings.n_ubatch, settings.n_ctx) // 2),
        )
        chunks = min(_FLOOR_WINDOWS, options.chunks or _FLOOR_WINDOWS)
        job = self._jobs.against(FLOOR, replace(reference, settings=other), reference, chunks)
        floor = self._core.measure(replace(job, label=f"noise floor of {reference.name}"))
        base = self._base(reference, floor)
        return floor, {name: base[name][: len(floor["nll"])] for name in ("nll", "top")}

    def reference(self, model: Subject, *, logprobs: bool) -> Arrays:
        """Nll and top token of every scored token; see `run_reference_pass`.

        Args:
            model: the subject to decode.
            logprobs: also keep its distributions, for candidates to be compared with.
        """
        return self._core.measure(self._jobs.by_itself(model, logprobs=logprobs))

    def candidate(self, model: Subject, reference: Subject) -> Arrays:
        """nll, top token and divergence in both directions of every scored token; see `run_candidate_pass`."""
        arrays = self._core.measure(self._jobs.of_candidate(model, reference))
        if "reference" in arrays:
            self._jobs.beside.seen(arrays)
        return arrays

    def joint(self, model: Subject, references: Sequence[Subject]) -> list[Arrays]:
        """The same against each of several references, from one decode of all windows.

        From one for each reference, where their log-probabilities are not stored.
        """
        if any(self._jobs.is_beside(reference) for reference in references):
            chunks = self._core.options.chunks
            jobs = [self._jobs.against(CANDIDATE, model, reference, chunks) for reference in references]
            return [self._core.measure(replace(job, part="passes/joint")) for job in jobs]
        found = self._core.measure(self._jobs.joint(model, references))
        shared = {name: found[name] for name in ("window", "available")}
        return [
            {name.removesuffix(end): array for name, array in found.items() if name.endswith(end)} | shared
            for end in (f"_{place}" for place in range(len(references)))
        ]

    def mixture(self, mixture: Mixture, of: Subject, reference: Subject, chunks: int) -> Arrays:
        """A mixture of a candidate and its reference on the first windows of the pass; see `run_candidate_pass`.

        Args:
            mixture: what is decoded.
            of: the subject that it is a mixture of, and is run like.
            reference: what it is compared with.
            chunks: number of windows.
        """
        worker = lambda: self._core.shared_worker(mixture.worker)  # noqa: E731 - sent nowhere
        job = self._jobs.against(MIXTURE, of, reference, chunks, worker=worker)
        written: list[Path] = []

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            with mixture.written() as files:
                written[:] = files
                yield
                # What is mapped keeps its place on the disk.
                self._core.stop_worker()

        def arguments(entry: Entry) -> tuple[object, ...]:
            request, *rest = job.arguments(entry)
            return replace(request, model=mixture.label, files=tuple(written)), *rest

        return self._core.measure(
            replace(
                job,
                label=f"{mixture.label} on {self.corpus.name}",
                key=job.key | {"model": mixture.sha256},
                arguments=arguments,
                subjects=(),
                around=around,
                worker=worker,
                about=of,
            )
        )

    def _base(self, reference: Subject, arrays: Arrays) -> Arrays:
        """A reference's values of at least the windows of a candidate's."""
        if "nll_reference" in arrays:
            return reference_part(arrays)
        if self._limits:
            return self._jobs.growing(reference).first(len(arrays["nll"]))
        return self.reference(reference, logprobs=True)

    # -- what the run is told ---------------------------------------------------------------------------------------

    def _compared(self, model: Subject, reference: Subject) -> Arrays:
        options, notes = self._core.options, self._core.notes
        arrays = self.candidate(model, reference)
        if not self._limits:
            self._describe(arrays)
        # A baseline may be compared with, or saved, when the parts of a run are merged.
        keeps = options.save_baseline is not None or options.shard is not None
        if not keeps and not self._limits:
            return arrays
        base = self._base(reference, arrays)
        same = {name: base[name][: len(arrays["nll"])] for name in ("nll", "top")}
        if keeps:
            means = window_means(arrays, same) | {"window": arrays["window"]}
            notes.add_arrays(model.name, "window_means", "Means of windows, for a baseline.", means)
        if self._limits and model.name not in self._text.early:
            self._describe(base)
            self._text.early[model.name] = decided_so_far(self._limits, arrays, same)
            notes.add_early(model.name, len(arrays["nll"]), planned_windows(base), options.ctx)
            notes.add_early(reference.name, len(base["nll"]), planned_windows(base), options.ctx)
        return arrays

    def _alone(self, model: Subject) -> Arrays:
        is_reference = self._reference is not None and model.name == self._reference.name
        if self._divergence and not is_reference and self._reference is not None:
            try:
                # The comparison that other tests ask for has these values too: decode once.
                return self._compared(model, self._reference)
            except HarnessError:
                pass  # no reason to go without a perplexity, if this model itself is sound
        arrays = (
            self._of_reference(model) if self._divergence and is_reference else self.reference(model, logprobs=False)
        )
        self._describe(arrays)
        return arrays

    def _of_reference(self, reference: Subject) -> Arrays:
        """The reference's values; where passes stop early, of the windows that candidates needed so far, if any."""
        if self._jobs.is_beside(reference):
            seen = self._jobs.beside.reference(self._jobs.digest(reference))
            return seen or self.reference(reference, logprobs=False)
        if not self._limits:
            return self.reference(reference, logprobs=True)
        growing = self._jobs.growing(reference)
        return growing.read() or growing.first(None)

    def _describe(self, arrays: Arrays) -> None:
        scored, available = arrays["nll"].shape[1], int(arrays["available"].item())
        windows = planned_windows(arrays)
        options = self._core.options
        taken = {"windows": windows, "available": available, "order": options.windows, "n_ctx": options.ctx}
        counts = {"tokens": windows * options.ctx, "scored_tokens": windows * scored}
        self._core.notes.set("corpus", self.corpus.to_json() | taken | counts)
        keeps = self._divergence and self._reference is not None and not self._jobs.is_beside(self._reference)
        vocabulary = self._reference.info.n_vocab if keeps and self._reference is not None else None
        text = self._text
        text.windows, text.window_bytes = available, logprob_bytes(1, scored, vocabulary or 0)
        text.text_bytes = len(self.corpus.text)

    def _warn_beyond_context(self, model: Subject) -> None:
        """Measured all the same, as was asked for; whoever reads the numbers is told."""
        n_ctx, trained = model.settings.n_ctx, model.info.n_ctx_train
        if model.settings.beyond_context and trained and n_ctx > model.settings.reach(trained):
            said = f"measured in windows of {n_ctx} tokens, and trained on {trained}: numbers beyond that mean little"
            self._text.beyond[model.name] = said
            self._core.notes.warn(f"{model.name}: {said}.")

    def _keep_curve(self, model: str, arrays: Arrays) -> None:
        shares = np.linspace(0, 1, _CURVE_POINTS)
        self._core.notes.add_arrays(
            model,
            "kld_quantiles",
            "Quantiles of KL(reference || candidate) per token, in nats; means of KL and loss in each window.",
            {
                "q": shares,
                "kld": np.quantile(arrays["kld"].astype(np.float64), shares),
                "window": arrays["window"],
                "window_kld": arrays["kld"].astype(np.float64).mean(axis=1),
                "window_nll": arrays["nll"].astype(np.float64).mean(axis=1),
            },
        )

    def _keep_strip(self, model: Subject, reference: Subject, arrays: Arrays) -> None:
        """One window of the text token by token, from passes that were made: none is made for it."""
        stored = self._core.entry(self._jobs.by_itself(reference, logprobs=True)).load()
        base: Arrays | None = stored[1] if stored is not None else self._jobs.growing(reference).read()
        if "nll_reference" in arrays:
            base = reference_part(arrays)
        if base is None or len(base["nll"]) < len(arrays["nll"]):
            # The candidate's pass came from the cache, and the reference's is there no more.
            return
        window = typical_window(base, MIN_WINDOWS if self._limits else None)
        of = self._core.entry(self._jobs.of_candidate(model, reference))
        job = Job(
            _PIECES,
            f"words of {model.name}",
            {"of": of.digest},
            lambda _: (model.files, model.settings.n_gpu_layers, tokens_of(base, arrays, window)),
            subjects=(model,),
        )
        try:
            strip = strip_of(base, arrays, window, self._core.measure(job))
        except HarnessError as error:
            self._core.notes.warn(f"{model.name}: its tokens are not shown. {error.message}")
            return
        said = "A window with the reference's mean loss, token by token: losses and KL in nats, change of probability."
        self._core.notes.add_arrays(model.name, "token_strip", said, strip)
