"""The page of a picture, or of several: one HTML file with the script of a stored report."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import visible

if TYPE_CHECKING:
    from gguf_harness.api.pictures import Picture

__all__ = ["render_page"]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
_GRID: Final = """
body.pictures { max-width: none; padding: 1rem; }
body.pictures main {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 0 2rem;
}
body.pictures .picture { margin: .4rem 0; min-width: 0; }
body.pictures h2 { font-size: 1.2rem; }
"""


def render_page(pictures: Sequence[Picture]) -> str:
    """The page. Titles, meanings and data are shown as text, whatever they contain."""
    from gguf_harness.report.html import page_style
    from gguf_harness.views.bundle import report_script

    title = "; ".join(each.title for each in pictures if each.title) or "gguf-harness"
    figures = "\n".join(_figure(number, each) for number, each in enumerate(pictures, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_text(title)}</title>
<style>{page_style()}{_GRID}</style>
</head>
<body class="pictures">
<main>
{figures}
</main>
<script>{report_script()}</script>
</body>
</html>
"""


def _figure(number: int, picture: Picture) -> str:
    from gguf_harness.report.html import embed_json

    name = f"picture-{number}"
    title = f"<h2>{_text(picture.title)}</h2>" if picture.title else ""
    panels = {
        "view": picture.view,
        "panels": [{"name": "", "meaning": picture.meaning, "data": picture.data}],
        "state": picture.state,
    }
    return f"""<figure class="picture" id="{name}" data-picture="{name}" aria-label="{_text(picture.title or name)}">
<figcaption>{title}</figcaption>
<p class="meaning">{_text(picture.meaning)}</p>
<div class="view" role="group" aria-label="{_text(picture.title or name)}"></div>
<p class="tools"><button type="button" data-png>Save as PNG</button></p>
<noscript><p>This picture is drawn by a script, which this browser does not run.</p></noscript>
<script type="application/json">{embed_json(panels)}</script>
</figure>"""


def _text(text: str) -> str:
    return html.escape(visible(text))
