"""A GGUF file written again with some of its content changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

__all__ = ["rewrite_gguf"]

ChangeTensor = Callable[[str, NDArray[Any]], NDArray[Any] | None]
"""Called with (name, values), in F32 or F16; returns what to write, None to leave the tensor out."""


def rewrite_gguf(
    source: Path,
    destination: Path,
    change: ChangeTensor,
    *,
    architecture: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Copy a model whose tensors are F32 or F16.

    Args:
        source: the file to copy.
        destination: the new one.
        change: what becomes of each tensor.
        architecture: another one; the keys of the old one are renamed.
        metadata: values by key, after renaming, in place of those in the file: whole numbers, lists of them, or floats.
    """
    reader = GGUFReader(source)
    old = reader.fields["general.architecture"].contents()
    new = architecture or old
    writer = GGUFWriter(destination, new)
    changed = dict(metadata or {})
    for name, field in reader.fields.items():
        key = name.replace(f"{old}.", f"{new}.", 1) if name.startswith(f"{old}.") else name
        if name.startswith("GGUF.") or name == "general.architecture" or key in changed:
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in changed.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for tensor in reader.tensors:
        values = change(tensor.name, np.array(tensor.data))
        if values is not None:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return destination
