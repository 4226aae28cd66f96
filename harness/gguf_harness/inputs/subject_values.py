"""Values of options that make subjects of files: types of the KV cache, scaling of positions, LoRA adapters.

Loaded in every pytest session of an environment: imports are local.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

if TYPE_CHECKING:
    from gguf_harness.engine.settings import KVTypes, RopeScaling

__all__ = ["AdapterSpec", "adapter_spec", "kv_list", "kv_types", "lora_list", "rope_list", "rope_scaling"]

_DEFAULT: Final = "default"
_UNROTATED: Final = "+norot"


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An adapter as it was written: `style.gguf:0.5`.

    Attributes:
        file: its path, or an alias, as written.
        scale: how strongly it is applied.
    """

    file: str
    scale: float = 1.0

    def __str__(self) -> str:
        return self.file if self.scale == 1 else f"{self.file}:{self.scale:g}"


def kv_types(text: str) -> KVTypes:
    """Option type for types of the K and the V cache, `q8_0/q4_0` or `q8_0/q4_0+norot`."""
    from gguf_harness.engine.settings import CacheType, KVTypes
    from gguf_harness.errors import OptionError

    known = {str(name): name for name in get_args(CacheType)}
    lower = text.strip().lower()
    names = [name.strip() for name in lower.removesuffix(_UNROTATED).split("/")]
    unknown = next((name for name in names if name not in known), None)
    if len(names) != 2 or unknown is not None:
        problem = f"{unknown!r} is not a KV-cache type" if unknown else f"{text[:40]!r} is not a pair of types"
        raise argparse.ArgumentTypeError(f"{problem}, expected K/V of {', '.join(known)}, such as q8_0/q4_0")
    try:
        return KVTypes(known[names[0]], known[names[1]], rotate=not lower.endswith(_UNROTATED))
    except OptionError as error:
        raise argparse.ArgumentTypeError(error.message.removesuffix(".")) from None


def kv_list(text: str) -> tuple[KVTypes, ...] | str:
    """Option type for pairs of types, `f16/f16,q8_0/q4_0`, each once; or `default`."""
    if text.strip().lower() == _DEFAULT:
        return _DEFAULT
    return tuple(dict.fromkeys(kv_types(pair) for pair in text.split(",")))


def rope_list(text: str) -> tuple[RopeScaling, ...]:
    """Option type for scalings of positions, `linear:2,yarn:4,none`, each once."""
    return tuple(dict.fromkeys(rope_scaling(part) for part in text.split(",")))


def rope_scaling(text: str) -> RopeScaling:
    """Option type for a scaling of positions, `yarn:4`."""
    from gguf_harness.engine.settings import RopeScaling
    from gguf_harness.errors import OptionError

    kind, colon, factor = text.strip().lower().partition(":")
    try:
        if kind == "none" and not colon:
            return RopeScaling("none")
        if kind == "linear":
            return RopeScaling("linear", float(factor))
        if kind == "yarn":
            return RopeScaling("yarn", float(factor))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{factor!r} in {text!r} is not a factor, expected such as yarn:4") from None
    except OptionError as error:
        raise argparse.ArgumentTypeError(error.message.removesuffix(".")) from None
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is no rope scaling, expected none, linear:FACTOR or yarn:FACTOR")


def lora_list(text: str) -> tuple[tuple[AdapterSpec, ...], ...]:
    """Option type for adapters, `a.gguf,b.gguf:0.5,a.gguf+b.gguf`: what a plus joins is applied together."""
    return tuple(dict.fromkeys(tuple(map(adapter_spec, part.split("+"))) for part in text.split(",")))


def adapter_spec(text: str) -> AdapterSpec:
    """An adapter, `FILE` or `FILE:SCALE`."""
    from gguf_harness.store.paths import path_argument

    file, scale = text.strip(), 1.0
    before, colon, number = file.rpartition(":")
    if colon:
        with contextlib.suppress(ValueError):  # then the colon belongs to the path
            file, scale = before, float(number)
        if not math.isfinite(scale):
            raise argparse.ArgumentTypeError(f"{number!r} in {text!r} is not a scale, expected a finite number")
    if not file:
        raise argparse.ArgumentTypeError(f"{text!r} names no adapter, expected FILE or FILE:SCALE")
    path_argument(file)
    return AdapterSpec(file, scale)
