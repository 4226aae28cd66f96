"""The documentation: links lead somewhere, the glossary has every metric and every word of the architecture."""

from __future__ import annotations

import html
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest

from docs.hooks import DEMO_REPORT, anchor, as_markdown, concepts, concepts_markdown, metrics_markdown
from gguf_harness.inputs.command_line import option_attributes
from gguf_harness.metrics.registry import ESTIMATED, METRICS

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
GENERATED = {DOCS / "glossary.md": (("concepts", concepts_markdown), ("metrics", metrics_markdown))}


class Page(HTMLParser):
    """Anchors and links of a page, and its text by the anchor that stands before it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: dict[str, str] = {"": ""}
        source = path.read_text(encoding="utf-8")
        for what, text in GENERATED.get(path, ()):
            source = source.replace(f"<!-- generated: {what} -->", text())
        self.feed(markdown.markdown(source, extensions=["toc", "attr_list", "tables", "fenced_code"]))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        known = dict(attrs)
        if identifier := known.get("id"):
            self.ids.append(identifier)
            self.text[identifier] = ""
        self.links += [link for name in ("href", "src") if (link := known.get(name))]

    def handle_data(self, data: str) -> None:
        self.text[next(reversed(self.text))] += data


@cache
def page(path: Path) -> Page:
    return Page(path)


def links_inside(path: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link of a page that is not to another site."""
    split = [link.partition("#") for link in page(path).links if not re.match(r"[a-z]+:", link)]
    return [((path.parent / file).resolve() if file else path, name) for file, _, name in split]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    report = DOCS / DEMO_REPORT
    missing = {file for file, _ in links_inside(path) if file != report and not file.exists()}
    assert not missing
    no_anchor = {
        (file.name, name)
        for file, name in links_inside(path)
        if name and file.suffix == ".md" and name not in page(file).ids
    }
    assert not no_anchor


def test_links_are_found() -> None:
    assert (ROOT / "docs" / "report.md", "") in links_inside(ROOT / "README.md")
    assert (DOCS / "glossary.md", "gate") in links_inside(DOCS / "learn" / "7-quantization.md")


def test_every_picture_is_on_a_page() -> None:
    shown = {file for path in PAGES for file, _ in links_inside(path)}
    assert sorted((DOCS / "pictures").glob("*.png")) == sorted(file for file in shown if file.suffix == ".png")


def test_the_glossary_explains_every_metric() -> None:
    for name, metric in METRICS.items():
        text = page(DOCS / "glossary.md").text[name]
        direction = "neither direction" if metric.better == "neutral" else f"{metric.better} is better"
        facts = (
            f"{metric.title} ({name})",
            f"Unit: {metric.unit or 'a pure number'}; {direction}",
            *(metric.meaning, metric.definition, metric.source, ESTIMATED[metric.estimated]),
        )
        assert [fact for fact in facts if fact not in text] == [], name


def test_the_glossary_has_the_words_of_the_architecture() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = architecture.partition("| word | meaning |\n")[2].partition("\n\n")[0]
    words = {word for row in table.splitlines()[1:] for word in row.split("|")[1].strip().split(", ")}
    assert "subject" in words
    assert {anchor(word) for word in words} <= set(page(DOCS / "glossary.md").ids)


def test_an_anchor_is_of_one_entry() -> None:
    anchors = [anchor(word) for words in concepts().values() for word in words]
    assert len(set(anchors)) == len(anchors)
    assert not set(anchors) & set(METRICS)
    ids = page(DOCS / "glossary.md").ids
    assert len(set(ids)) == len(ids)
    assert set(anchors) | set(METRICS) <= set(ids)


def test_meanings_are_a_sentence_or_two() -> None:
    for words in concepts().values():
        for word, meaning in words.items():
            assert meaning.endswith((".", "?")), word
            assert len(html.unescape(meaning)) < 260, word


def test_texts_are_shown_as_they_are() -> None:
    text = "p_a *is* `q` <i>or</i> [r](s) & __t__ \\u #v {w} x^2 ~y"
    shown = markdown.markdown(as_markdown(text), extensions=["attr_list"])
    assert html.unescape(shown.removeprefix("<p>").removesuffix("</p>")) == text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_on_a_page_exist(path: Path) -> None:
    """Options of ours, and of the check of GPUs; what follows the name is not looked at."""
    text = path.read_text(encoding="utf-8")
    ours = set(re.findall(r"--gguf-[a-z0-9-]*[a-z0-9]", text)) - {"--gguf-"}
    if path.name == "CHANGELOG.md":
        # It also tells of options that are gone.
        return
    assert not {name for name in ours if name not in option_attributes()}


def test_options_of_the_check_of_gpus_are_explained() -> None:
    known = set(re.findall(r'"(--[a-z-]+)", ', (ROOT / "tests/gpu_check/__main__.py").read_text("utf-8")))
    text = (DOCS / "devices.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"--[a-z]+(?:-[a-z]+)*", text) if not name.startswith("--gguf")}
    assert {"--wheels", "--sdist", "--cpu", "--only"} <= named <= known


def test_the_cells_for_kaggle_are_python_or_shell() -> None:
    """Cells of Python compile; lines for pip and the shell are taken out first."""
    text = (DOCS / "kaggle.md").read_text(encoding="utf-8")
    blocks = ["\n".join(line[4:] for line in block) for block in _indented(text)]
    cells = [block for block in blocks if not block.startswith(("%%bash", "None of this"))]
    assert len(cells) == 5
    for cell in cells:
        python = "\n".join(line for line in cell.splitlines() if not line.startswith(("%", "!")))
        compile(python, "cell", "exec")
    commands = [line[1:] for cell in cells for line in cell.splitlines() if line.startswith("!")]
    assert [command.split()[:3] for command in commands] == [["gguf-harness", "run", "quant"]]


def _indented(text: str) -> list[list[str]]:
    """Blocks of lines that are indented by four spaces."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("    "):
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]
