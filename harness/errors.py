"""Every error that a user can meet, each with one clear message.

A message says what was wrong, the value, what was expected, and the next step. The plugin prints it without a
traceback; the CLI prints it and exits with 2.
"""

from __future__ import annotations

__all__ = [
    "AnalyticsError",
    "CorpusError",
    "EngineCrashed",
    "EngineError",
    "EngineTimeout",
    "GateError",
    "GraphError",
    "HarnessError",
    "InvalidGGUF",
    "ModelError",
    "ModelNotFound",
    "NoData",
    "NoPrompt",
    "OptionError",
    "PromptError",
    "QuantizeError",
    "StoreError",
    "TapNotFound",
    "UnsupportedEngine",
    "VocabularyMismatch",
]


class HarnessError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what was wrong, with the value and what was expected.
        hint: the next step a person can take.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class OptionError(HarnessError):
    """A command-line option or setting has a value that cannot be used. The plugin turns it into a UsageError."""


class ModelError(HarnessError):
    """A model cannot be used."""


class ModelNotFound(ModelError):
    """A model spec names nothing: no such file, alias, quantization or repository."""


class InvalidGGUF(ModelError):
    """A file is not a valid GGUF file; found before llama.cpp sees it."""


class VocabularyMismatch(ModelError):
    """Candidate and reference do not share a vocabulary, so their distributions cannot be compared."""


class CorpusError(HarnessError):
    """A corpus is missing, empty, undecodable or too short."""


class PromptError(HarnessError):
    """A prompt set is malformed, or a prompt is none for a model: too long, or refused by its chat template."""


class NoPrompt(PromptError):
    """A model can be given none of the prompts of a set, or none that it can be compared on."""


class EngineError(HarnessError):
    """llama.cpp could not do what it was asked."""


class UnsupportedEngine(EngineError):
    """The installed llama-cpp-python is outside the supported range, or its structs differ from what we read."""


class EngineCrashed(EngineError):
    """The worker process died: llama.cpp aborted, the system killed it, or memory ran out.

    Args:
        message: which model, doing what, and the signal or exit status.
        hint: the last lines of the worker's log, and where the whole log is.
        exit_status: as `subprocess.Popen.returncode` gives it: negative for a signal.
    """

    def __init__(self, message: str, hint: str = "", exit_status: int | None = None) -> None:
        super().__init__(message, hint)
        self.exit_status = exit_status

    def __reduce__(self) -> tuple[type[EngineCrashed], tuple[str, str, int | None]]:
        return type(self), (self.message, self.hint, self.exit_status)


class EngineTimeout(EngineError):
    """The worker process reported nothing for longer than the timeout, and was stopped."""


class TapNotFound(EngineError):
    """A tap name that the model's graph does not offer; the message lists what it does."""


class QuantizeError(EngineError):
    """llama.cpp refused to quantize a model."""


class StoreError(HarnessError):
    """Results cannot be read or written: permissions, disk space, an unknown schema version, damage."""


class NoData(HarnessError):
    """A statistic was asked of no samples, or of samples that are not finite. No data is never a number."""


class AnalyticsError(HarnessError):
    """An analysis of points cannot be done as asked: settings do not fit the points, or a library cannot be used."""


class GateError(HarnessError):
    """A gate cannot be decided: unknown metric, no limit, or a malformed gates file."""


class GraphError(HarnessError):
    """A graph cannot be uploaded: a package or credentials are missing, or the server refused."""
