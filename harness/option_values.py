"""Values of options that argparse has not seen: a conftest may set `config.option.gguf_ctx` to anything."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from harness.errors import OptionError

__all__ = ["checked_value"]

_HINT: Final = "If it is not from the command line, a conftest or a plugin has set it."


def checked_value(name: str, value: object, attributes: Mapping[str, Any]) -> Any:
    """A value as argparse would have it; one that it has checked stays as it is.

    Args:
        name: of the option.
        value: of it.
        attributes: that argparse knows the option by.

    Raises:
        OptionError: nobody could have given that value on a command line.
    """
    if value is None or value == attributes["default"]:
        return value
    action, choices = attributes.get("action"), attributes.get("choices")
    if action == "store_true":
        return _known(name, value, isinstance(value, bool), "True or False")
    if action == "append":
        values = [value] if isinstance(value, str) else value
        is_list = isinstance(values, list | tuple) and all(isinstance(part, str) for part in values)
        return _known(name, values, is_list, "a text or a list of texts")
    if choices is not None:
        return _known(name, value, value in choices, f"one of {', '.join(choices)}")
    parse = attributes.get("type")
    if parse is None:
        return _known(name, value, isinstance(value, str), "a text")
    return _parsed(name, value, parse)


def _known(name: str, value: object, is_known: bool, expected: str) -> object:
    if not is_known:
        raise OptionError(f"{name} is {value!r}, expected {expected}.", _HINT)
    return value


def _parsed(name: str, value: object, parse: Callable[[str], object]) -> object:
    if isinstance(value, tuple):  # what the types of layers and heads make
        return value
    try:
        return parse(os.fspath(value) if isinstance(value, os.PathLike) else str(value))
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{name}: {error}.", _HINT) from None
