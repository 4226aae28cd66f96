"""A page that hosts widgets as a notebook does: it imports their module, and gives it a model of traits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gguf_harness as gh
from gguf_harness.views.bundle import widget_module

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["FIRST", "HOST", "open_notebook", "open_widget"]

FIRST = "document.querySelector('.view').shown"

HOST = """
<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>A notebook</title>
<style>body { font: 13px sans-serif; color: rgb(1, 2, 3); background: rgb(250, 240, 230); margin: 8px } </style></head>
<body data-jp-theme-light="THEME">
<p id="own" class="muted">Its own text</p><table id="table"><tr><td>cell</td></tr></table>
<div id="cell"></div>
<script type="application/json" id="traits">TRAITS</script>
<script type="text/plain" id="module">MODULE</script>
<script type="module">
  const traits = JSON.parse(document.getElementById("traits").textContent);
  const listeners = new Map();
  window.model = {
    get: (name) => traits[name],
    set(name, value) { traits[name] = value; for (const each of listeners.get(`change:${name}`) ?? []) each(); },
    on: (event, each) => listeners.set(event, [...(listeners.get(event) ?? []), each]),
    off: (event, each) => listeners.set(event, (listeners.get(event) ?? []).filter((other) => other !== each)),
    save_changes() {},
  };
  window.listeners = listeners;
  const source = document.getElementById("module").textContent;
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  window.clean = await widget.render({ model: window.model, el: document.getElementById("cell") });
  window.ready = true;
</script></body></html>
"""


def open_widget(page: Page, picture: gh.Picture, folder: Path, *, light: bool) -> None:
    """The host is ours, the module and its traits are what anywidget hands over."""
    widget = picture.widget()
    assert str(widget._esm) == widget_module()
    traits = {name: getattr(widget, name) for name in ("view", "data", "state", "title")}
    assert set(traits) <= set(widget.keys)
    safe = json.dumps(traits).replace("<", "\\u003c")
    html = HOST.replace("THEME", str(light).lower()).replace("TRAITS", safe)
    (folder / "host.html").write_text(
        html.replace("MODULE", widget_module().replace("</script", "<\\/script")), "utf-8"
    )
    page.goto((folder / "host.html").as_uri())
    page.wait_for_function("() => window.ready")
    page.wait_for_function(f"() => {FIRST} !== undefined")


@pytest.fixture
def open_notebook(browser: Browser) -> Iterator[Page]:
    """A page on a light machine, which may ask for the module alone, and say nothing."""
    page = browser.new_page(viewport={"width": 900, "height": 800}, color_scheme="light")
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    page.close()
    assert problems == []
