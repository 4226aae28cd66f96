"""The explorer's page: one document with its style and script in it, so that it asks for nothing but answers."""

from __future__ import annotations

from functools import cache
from importlib import resources

from gguf_harness.report.html import page_style
from gguf_harness.views.bundle import explorer_script

__all__ = ["render_page"]


def render_page(nonce: str) -> str:
    """The page.

    Args:
        nonce: of its script, which the browser runs for no other.
    """
    return _page().replace("@nonce@", nonce)


@cache
def _page() -> str:
    import jinja2
    from markupsafe import Markup

    assets = resources.files("gguf_harness.explore") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "explorer.html.j2").read_text(encoding="utf-8"))
    # Only our own files are marked as markup.
    style = Markup(page_style() + (assets / "explorer.css").read_text(encoding="utf-8"))  # noqa: S704
    return template.render(style=style, script=Markup(explorer_script()), nonce="@nonce@")  # noqa: S704
