"""The explorer's page: one document with its style and script in it, so that it asks for nothing but answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

from gguf_harness.errors import visible
from gguf_harness.report.html import page_style
from gguf_harness.views.bundle import explorer_script

__all__ = ["render_page"]


def render_page(nonce: str, models: Sequence[str]) -> str:
    """The page.

    Args:
        nonce: of its script, which the browser runs for no other.
        models: names of those that it will load.
    """
    return _page(tuple(models)).replace("@nonce@", nonce)


@cache
def _page(models: tuple[str, ...]) -> str:
    import jinja2
    from markupsafe import Markup

    assets = resources.files("gguf_harness.explore") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "explorer.html.j2").read_text(encoding="utf-8"))
    # Only our own files are marked as markup.
    style = Markup(page_style() + (assets / "explorer.css").read_text(encoding="utf-8"))  # noqa: S704
    names = " and ".join(map(visible, models))
    return template.render(models=names, style=style, script=Markup(explorer_script()), nonce="@nonce@")  # noqa: S704
