"""What passes over a corpus are made by: a job for each, stored or side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

from gguf_harness.measure.measurement import ARRAYS, Files, Job, Measurement
from gguf_harness.measure.passes.beside import Beside
from gguf_harness.measure.passes.decoding import has_codes
from gguf_harness.measure.passes.growing import GrowingReference, decide_in_turns
from gguf_harness.measure.passes.logprobs import logprob_bytes
from gguf_harness.measure.passes.tasks import (
    CorpusText,
    PassRequest,
    check_room,
    reference_shape,
    run_candidate_pass,
    run_joint_pass,
    run_mixture_pass,
    run_reference_pass,
)
from gguf_harness.metrics.divergence import TOKEN_VALUES_VERSION
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.engine.calling import TaskWorker
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.metrics.windows import WindowLimit
    from gguf_harness.store.cache import Entry

__all__ = ["CANDIDATE", "FLOOR", "MIXTURE", "PassJobs"]

_REFERENCE: Final = Measurement("passes/reference", 2, run_reference_pass, "windows", ARRAYS)
CANDIDATE: Final = Measurement("passes/candidate", TOKEN_VALUES_VERSION, run_candidate_pass, "windows", ARRAYS)
_DECIDED: Final = Measurement(
    "passes/candidate", TOKEN_VALUES_VERSION, decide_in_turns, "windows", ARRAYS, runs="in the session"
)
FLOOR: Final = Measurement("passes/floor", TOKEN_VALUES_VERSION, run_candidate_pass, "windows", ARRAYS)
MIXTURE: Final = Measurement("passes/mixture", TOKEN_VALUES_VERSION, run_mixture_pass, "windows", ARRAYS)
_JOINT: Final = Measurement("passes/joint", TOKEN_VALUES_VERSION, run_joint_pass, "windows", ARRAYS)
_STOPPING: Final = 2
"""Raise it where `is_settled` or early decisions change: passes end elsewhere then."""
_LOGPROBS: Final[Files[Arrays]] = Files("log-probabilities", has_codes)


class PassJobs:
    """Jobs of passes over one corpus.

    Args:
        core: runs them.
        corpus: the text.
        limits: what stops a candidate's pass once all of it is decided; none for all windows.
        score_from: first position of each window that is scored; None for n_ctx/2.

    Attributes:
        beside: passes with the reference decoded in step.
    """

    def __init__(self, core: Core, corpus: Corpus, limits: tuple[WindowLimit, ...], score_from: int | None) -> None:
        self._core = core
        self._corpus = corpus
        self._limits = limits
        self._score_from = score_from
        self.beside = Beside(core)

    def by_itself(self, model: Subject, *, logprobs: bool) -> Job[Arrays]:
        """The pass of a subject that is compared with nothing; with `logprobs`, what others are compared with."""
        options = self._core.options

        def prepare(entry: Entry) -> None:
            # Room for a reference's log-probabilities, or an error before anything is decoded.
            request = self._request(model, options.chunks, entry)
            shape = self._shape(model, request)
            check_room(shape, options.logprobs_limit, "--gguf-logprobs-limit")
            check_room(shape, options.cache_limit, "--gguf-cache-limit")
            self._core.cache.make_room(logprob_bytes(*shape), entry)

        return Job(
            _REFERENCE,
            f"{model.name} on {self._corpus.name}",
            self._key(model, options.chunks),
            lambda entry: (self._request(model, options.chunks, entry), logprobs, options.logprobs_limit),
            subjects=(model,),
            files=_LOGPROBS if logprobs else None,
            prepare=prepare if logprobs else None,
            part=self._part(_REFERENCE),
        )

    def against(
        self,
        measurement: Measurement[Arrays],
        model: Subject,
        reference: Subject,
        chunks: int | None,
        *,
        limits: tuple[WindowLimit, ...] = (),
        worker: Callable[[], TaskWorker] | None = None,
    ) -> Job[Arrays]:
        """A pass that is compared with a reference, token by token.

        Args:
            measurement: of a candidate, the noise floor or a mixture.
            model: the subject that is decoded, or is run like what is decoded.
            reference: what it is compared with.
            chunks: number of windows.
            limits: what stops the pass once it is decided, if it is made side by side.
            worker: that decodes it, if not the subject's.
        """
        base_job = self.by_itself(reference, logprobs=True)
        base = self._core.entry(base_job)

        def grow(_: Entry) -> None:
            self.growing(reference).first(chunks)

        job = Job(
            measurement,
            f"{model.name} on {self._corpus.name}",
            self._key(model, chunks) | {"reference": base.digest},
            lambda entry: (self._request(model, chunks, entry), base.folder, base.arrays_file),
            subjects=(model,),
            reads=() if self._limits else (base_job,),
            prepare=grow if self._limits else None,
            part=self._part(measurement),
        )
        if not self.is_beside(reference):
            return job
        ours = worker or (lambda: self._core.shared_worker(model.model.name))
        request = self._request(reference, chunks, base)
        return self.beside.job(job, self._key(reference, chunks), reference, request, ours, limits)

    def was_beside(self, reference: Subject, arrays: Arrays) -> bool:
        """Whether a candidate's values come with those of this reference."""
        return "reference" in arrays and str(arrays["reference"].item()) == self.digest(reference)

    def joint(self, model: Subject, references: Sequence[Subject]) -> Job[Arrays]:
        """A pass that is compared with several stored references, on all windows."""
        options = self._core.options
        jobs = tuple(self.by_itself(reference, logprobs=True) for reference in references)
        bases = [self._core.entry(job) for job in jobs]
        return Job(
            _JOINT,
            f"{model.name} on {self._corpus.name}",
            self._key(model, options.chunks) | {"references": [base.digest for base in bases]},
            lambda entry: (
                self._request(model, options.chunks, entry),
                [(base.folder, base.arrays_file) for base in bases],
            ),
            subjects=(model,),
            reads=jobs,
        )

    def of_candidate(self, model: Subject, reference: Subject) -> Job[Arrays]:
        """The pass of a candidate, which stops when all limits are decided."""
        job = self.against(CANDIDATE, model, reference, self._core.options.chunks, limits=self._limits)
        if not self._limits:
            return job
        # In whatever order a file of gates has them.
        limits = sorted((asdict(limit) for limit in self._limits), key=str)
        job = replace(job, key=job.key | {"until_decided": {"limits": limits, "rule": _STOPPING}})
        if self.is_beside(reference):
            return job
        growing = self.growing(reference)

        def arguments(entry: Entry) -> tuple[object, ...]:
            request, *_ = job.arguments(entry)
            return growing, model, lambda: self._core.shared_worker(model.model.name), request, self._limits

        return replace(job, measurement=_DECIDED, arguments=arguments, prepare=None)

    def is_beside(self, reference: Subject) -> bool:
        """Whether a reference's log-probabilities are not stored: candidates are decoded side by side with it."""

        def wanted() -> bool:
            entry = self._core.entry(self.by_itself(reference, logprobs=True))
            request = self._request(reference, self._core.options.chunks, entry)
            return self.beside.wanted(reference, lambda: self._shape(reference, request))

        return self._core.once(("side by side", self.digest(reference)), wanted)

    def _shape(self, model: Subject, request: PassRequest) -> tuple[int, int, int]:
        """(windows, scored tokens of each, vocabulary) of a reference's pass."""
        if request.chunks is not None and model.info.n_vocab is not None:
            return request.chunks, request.scored, model.info.n_vocab
        key = ("shape of a pass", request.key)
        worker = self._core.shared_worker
        return self._core.once(key, lambda: worker(model.model.name).call(reference_shape, None, request))

    def digest(self, reference: Subject) -> str:
        """The key of a reference's pass."""
        return self._core.entry(self.by_itself(reference, logprobs=True)).digest

    def growing(self, reference: Subject) -> GrowingReference:
        """A reference's pass, as far as it was made."""
        return GrowingReference(self._core, reference, self.by_itself(reference, logprobs=True))

    def _part(self, measurement: Measurement[Arrays]) -> str | None:
        """Passes that score from another position are measurements of their own."""
        return None if self._score_from is None else f"{measurement.kind}-depth"

    def _key(self, model: Subject, chunks: int | None) -> dict[str, object]:
        about = {"corpus": self._corpus.sha256, "chunks": chunks, "windows": self._core.options.windows}
        # Left out where it is as ever, so that what was measured before keeps its key.
        about |= {} if self._score_from is None else {"score_from": self._score_from}
        return self._core.key(model) | about

    def _request(self, model: Subject, chunks: int | None, entry: Entry) -> PassRequest:
        return PassRequest(
            model=model.name,
            files=model.files,
            settings=model.settings,
            corpus=CorpusText(self._corpus.name, self._corpus.text),
            chunks=chunks,
            folder=entry.folder,
            key=entry.digest,
            order=self._core.options.windows,
            score_from=self._score_from,
        )
