"""Numbers as people read them: as many digits as the uncertainty allows, everywhere in one way."""

from __future__ import annotations

import math
import sys

__all__ = [
    "format_bytes",
    "format_clock",
    "format_duration",
    "format_estimate",
    "format_percent",
    "format_value",
]


def format_estimate(value: float, se: float | None) -> str:
    """`12.33 ± 0.52`: the error to two significant digits, the value to the same place.

    Samples that are all the same have a standard error of zero, which says nothing about other samples: 60 of 60
    tokens may well be 59 of the next 60. So there is no `± 0`: the value stands alone, and the number of samples beside
    it says how much is known.
    """
    # Below the smallest normal number an error is zero but for rounding.
    if se is None or se < sys.float_info.min:
        return format_value(value)
    exponent = math.floor(math.log10(se))
    if round(se / 10.0**exponent, 1) >= 10:
        exponent += 1
    digits = 1 - exponent
    if digits > 7:
        return f"{value:.3g} ± {se:.1e}"
    return f"{round(value, digits):.{max(digits, 0)}f} ± {round(se, digits):.{max(digits, 0)}f}"


def format_value(value: float) -> str:
    """Four significant digits; small numbers in scientific notation."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.2e}"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def format_percent(share: float, se: float | None) -> str:
    """`86.4 ± 0.5 %` of a fraction; `100 %` if all samples are the same."""
    return f"{format_estimate(100 * share, None if se is None else 100 * se)} %"


def format_bytes(count: float) -> str:
    """Decimal units, three significant digits: 105 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # 999,600 bytes are 1.00 MB, not 1000 kB.
        if count >= 0.9995 * size:
            amount = count / size
            return (
                f"{amount:.2f} {unit}"
                if amount < 9.995
                else f"{amount:.1f} {unit}"
                if amount < 99.95
                else f"{amount:.0f} {unit}"
            )
    return f"{count:.0f} B"


def format_clock(seconds: float) -> str:
    """A time in minutes, or hours: `1:05`, `2:03:10`."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def format_duration(seconds: float) -> str:
    """A time in words: `40 s`, `4 min 10 s`, `2 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole // 60 % 60} min" if whole // 60 % 60 else f"{whole // 3600} h"
