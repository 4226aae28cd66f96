"""Quantization types: llama.cpp's names and numbers. Light: every pytest session of an environment loads them."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT_QUANTS", "FTYPES", "NEEDS_IMATRIX", "ftype_label", "parse_quants"]

FTYPES: Final[dict[str, int]] = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "Q4_1": 3,
    "Q4_0": 2,
    "MXFP4_MOE": 38,
    "Q3_K_L": 13,
    "Q3_K_M": 12,
    "Q3_K_S": 11,
    "IQ3_M": 27,
    "IQ3_S": 26,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "Q2_K": 10,
    "Q2_K_S": 21,
    "IQ2_M": 29,
    "IQ2_S": 28,
    "IQ2_XS": 20,
    "IQ2_XXS": 19,
    "TQ2_0": 37,
    "TQ1_0": 36,
    "IQ1_M": 31,
    "IQ1_S": 24,
    "Q2_0": 41,
    "Q1_0": 40,
}
"""Every type that llama-quantize offers, by its name there; values are `enum llama_ftype` (`general.file_type`)."""

_ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

NEEDS_IMATRIX: Final = frozenset({
    "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "Q2_K_S", "IQ1_M", "IQ1_S",
})  # fmt: skip
"""Types that llama.cpp makes only with an importance matrix (tensor_requires_imatrix in src/llama-quant.cpp).

Other types include such a type depending on the model (IQ3_XS): llama.cpp refuses those before it writes anything.
"""

DEFAULT_QUANTS: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")

_GUESSED: Final = 1024


def parse_quants(text: str) -> tuple[str, ...]:
    """Parse names from `Q8_0,Q4_K_M` or `default`, in the given order, without duplicates.

    Raises:
        OptionError: an unknown name, or no name.
    """
    if text.strip().lower() == "default":
        return DEFAULT_QUANTS
    names = [part.strip().upper() for part in text.split(",") if part.strip()]
    if not names:
        from gguf_harness.errors import OptionError

        raise OptionError("--gguf-quants is empty.", f"Expected `default` or names such as {','.join(DEFAULT_QUANTS)}.")
    return tuple(dict.fromkeys(_canonical(name) for name in names))


def ftype_label(number: int) -> str | None:
    """The name of a `general.file_type`; None if unknown."""
    number &= ~_GUESSED
    return next((name for name, value in FTYPES.items() if value == number), None)


def _canonical(name: str) -> str:
    name = _ALIASES.get(name, name)
    if name not in FTYPES:
        import difflib

        from gguf_harness.errors import OptionError

        close = difflib.get_close_matches(name, FTYPES, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise OptionError(f"Unknown quantization type {name!r}.", f"{hint}Known types: {', '.join(FTYPES)}.")
    return name
