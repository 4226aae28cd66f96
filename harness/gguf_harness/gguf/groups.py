"""Groups of tensors of a model: by role, by layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["by_layers", "by_role", "layer_of", "role_of"]

_BLOCK: Final = re.compile(r"^((?:enc|dec)\.)?blk\.(\d+)\.(.+)$")


def role_of(name: str) -> str:
    """Role of a tensor in any layer: `attn_q` for blk.3.attn_q.weight, `attn_q.bias` for its bias.

    Tensors of an encoder keep its name: `enc.attn_q`.
    """
    match = _BLOCK.match(name)
    role = f"{match[1] or ''}{match[3]}" if match else name
    return role.removesuffix(".weight")


def layer_of(name: str) -> int | None:
    """Number of the layer; None outside of layers. Encoder and decoder both count from 0, but roles differ."""
    match = _BLOCK.match(name)
    return int(match[2]) if match else None


def by_role(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensors by role, in their order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(role_of(name), []).append(name)
    return groups


def by_layers(names: Iterable[str], most: int) -> dict[tuple[int, int], list[str]]:
    """Tensors of layers, by (first, last) layer, in at most the given number of equal runs of consecutive layers."""
    groups: dict[int, list[str]] = {}
    for name in names:
        if (layer := layer_of(name)) is not None:
            groups.setdefault(layer, []).append(name)
    layers = sorted(groups)
    count = min(most, len(layers))
    runs = [layers[len(layers) * i // count : len(layers) * (i + 1) // count] for i in range(count)]
    return {(run[0], run[-1]): [name for layer in run for name in groups[layer]] for run in runs}
