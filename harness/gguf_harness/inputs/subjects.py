"""Subjects of measurements: a model file and how it is run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gguf_harness.errors import NoData

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gguf_harness.engine.settings import Adapter, KVTypes, RopeScaling, SessionSettings
    from gguf_harness.inputs.models import ModelInfo

__all__ = ["Model", "Subject", "describe_variant", "subject_name"]


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
        settings: how: context, batches, threads, types of the KV cache, adapters.
        variant: what differs from the settings of the session, "kv=q8_0/q4_0 lora=legal:0.5"; None where nothing does.
    """

    model: Model
    settings: SessionSettings
    variant: str | None = None

    @property
    def name(self) -> str:
        """As shown in tests, tables and results: `tiny-Q4_K_M`, `tiny-Q4_K_M [kv=q8_0/q4_0 lora=legal:0.5]`."""
        return subject_name(self.model.name, self.variant)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """LoRA adapters that it is run with."""
        return self.settings.adapters

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
        """What a run stores about it besides facts of the file."""
        return {
            "name": self.name,
            "file": self.model.name,
            "variant": self.variant,
            "context": replace(self.settings, adapters=()).to_json(),
            "adapters": [{"name": adapter.name} | adapter.to_json() for adapter in self.adapters],
        }

    def require_no_adapters(self, what: str) -> None:
        """Refuse what is read from the model's file alone: it would be the same with any adapters, and without.

        Args:
            what: is measured, as the subject of a sentence: "errors of the weights".

        Raises:
            NoData: it is run with adapters.
        """
        if self.adapters:
            raise NoData(
                f"{self.name}: {what} are read from the model's file, which its LoRA adapters do not change; they would"
                f" be those of {self.model.name} alone.",
                f"Measure them of {self.model.name}, or of a file that the adapters were merged into"
                " (llama-export-lora).",
            )

    def __repr__(self) -> str:
        """Short: pytest shows it in messages of failed assertions."""
        return f"<subject {self.name}>"


def describe_variant(
    kv: KVTypes | None, adapters: Sequence[Adapter] = (), rope: RopeScaling | None = None
) -> str | None:
    """What differs from the settings of the session: `kv=q8_0/q4_0 lora=legal:0.5+polite`; None where nothing does."""
    parts = [] if kv is None else [f"kv={kv}"]
    if rope is not None:
        parts.append(f"rope={rope}")
    if adapters:
        parts.append(f"lora={'+'.join(map(str, adapters))}")
    return " ".join(parts) or None


def subject_name(model: str, variant: str | None) -> str:
    """The name of a subject: model and variant."""
    return model if variant is None else f"{model} [{variant}]"
