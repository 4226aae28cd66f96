"""Every error that a user can meet, each with one clear message.

A message says what was wrong, the value, what was expected, and the next step. The plugin prints it without a
traceback; the CLI prints it and exits with 2.

`visible` makes any text one that can be shown and stored. Names of files are bytes. Python carries those that are not
UTF-8 as lone surrogates (PEP 383), which no JSON, HTML or XML in UTF-8 can hold. Names of models, messages of errors
and what a run keeps are made visible where they are made; paths stay as they are.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

__all__ = [
    "AnalyticsError",
    "CorpusError",
    "EngineCrashed",
    "EngineError",
    "EngineTimeout",
    "FilesLost",
    "GateError",
    "GraphError",
    "HarnessError",
    "HubError",
    "InvalidGGUF",
    "MissingExtra",
    "ModelError",
    "ModelNotFound",
    "NoData",
    "NoLanguageHead",
    "NoPrompt",
    "OptionError",
    "PromptError",
    "QuantizeError",
    "ShapeMismatch",
    "StoreError",
    "TapNotFound",
    "UnsupportedEngine",
    "VocabularyMismatch",
    "is_utf8",
    "visible",
    "visible_lines",
    "write_error",
]


_BYTES_IN_NAMES: Final = range(0xDC80, 0xDD00)
_SURROGATE: Final = 0xDC00


def visible(text: str) -> str:
    r"""A text with control characters shown as symbols: it cannot move the cursor or break a line.

    Bytes of a file's name that were not UTF-8 are shown as such, `tiny-\xff`. What comes out can be stored as UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{_code(c):02x}" for c in text)


def visible_lines(text: str) -> str:
    """The same with the lines and tabs of a text kept."""
    return "\n".join(visible(line.expandtabs(4)) for line in text.split("\n"))


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text: no name of a file in other bytes stands in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _code(character: str) -> int:
    code = ord(character)
    return code - _SURROGATE if code in _BYTES_IN_NAMES else code


class HarnessError(Exception):
    """Base of all errors raised on purpose. Whatever names stand in its message, it can be shown and stored.

    Args:
        message: what was wrong, with the value and what was expected.
        hint: the next step a person can take.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = visible_lines(message)
        self.hint = visible_lines(hint)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class OptionError(HarnessError):
    """A command-line option or setting has a value that cannot be used. The plugin turns it into a UsageError."""


class MissingExtra(HarnessError):
    """An optional library is not installed; the hint has the command that installs it."""


class ModelError(HarnessError):
    """A model cannot be used."""


class ModelNotFound(ModelError):
    """A model spec names nothing: no such file, alias, quantization or repository."""


class InvalidGGUF(ModelError):
    """A file is not a valid GGUF file; found before llama.cpp sees it."""


class VocabularyMismatch(ModelError):
    """Candidate and reference do not share a vocabulary, so their distributions cannot be compared."""


class ShapeMismatch(ModelError):
    """Candidate and reference are models of different shapes, and nobody asked to compare them."""


class CorpusError(HarnessError):
    """A corpus is missing, empty, undecodable or too short."""


class PromptError(HarnessError):
    """A prompt set is malformed, or a prompt is none for a model: too long, or refused by its chat template."""


class NoPrompt(PromptError):
    """A model can be given none of the prompts of a set, or none that it can be compared on."""


class EngineError(HarnessError):
    """llama.cpp could not do what it was asked."""


class NoLanguageHead(EngineError):
    """Next-token predictions were asked of a model that makes none: one for embeddings."""


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


class FilesLost(StoreError):
    """Files of a stored measurement are gone or damaged: it has to be measured again."""


class NoData(HarnessError):
    """A statistic was asked of no samples, or of samples that are not finite. No data is never a number."""


class AnalyticsError(HarnessError):
    """An analysis of points cannot be done as asked: settings do not fit the points, or a library cannot be used."""


class GateError(HarnessError):
    """A gate cannot be decided: unknown metric, no limit, or a malformed gates file."""


class GraphError(HarnessError):
    """A graph cannot be uploaded: credentials are missing, or the server refused."""


class HubError(HarnessError):
    """The Hugging Face hub did not give what it was asked for; callers say what for."""


_ROOM: Final = (
    "Free some space (`gguf-harness cache clear`), or choose other folders with --gguf-results and --gguf-cache."
)
_RIGHTS: Final = "Choose folders that you may write to with --gguf-results and --gguf-cache."
_IN_THE_WAY: Final = (
    "A file stands where a folder is needed, or a folder where a file is: move it, or choose other folders."
)
_WRITE_HINTS: Final[dict[int, str]] = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "Choose a file system that takes files of this size, with --gguf-cache.",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENAMETOOLONG: "Use shorter names of models or folders: a file system takes 255 bytes for each.",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EMFILE: "This process has too many files open: raise the limit (`ulimit -n`).",
    errno.ENFILE: "The system has too many files open: close other programs.",
    errno.ENOLCK: "The file system has no locks: choose another folder with --gguf-cache.",
    errno.EOPNOTSUPP: "The file system has no locks: choose another folder with --gguf-cache.",
}


def write_error(path: Path, error: OSError) -> StoreError:
    """Why a file or folder could not be written, and what to do about just that."""
    hint = _WRITE_HINTS.get(error.errno or 0, "Choose other folders with --gguf-results and --gguf-cache.")
    return StoreError(f"{path} could not be written: {error.strerror or error}.", hint)
