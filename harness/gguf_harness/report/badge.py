"""The verdict of a run as a small SVG: flat, as shields.io draws them, without network, fonts or scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from gguf_harness.report.data import Candidate, RunView, visible

__all__ = ["COLORS", "badge_message", "render_badge", "text_width"]

_LABEL: Final = "gguf-harness"
_MOST_CHARACTERS: Final = 40
_SAID: Final = {
    "fail": "fails",
    "error": "not measured",
    "incomplete": "is incomplete",
    "inconclusive": "is undecided",
}
_OPEN: Final = frozenset({"incomplete", "inconclusive"})
"""Verdicts that more data or more tests would decide."""
_SIZE, _HEIGHT, _PADDING, _RADIUS = 11, 20, 6, 3

COLORS: Final = {"pass": "#2e7d32", "some": "#8a5a00", "fail": "#c62828", "none": "#57606a", "label": "#444c56"}
"""Fill colours by outcome. White text on them has a contrast of at least 4.5, as WCAG 2 (1.4.3) requires."""

# Approximate advance widths of Verdana, in 1/2048 em. The SVG fixes the text width for every font.
_WIDTHS: Final = {
    character: width
    for width, characters in {
        550: "'", 562: "il", 705: "j", 720: " f", 745: ".,", 806: "!", 807: "t", 862: "I", 874: "r",
        930: "()-:;/[\\]|", 931: "J", 1067: "cs", 1076: "z", 1117: "?", 1140: "L", 1177: "F", 1212: "kvxy", 1220: "e",
        1230: "a", 1235: "P", 1243: "o", 1262: "TY", 1276: "bdgpq", 1296: "hnu", 1302: "0123456789_`$*{}E",
        1400: "ABSVXZ", 1423: "KR", 1430: "C", 1488: "&U", 1532: "HN", 1578: "DG", 1612: "OQ", 1676: "+<=>^~#w…",
        1726: "M", 1992: "m",
    }.items()
    for character in characters
}  # fmt: skip
_WIDEST: Final = 2048


def render_badge(run: Mapping[str, Any]) -> str:
    """`gguf-harness | Q4_K_M passes` as SVG; the same run gives the same bytes.

    Args:
        run: content of a run.json.
    """
    message, outcome = badge_message(RunView(run))
    left, right = (round(text_width(text)) + 2 * _PADDING for text in (_LABEL, message))
    name = f"{_LABEL}: {message}"
    width = left + right
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" role="img"'
        f' aria-label="{escape(name)}">\n'
        f"<title>{escape(name)}</title>\n"
        f'<rect width="{width}" height="{_HEIGHT}" rx="{_RADIUS}" fill="{COLORS[outcome]}"/>\n'
        # The label's right end is square: it covers the left of the box behind it.
        f'<path d="M{left} 0H{_RADIUS}a{_RADIUS} {_RADIUS} 0 0 0 -{_RADIUS} {_RADIUS}v{_HEIGHT - 2 * _RADIUS}'
        f'a{_RADIUS} {_RADIUS} 0 0 0 {_RADIUS} {_RADIUS}H{left}z" fill="{COLORS["label"]}"/>\n'
        f'<g fill="#fff" font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="{_SIZE}" aria-hidden="true">\n'
        f"{_text(_LABEL, _PADDING, left)}\n{_text(message, left + _PADDING, right)}\n"
        "</g>\n</svg>\n"
    )


def badge_message(view: RunView) -> tuple[str, str]:
    """(what the badge says, key of `COLORS`).

    A badge is green only if every candidate passes every planned gate and nothing else failed.
    """
    if (not_whole := _not_whole(view)) is not None:
        return not_whole
    gated = [model for model in view.candidates if model.verdict]
    if not gated:
        return _alone(view)
    passing = [model for model in gated if model.verdict == "pass"]
    if len(passing) == len(gated):
        said = f"{_short(gated[0])} passes" if len(gated) == 1 else f"all {len(gated)} pass"
        # The reference, a user's own test, or the session itself failed.
        return (f"{said}, other tests fail", "fail") if view.others_failed else (said, "pass")
    open_ended = all(model.verdict in _OPEN for model in gated)
    if len(gated) == 1:
        return f"{_short(gated[0])} {_SAID[gated[0].verdict]}", "some" if open_ended else "fail"
    if not passing:
        incomplete = any(model.verdict == "incomplete" for model in gated)
        return ("incomplete" if incomplete else "undecided", "some") if open_ended else ("fail", "fail")
    return f"{len(passing)} of {len(gated)} pass", "some"


def _not_whole(view: RunView) -> tuple[str, str] | None:
    """The message of a run that ended early, or of a part of one, which can fail, and not pass; None for others."""
    if view.interrupted is not None:
        return "incomplete" if view.run.get("merged") else "interrupted", "none"
    if view.part is None:
        return None
    words = f"s{view.part[1:]}"
    fails = view.others_failed or any(model.verdict in {"fail", "error"} for model in view.candidates)
    return (f"{words} fails", "fail") if fails else (words, "none")


def _alone(view: RunView) -> tuple[str, str]:
    """The message of a run without a comparison: a single model may have limits too."""
    verdict = view.alone.standing.verdict if view.alone is not None else ""
    if verdict in {"fail", "error"} or (view.others_failed and verdict not in _OPEN):
        return "fail", "fail"
    measured = any(row["model"] for row in view.run.get("estimates", []))
    said = {"pass": "pass", "inconclusive": "undecided", "incomplete": "incomplete"}
    return said.get(verdict, "not gated" if measured else "no verdict"), {"pass": "pass", "": "none"}.get(
        verdict, "some"
    )


def text_width(text: str) -> float:
    """Width of a text in pixels, in Verdana at the badge's size; an upper estimate for non-ASCII characters."""
    return sum(_WIDTHS.get(character, _WIDEST) for character in text) * _SIZE / 2048


def _text(text: str, x: float, box: float) -> str:
    length = box - 2 * _PADDING
    return f'<text x="{x}" y="14" textLength="{length}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'


def _short(model: Candidate) -> str:
    """The quantization if the name ends with it, otherwise the name."""
    kind = str(model.facts.get("quantization") or "")
    name = visible(kind if kind and model.name.lower().endswith(kind.lower()) else model.name)
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"
