"""Whether candidates are decoded side by side with their reference, and the jobs that do so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import CorpusError
from gguf_harness.measure.measurement import ARRAYS, Measurement
from gguf_harness.measure.passes.side_by_side import compare_side_by_side, reference_part
from gguf_harness.measure.passes.tasks import check_room
from gguf_harness.metrics.divergence import TOKEN_VALUES_VERSION
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.engine.calling import TaskWorker
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.measure.measurement import Job
    from gguf_harness.measure.passes.tasks import PassRequest
    from gguf_harness.metrics.windows import WindowLimit

__all__ = ["Beside"]

_SIDE_BY_SIDE: Final = Measurement(
    "passes/side_by_side", TOKEN_VALUES_VERSION, compare_side_by_side, "windows", ARRAYS, runs="in the session"
)
"""Its numbers have no error of the codec: they are never mixed up with those of `passes/candidate`."""


class Beside:
    """Passes of candidates with their reference decoded in step.

    Args:
        core: runs measurements.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seen: dict[str, Arrays] = {}

    def wanted(self, reference: Subject, shape: Callable[[], tuple[int, int, int]]) -> bool:
        """Whether candidates of a reference are decoded so; if that was not asked for, the run says why.

        Args:
            reference: what they are compared with.
            shape: (windows, scored tokens, vocabulary) of its pass.
        """
        options, asked = self._core.options, self._core.options.side_by_side
        if asked != "auto":
            return asked == "always"
        try:
            check_room(shape(), options.logprobs_limit, "--gguf-logprobs-limit")
            check_room(shape(), options.cache_limit, "--gguf-cache-limit")
        except CorpusError as error:
            if self._core.actors is not None:
                raise CorpusError(
                    f"{error.message} With --gguf-ray nothing is decoded side by side with its reference.",
                    "Raise --gguf-logprobs-limit and --gguf-cache-limit, or lower --gguf-chunks; or run without"
                    " --gguf-ray.",
                ) from None
            self._core.notes.warn(
                f"{error.message} So nothing of it is stored: each candidate was decoded side by side with"
                f" {reference.name}, which took longer, as the reference is decoded again for each."
            )
            return True
        return False

    def job(
        self,
        job: Job[Arrays],
        key: dict[str, Any],
        reference: Subject,
        request: PassRequest,
        worker: Callable[[], TaskWorker],
        limits: Sequence[WindowLimit],
    ) -> Job[Arrays]:
        """A pass against a stored reference as one side by side with it.

        Args:
            job: the pass; the first of its arguments is the candidate's request.
            key: what the reference's numbers depend on.
            reference: what the candidate is compared with.
            request: its pass; its windows are the candidate's.
            worker: starts or returns the candidate's worker.
            limits: what stops the pass once it is decided.
        """
        core = self._core

        def arguments(entry: Any) -> tuple[Any, ...]:
            candidate, *_ = job.arguments(entry)
            of_reference = replace(request, chunks=candidate.chunks)
            opened = lambda: core.new_worker(reference.model.name)  # noqa: E731 - sent nowhere
            return candidate, of_reference, opened, worker, tuple(limits), core.options.timeout_s

        return replace(
            job,
            measurement=_SIDE_BY_SIDE,
            key=job.key | {"reference": key},
            arguments=arguments,
            subjects=(*job.subjects, reference),
            reads=(),
            prepare=None,
        )

    def seen(self, arrays: Arrays) -> None:
        """Remember a result, for its values of the reference."""
        digest = str(arrays["reference"].item())
        if digest not in self._seen or len(self._seen[digest]["nll"]) < len(arrays["nll"]):
            self._seen[digest] = arrays

    def reference(self, digest: str) -> Arrays | None:
        """Values of a reference, of the most windows that some candidate was decoded on; None if there are none.

        Args:
            digest: of the reference's pass.
        """
        return reference_part(self._seen[digest]) if digest in self._seen else None
