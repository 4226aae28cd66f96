"""Pictures: a view with its data, which a notebook shows, and which is written as a page that needs no network."""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.api.arguments import folder_of
from gguf_harness.errors import is_installed, require_extra

if TYPE_CHECKING:
    from anywidget import AnyWidget

__all__ = ["Picture", "Pictures", "side_by_side"]

_HEIGHTS: Final = {"attention": 900, "qkv": 900, "space": 760, "structure": 760, "next_tokens": 720}
_HEIGHT: Final = 520
_ROOM: Final = 110
"""Pixels of a page around a picture: title, meaning and the button below."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Picture:
    """One picture: the same as in a report.

    At the end of a cell it is a widget where anywidget is installed (`pip install 'gguf-harness[notebook]'`), else a
    page in a frame.

    Attributes:
        view: the module in `gguf_harness/views/src` that draws it.
        data: what it draws: JSON types only. The module says what that is.
        title: what it shows.
        meaning: a sentence below the title.
        state: what is chosen at first, such as {"head": [1, 1]}.
    """

    view: str
    data: dict[str, Any]
    title: str = ""
    meaning: str = ""
    state: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<picture {self.view}{f': {self.title}' if self.title else ''}>"

    def to_html(self) -> str:
        """A whole page, with its script and styles: it asks nothing of the network."""
        return Pictures((self,)).to_html()

    def save(self, path: str | Path) -> Path:
        """Write `to_html()` into a file, whole or not at all.

        Returns:
            The path.

        Raises:
            StoreError: it cannot be written.
        """
        return Pictures((self,)).save(path)

    def widget(self) -> AnyWidget:
        """An anywidget widget of the picture: setting its `data` draws it again.

        Raises:
            MissingExtra: anywidget is not installed.
        """
        require_extra("notebook", "A widget", "anywidget")
        widget: AnyWidget = _widget_class()(view=self.view, data=self.data, state=self.state, title=self.title)
        return widget

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]] | dict[str, Any]:
        if not is_installed("anywidget"):
            return {"text/plain": repr(self)}
        shown: Any = self.widget()._repr_mimebundle_()
        data, about = shown if isinstance(shown, tuple) else (shown or {}, {})
        return {**data, "text/plain": repr(self)}, about

    def _repr_html_(self) -> str | None:
        """The page in a frame. None where there is a widget: a notebook would store both."""
        return None if is_installed("anywidget") else Pictures((self,))._repr_html_()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pictures:
    """Pictures beside each other, or below each other where it is narrow.

    Attributes:
        pictures: one at least.
    """

    pictures: tuple[Picture, ...]

    def __repr__(self) -> str:
        return f"<{len(self.pictures)} pictures: {', '.join(each.view for each in self.pictures)}>"

    def to_html(self) -> str:
        """A whole page, with its script and styles: it asks nothing of the network."""
        from gguf_harness.api.picture_page import render_page

        return render_page(self.pictures)

    def save(self, path: str | Path) -> Path:
        """Write `to_html()` into a file, whole or not at all.

        Returns:
            The path.

        Raises:
            StoreError: it cannot be written.
        """
        from gguf_harness.store.runs import write_text

        destination = folder_of(path, "path")
        write_text(destination, self.to_html())
        return destination

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which can do nothing but draw and save what it drew."""
        height = max(_HEIGHTS.get(each.view, _HEIGHT) for each in self.pictures) + _ROOM
        label = ", ".join(each.title for each in self.pictures if each.title) or "Picture"
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" title="{html.escape(label)}"'
            f' srcdoc="{html.escape(self.to_html())}" style="width: 100%; height: {height}px; border: 0"></iframe>'
        )


def side_by_side(*pictures: Picture) -> Pictures:
    """Pictures beside each other: of several prompts, models or layers.

        gguf_harness.side_by_side(*(model.attention(prompt).plot() for prompt in prompts))

    Raises:
        TypeError: something is no picture, or there is none.
    """
    for each in pictures:
        if not isinstance(each, Picture):
            raise TypeError(f"a picture is what .plot() returns, got {type(each).__name__}")
    if not pictures:
        raise TypeError("side_by_side takes one picture at least")
    return Pictures(pictures)


@functools.cache
def _widget_class() -> type[AnyWidget]:
    """The widget: its traits are what views/src/widget.js reads. anywidget is imported when the first one is made."""
    import traitlets
    from anywidget import AnyWidget

    from gguf_harness.views.bundle import widget_module

    # Of its traits, anywidget sends those with a tag `sync` to the front end.
    members: Mapping[str, Any] = {
        "__doc__": "A picture of gguf-harness.",
        "_esm": widget_module(),
        "view": traitlets.Unicode().tag(sync=True),
        "data": traitlets.Dict().tag(sync=True),
        "state": traitlets.Dict().tag(sync=True),
        "title": traitlets.Unicode().tag(sync=True),
    }
    return type("PictureWidget", (AnyWidget,), dict(members))
