"""Subjects of measurements: a model file and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.inputs.models import ModelInfo

__all__ = ["Model", "Subject", "subject_name"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is on disk and valid.

    Attributes:
        name: as shown in tables.
        info: facts from its header.
        sha256: hash of its content.
    """

    name: str
    info: ModelInfo
    sha256: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The GGUF file, or its splits."""
        return self.info.files


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and how it is run. A file with default settings is the simplest subject.

    Attributes:
        model: what is loaded.
        settings: how: context, batches, threads, types of the KV cache.
        variant: differences from the settings of the session, "kv=q8_0/q4_0"; None if there are none.
    """

    model: Model
    settings: SessionSettings
    variant: str | None = None

    @property
    def name(self) -> str:
        """As shown in tests, tables and results: `tiny-Q4_K_M`, `tiny-Q4_K_M [kv=q8_0/q4_0]`."""
        return subject_name(self.model.name, self.variant)

    @property
    def info(self) -> ModelInfo:
        """Facts from the header of its file."""
        return self.model.info

    @property
    def sha256(self) -> str:
        """Hash of the content of its file."""
        return self.model.sha256

    @property
    def files(self) -> tuple[Path, ...]:
        """The GGUF file, or its splits."""
        return self.model.files

    def key(self) -> dict[str, Any]:
        """Everything that decoded numbers depend on, as JSON types: the content of the file, and how it is run."""
        return {"model": self.sha256, "settings": self.settings.to_json()}

    def to_json(self) -> dict[str, Any]:
        """What a run stores about it besides facts of the file; `adapters` is reserved for LoRA."""
        about = {"name": self.name, "file": self.model.name, "variant": self.variant}
        return about | {"context": self.settings.to_json(), "adapters": []}

    def __repr__(self) -> str:
        """Short: pytest shows it in messages of failed assertions."""
        return f"<subject {self.name}>"


def subject_name(model: str, variant: str | None) -> str:
    """The name of a subject: model and variant."""
    return model if variant is None else f"{model} [{variant}]"
