"""LoRA adapters on disk: validated and hashed, so that subjects can be run with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_harness.engine.settings import Adapter
from gguf_harness.errors import ModelError, visible
from gguf_harness.gguf.header import read_header
from gguf_harness.store.file_hashes import hash_files

if TYPE_CHECKING:
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.subject_values import AdapterSpec

__all__ = ["adapted_tensors", "find_adapters", "load_adapter", "open_adapters"]

_ENDINGS = (".lora_a", ".lora_b")


def find_adapters(options: Options, models: Sequence[ModelInfo]) -> list[tuple[Adapter, ...]]:
    """The adapters of --gguf-lora, each group applied together; without it those that come along with the models.

    Args:
        options: of the session.
        models: facts of the files that they are to be applied to.

    Raises:
        InvalidGGUF: a file is not valid.
        ModelError: a file is missing, or no LoRA adapter.
        OptionError: one of a group twice.
    """
    del models
    return [
        tuple(load_adapter(Path(spec.file), options.cache, scale=spec.scale) for spec in specs)
        for specs in options.lora
    ]


def open_adapters(specs: Sequence[AdapterSpec], model: ModelInfo) -> tuple[Adapter, ...]:
    """Adapters to be applied to a model together, outside of a session: nothing is remembered.

    Raises:
        InvalidGGUF: a file is not valid.
        ModelError: a file is missing, or no LoRA adapter.
    """
    del model
    return tuple(load_adapter(Path(spec.file), None, scale=spec.scale) for spec in specs)


def load_adapter(file: Path, cache: Path | None, *, scale: float = 1.0, name: str | None = None) -> Adapter:
    """Read and hash an adapter. Whether it fits a model, llama.cpp says when it is loaded.

    Args:
        file: in GGUF, as llama.cpp's convert_lora_to_gguf.py writes it.
        cache: folder that remembers hashes of large files; None to remember none.
        scale: how strongly to apply it.
        name: as it is to stand in names of subjects; that of the file without its ending if not given.

    Raises:
        InvalidGGUF: the file is not valid.
        ModelError: it is no LoRA adapter.
        OptionError: the scale is not finite.
    """
    metadata = read_header(file).metadata
    kinds = metadata.get("general.type"), metadata.get("adapter.type")
    if kinds != ("adapter", "lora"):
        general, adapter = ("missing" if kind is None else repr(kind) for kind in kinds)
        raise ModelError(
            f"{file.name} is no LoRA adapter: its general.type is {general} and its adapter.type is {adapter},"
            " expected 'adapter' and 'lora'.",
            "Convert an adapter with llama.cpp's convert_lora_to_gguf.py.",
        )
    return Adapter(visible(name or file.stem), file, hash_files([file], cache), scale)


def adapted_tensors(adapter: Adapter) -> frozenset[str]:
    """Names of the model's tensors that an adapter changes.

    Raises:
        InvalidGGUF: its file is not valid any more.
    """
    names = (tensor.name for tensor in read_header(adapter.file).tensors)
    return frozenset(name.removesuffix(ending) for name in names for ending in _ENDINGS if name.endswith(ending))
