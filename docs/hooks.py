"""What the site has and this folder has not: the glossary, how to read each picture, and the report of the demo run.

`mkdocs.yml` names this file; mkdocs calls the functions `on_...`. The pages have a comment where the text goes.
"""

from __future__ import annotations

import html
import importlib
import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import HarnessError
from gguf_harness.metrics import registry
from gguf_harness.metrics.registry import ESTIMATED, METRICS, Metric
from gguf_harness.report.charts import SECTIONS, build_charts
from gguf_harness.report.data import RunView
from gguf_harness.report.html import write_html
from gguf_harness.store.runs import find_run, load_run

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = [
    "DEMO_REPORT",
    "anchor",
    "as_markdown",
    "concepts",
    "concepts_markdown",
    "metrics_markdown",
    "pictures_markdown",
]

DEMO_REPORT: Final = "demo/report.html"
"""Where pages find the report of the demo run."""

_FOLDER: Final = Path(__file__).parent
_RUNS: Final = _FOLDER.parent / ".cache" / "docs"
_PICTURE: Final = re.compile(r"!\[([^\]]+)\]\(pictures/([a-z-]+)\.png\)")
_BETTER: Final = {"higher": "higher is better", "lower": "lower is better", "neutral": "neither direction is better"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the report of the demo run, made with the code of today."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    try:
        run, folder = _demo(config.extra["demo"])
        with tempfile.TemporaryDirectory() as temporary:
            write_html(run, folder, Path(temporary) / "report.html")
            content = (Path(temporary) / "report.html").read_text(encoding="utf-8")
    except HarnessError as error:
        raise PluginError(f"The demo run: {error.message} `make docs` measures it.") from None
    files.append(File.generated(config, DEMO_REPORT, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Put generated text in the place of the comment that stands for it."""
    if page.file.src_uri == "glossary.md":
        markdown = _put(markdown, "concepts", concepts_markdown())
        return _put(markdown, "metrics", metrics_markdown())
    if page.file.src_uri == "how-to-read.md":
        return _put(markdown, "pictures", pictures_markdown(*_demo(config.extra["demo"])))
    return markdown


def concepts() -> dict[str, dict[str, str]]:
    """Words that are no metrics, in a sentence or two each, by subject: concepts.toml."""
    content: dict[str, dict[str, str]] = tomllib.loads((_FOLDER / "concepts.toml").read_text(encoding="utf-8"))
    return content


def anchor(word: str) -> str:
    """The anchor of a word: `Logit lens` is found at #logit-lens."""
    return re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")


def concepts_markdown() -> str:
    """The words, a heading for each subject and each word."""
    lines = []
    for subject, words in concepts().items():
        lines += [f"### {subject}", ""]
        for word, meaning in words.items():
            lines += [f"#### {word} {{ #{anchor(word)} }}", "", meaning, ""]
    return "\n".join(lines)


def metrics_markdown() -> str:
    """Every metric of the registry, a heading for each family and each metric."""
    lines = []
    for family, members in _families().items():
        lines += [f"### {family.__name__.rpartition('.')[2].capitalize()}", "", _about(family), ""]
        for metric in members:
            lines += _entry(metric)
    return "\n".join(lines)


def pictures_markdown(run: Mapping[str, Any], folder: Path) -> str:
    """How to read each picture of a run: the words of its charts, which the report has too."""
    names = {name: text for text, name in _PICTURE.findall((_FOLDER / "report.md").read_text(encoding="utf-8"))}
    lines = []
    for section, charts in build_charts(RunView(run), folder).items():
        shown = [chart for chart in charts if chart["how"] and chart["id"] in names]
        lines += [f"### {SECTIONS[section]}", ""] if shown else []
        for chart in shown:
            name = chart["id"]
            lines += [
                f"#### {names[name]} {{ #{name} }}",
                "",
                f"In the demo: [{as_markdown(chart['title'])}]({DEMO_REPORT}#{name})",
                "",
                f"{as_markdown(chart['meaning'])} {as_markdown(chart['how'])}",
                "",
                f"![{names[name]}](pictures/{name}.png){{ loading=lazy .small }}",
                "",
            ]
    return "\n".join(lines)


def as_markdown(text: str) -> str:
    """Markdown that shows a text as it is."""
    return re.sub(r"([\\`*_{}\[\]#])", r"\\\1", html.escape(text, quote=False))


def _entry(metric: Metric) -> list[str]:
    facts = (
        f"Unit: {as_markdown(metric.unit or 'a pure number')}; {_BETTER[metric.better]}.",
        f"Definition: {_sentence(metric.definition)}",
        f"Source: {_sentence(metric.source)}",
        f"Estimated: {as_markdown(ESTIMATED[metric.estimated])}",
    )
    return [
        f"#### {as_markdown(metric.title)} (`{metric.name}`) {{ #{metric.name} }}",
        "",
        as_markdown(metric.meaning),
        "",
        # Two spaces end a line within a paragraph.
        "  \n".join(facts),
        "",
    ]


def _families() -> dict[ModuleType, list[Metric]]:
    """Metrics by the module of the registry that has them, in the order of tables."""
    found = [importlib.import_module(f"{registry.__name__}.{name}") for _, name, _ in iter_modules(registry.__path__)]
    module_of = {metric.name: module for module in found for metric in getattr(module, "METRICS", ())}
    families: dict[ModuleType, list[Metric]] = {}
    for metric in METRICS.values():
        families.setdefault(module_of[metric.name], []).append(metric)
    return families


def _about(family: ModuleType) -> str:
    """The first sentence of the module's docstring, without where it is computed."""
    first = (family.__doc__ or "").split("\n\n")[0]
    return _sentence(re.split(r": computed in|: `", first)[0])


def _demo(run: str) -> tuple[Mapping[str, Any], Path]:
    path = find_run(run, _RUNS)
    return load_run(path), path.parent


def _put(markdown: str, what: str, text: str) -> str:
    comment = f"<!-- generated: {what} -->"
    if comment not in markdown:
        raise ValueError(f"The page has no {comment}.")
    return markdown.replace(comment, text)


def _sentence(text: str) -> str:
    return as_markdown(text if text.endswith((".", "!", "?")) else f"{text}.")
