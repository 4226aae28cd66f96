"""What is to be known of a run beside its numbers: said by whoever measures, kept by whoever reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gguf_harness.store.arrays import Arrays

__all__ = ["NoNotes", "Notes"]


class Notes(Protocol):
    """Keeps what a run has to say: `store.run_draft.RunPart` in a session, `NoNotes` in a script."""

    def set(self, name: str, value: object) -> None:
        """Set `corpus`, `engine`, `prompts`, `cache` or `analytics`."""

    def warn(self, message: str) -> None:
        """Say something that the person should read after the run."""

    def warn_of_prompts(self, model: str, problems: Sequence[str], prompts: int) -> None:
        """Say which of so many prompts a model could not be given."""

    def add_early(self, model: str, windows: int, planned: int, n_ctx: int) -> None:
        """Say how much of the corpus a model needed with --gguf-until-decided."""

    def add_texts(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Keep how a model continued the prompts."""

    def add_heads(self, model: str, rows: list[dict[str, Any]]) -> None:
        """Say what kind each head of a model is."""

    def add_arrays(self, model: str, name: str, description: str, arrays: Arrays) -> None:
        """Keep arrays for a picture."""


class NoNotes:
    """Keeps nothing: for scripts and notebooks, which get the arrays themselves."""

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
