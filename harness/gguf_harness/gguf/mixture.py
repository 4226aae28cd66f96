"""Mixtures: a model with some tensors of another one, to measure the effect of quantizing only these.

Everything is copied byte for byte, split by split: metadata from the first model, each tensor as stored. Only the list
of tensors is rewritten.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from gguf_harness.errors import ModelError, StoreError, write_error
from gguf_harness.gguf.header import GGUFHeader, TensorInfo, read_header
from gguf_harness.gguf.rewritten import padded, read_blocks, stored, write_tensors

__all__ = ["differing_tensors", "write_mixture"]

Place = tuple[GGUFHeader, TensorInfo]


def write_mixture(files: Sequence[Path], other: Sequence[Path], names: Iterable[str], folder: Path) -> tuple[Path, ...]:
    """Write a model with some tensors of another one.

    Args:
        files: the model, or all its splits.
        other: the other model, or all its splits.
        names: tensors to take from the other.
        folder: where files of the same names are written; not that of `files`. After an error, the caller removes its
            content.

    Returns:
        The new files.

    Raises:
        ModelError: a tensor is not in both models, or of another shape.
        StoreError: no space, or no permission.
    """
    headers = [read_header(file) for file in files]
    taken = _find(headers, [read_header(file) for file in other], set(names))
    plans = [[taken.get(info.name, (header, info)) for info in header.tensors] for header in headers]
    try:
        _check_room(headers, plans, folder)
        return tuple(
            write_tensors(header, [stored(*place) for place in plan], folder / header.path.name)
            for header, plan in zip(headers, plans, strict=True)
        )
    except OSError as error:
        raise write_error(folder, error) from error


def differing_tensors(files: Sequence[Path], other: Sequence[Path]) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Tensors of the same name and shape that are stored differently in two models, by name: (first, second)."""
    own, others = (
        {info.name: (header, info) for file in side for header in [read_header(file)] for info in header.tensors}
        for side in (files, other)
    )
    return {
        name: (place[1], others[name][1])
        for name, place in own.items()
        if name in others and place[1].shape == others[name][1].shape and not _same(place, others[name])
    }


def _same(one: Place, other: Place) -> bool:
    if one[1].type != other[1].type:
        return False
    places = [(header, header.data_offset + info.offset, info.bytes) for header, info in (one, other)]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(header.path.open("rb")) for header, _, _ in places]
        blocks = [read_blocks(stream, place[1], place[2]) for stream, place in zip(streams, places, strict=True)]
        return all(a == b for a, b in zip(*blocks, strict=True))


def _find(headers: Sequence[GGUFHeader], others: Sequence[GGUFHeader], names: set[str]) -> dict[str, Place]:
    own = {info.name: info for header in headers for info in header.tensors}
    tensors = {info.name: (header, info) for header in others for info in header.tensors if info.name in names}
    for name in sorted(names):
        shapes = [
            place.shape if place else None for place in (own.get(name), tensors[name][1] if name in tensors else None)
        ]
        if shapes[0] is None or shapes[0] != shapes[1]:
            described = " and ".join("missing" if shape is None else str(list(shape)) for shape in shapes)
            raise ModelError(
                f"Tensor {name!r} of {headers[0].path.name} and {others[0].path.name} is {described}.",
                "Tensors can only be exchanged between files made from the same model.",
            )
    return tensors


def _check_room(headers: Sequence[GGUFHeader], plans: Sequence[Sequence[Place]], folder: Path) -> None:
    needed = sum(header.data_offset for header in headers)
    needed += sum(padded(info.bytes, header.alignment) for plan in plans for header, info in plan)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"A mixture of two models needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free.",
            "Free some space, or choose another --gguf-cache folder.",
        )
