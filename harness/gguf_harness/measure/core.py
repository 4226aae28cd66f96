"""The core of a session: runs measurements with its models and its llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from gguf_harness.engine.machine import identify_machine
from gguf_harness.errors import HarnessError
from gguf_harness.measure.llama_cpp import LlamaCpp
from gguf_harness.measure.measuring import Measuring, Progress
from gguf_harness.measure.model_files import ModelFiles

if TYPE_CHECKING:
    from gguf_harness.cluster.actors import Actors
    from gguf_harness.inputs.ladder import PlannedSubject
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.measurement import Job
    from gguf_harness.measure.notes import Notes

__all__ = ["Core"]

R = TypeVar("R")


class Core(Measuring):
    """Runs measurements of subjects; arguments as for `Measuring`."""

    def __init__(
        self,
        options: Options,
        progress: Progress,
        session: str | None = None,
        notes: Notes | None = None,
        actors: Actors | None = None,
    ) -> None:
        super().__init__(options, progress, session, notes, actors)
        self.llama_cpp = LlamaCpp(self)
        self.models = ModelFiles(self, self.llama_cpp)

    def subject(self, planned: PlannedSubject) -> Subject:
        """Make sure that the model of a subject is on disk: validate it, or quantize it first.

        Raises:
            ModelError: a file changed since it was hashed.
        """
        return self.models.subject(planned)

    def sound(self, planned: PlannedSubject | None) -> Subject | None:
        """The same for a reference that others can do without; None if it has an error, which its own tests report."""
        try:
            return None if planned is None else self.subject(planned)
        except HarnessError:
            return None

    def reference_of(self, subject: Subject, planned: PlannedSubject | None) -> Subject | None:
        """The reference that a subject is compared with; None for the reference itself, or if no reference is sound."""
        return None if planned is None or planned.name == subject.name else self.sound(planned)

    def note_prompts(self, prompts: PromptSet) -> None:
        """Store in the run which prompts its models were given."""
        self.notes.set("prompts", prompts.to_json() | {"tokens": self.options.gen_tokens})

    def key(self, subject: Subject) -> dict[str, Any]:
        """What llama.cpp's numbers of a subject depend on: its file, its settings, and the build."""
        return subject.key() | {"engine": self.llama_cpp.key}

    @property
    def machine_key(self) -> dict[str, Any]:
        """Properties of the machine that timings depend on, for the keys of measurements."""
        return self.once(("machine key",), identify_machine)

    def measure(self, job: Job[R]) -> R:
        """The result of a job; see `Measuring.measure`. The run then names the build of llama.cpp."""
        if "engine" in job.key:
            self.notes.set("engine", self.llama_cpp.description)
        return super().measure(job)

    def bytes_of(self, model: str) -> int:
        """Size of a model's files; of a worker for parts of models, the largest one's."""
        return self.models.bytes_of(model)

    def will_read(self, model: str) -> None:
        """Note that a worker was asked for a model."""
        self.models.use(model)

    def check_read(self, subjects: Sequence[Subject]) -> None:
        """Refuse results if the files have changed meanwhile."""
        self.models.check_unchanged(*(subject.model for subject in subjects))
        for subject in subjects:
            self.models.check_adapters(subject)
        self.models.check_used()
