"""Notes on a run besides its numbers: added by measuring code, stored by reporting code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gguf_harness.store.arrays import Arrays

__all__ = ["NoNotes", "Notes"]


class Notes(Protocol):
    """Stores notes on a run: `store.run_part.RunPart` in a session, `NoNotes` in a script."""

    def set(self, name: str, value: object) -> None:
        """Set `corpus`, `engine`, `prompts`, `cache`, `analytics` or `nodes`."""

    def warn(self, message: str) -> None:
        """Add a warning to be shown after the run."""

    def warn_of_prompts(self, model: str, problems: Sequence[str], prompts: int) -> None:
        """Warn about prompts that a model could not take."""

    def add_early(self, model: str, windows: int, planned: int, n_ctx: int) -> None:
        """Record how much of the corpus a model needed with --gguf-until-decided."""

    def add_texts(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Store how a model continued the prompts."""

    def add_heads(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Store the kind of each head of a model."""

    def add_arrays(self, model: str, name: str, description: str, arrays: Arrays) -> None:
        """Store arrays for a chart."""


class NoNotes:
    """Discards notes: for scripts and notebooks, which get the arrays themselves."""

    def set(self, name: str, value: object) -> None:
        """Do nothing."""

    def warn(self, message: str) -> None:
        """Do nothing."""

    def warn_of_prompts(self, model: str, problems: Sequence[str], prompts: int) -> None:
        """Do nothing."""

    def add_early(self, model: str, windows: int, planned: int, n_ctx: int) -> None:
        """Do nothing."""

    def add_texts(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Do nothing."""

    def add_heads(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Do nothing."""

    def add_arrays(self, model: str, name: str, description: str, arrays: Arrays) -> None:
        """Do nothing."""
