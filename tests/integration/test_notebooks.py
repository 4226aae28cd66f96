"""The notebooks for learners: stored without outputs, and run from beginning to end on the CPU with tiny."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from tests.integration.report_pages import browser, page
from tests.without_libraries import hide_modules

if TYPE_CHECKING:
    from playwright.sync_api import Frame, Page

__all__ = ["browser", "page"]

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"

PICTURES = {
    "11_model_structure": 2,
    "12_attention": 4,
    "13_embeddings": 2,
    "14_layers": 4,
    "15_heads": 3,
    "16_quantization": 1,
}
"""How many each shows; two beside each other count once."""
NAMES = list(PICTURES)

TIMED = "16_quantization"
"""Its suite repeats timings that other processes disturb."""

# Everything else is as a reader finds it. Three types take half of the time of six, and beside another process threads
# that sleep while they wait take a fraction of the time of those that spin.
SETTINGS = {"GGUF_QUANTS": "Q8_0,Q4_K_M,Q2_K", "OMP_WAIT_POLICY": "PASSIVE"}
"""Variables of the environment."""

Run = Callable[[str], Any]
"""A notebook by its name, with the outputs of a run."""

to_run = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exclusive] if name == TIMED else []) for name in NAMES]
)


@pytest.fixture(scope="module")
def run_notebook(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs each notebook once, in a folder where it finds nothing, and what they quantize and measure in one of all.

    Without anywidget pictures are pages in frames: what is stored in a notebook can be looked at without a kernel.
    """
    from nbclient import NotebookClient

    done: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in done:
            notebook = _stored(name)
            folder = tmp_path_factory.mktemp(name)
            NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
            done[name] = notebook
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | {"GGUF_FOLDER": str(shared_folder / "notebooks")}).items():
            patch.setenv(name, value)
        for name in ("GGUF_MODEL", "GGUF_PROMPT", "GGUF_QUANT"):
            patch.delenv(name, raising=False)
        # This checkout, also where another one is installed.
        root = FOLDER.parents[1]
        paths = (str(root / "harness"), str(root), os.environ.get("PYTHONPATH"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        hide_modules(patch, tmp_path_factory.mktemp("hidden"), ["anywidget"])
        yield run


def test_there_are_six_notebooks_in_the_order_of_the_readme() -> None:
    listed = re.findall(r"\((\d\d_\w+)\.ipynb\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_run_is_stored(name: str) -> None:
    notebook = _stored(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert cell.metadata == {}, cell.id
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_to_begin_and_where_to_go_on(name: str) -> None:
    notebook = _stored(name)
    code = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    # Running all cells installs nothing.
    assert all(line.startswith("#") for line in code["install"].splitlines() if line)
    assert 'os.environ.get("GGUF_MODEL", "tiny")' in code["settings"]
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith(f"# {name[:2]} · ")
    assert len(re.findall(r"^- ", first, re.MULTILINE)) == 3
    linked = re.findall(r"\((\w+\.ipynb)\)", last)
    assert len(linked) == 1
    assert (FOLDER / linked[0]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_only_names_that_the_package_has_are_used(name: str) -> None:
    """Found here in a moment, and not after a minute of a run; also in cells that tiny never reaches."""
    import gguf_harness

    notebook = _stored(name)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    used = set(re.findall(r"\bgh\.(\w+)", code))
    assert used
    assert sorted(one for one in used if not hasattr(gguf_harness, one)) == []


@pytest.mark.model
@to_run
def test_it_runs_and_ends_with_what_it_found(run_notebook: Run, name: str) -> None:
    cells = [cell for cell in run_notebook(name).cells if cell.cell_type == "code"]
    # What libraries and llama.cpp write there would stand between text and pictures.
    assert [cell.id for cell in cells if any(output.get("name") == "stderr" for output in cell.outputs)] == []
    assert cells[-1].id == "finding"
    (finding,) = cells[-1].outputs
    assert finding.text.startswith("Finding: ")
    # Numbers of this run, and all of them were there.
    assert re.search(r"\d", finding.text)
    assert "nan" not in finding.text.casefold()


@pytest.mark.model
@pytest.mark.browser
@to_run
def test_every_picture_draws(run_notebook: Run, page: Page, tmp_path: Path, name: str) -> None:
    frames = [html for html in _outputs(run_notebook(name), "text/html") if "<iframe" in html]
    assert len(frames) == PICTURES[name]
    whole = tmp_path / "notebook.html"
    whole.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>{name}</title>{''.join(frames)}", encoding="utf-8")
    page.goto(whole.as_uri())
    pages = [frame for frame in page.frames if frame != page.main_frame]
    assert len(pages) == len(frames)
    for frame in pages:
        _see(frame)


def _stored(name: str) -> Any:
    """A notebook as it is in the repository, of whatever version."""
    return nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)  # type: ignore[no-untyped-call]  # of nbformat


def _outputs(notebook: Any, kind: str) -> list[str]:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data[kind] for output in outputs if "data" in output and kind in output.data]


def _see(frame: Frame) -> None:
    """Scroll to each view of a frame, which draws it, and wait until it says what it drew."""
    frame.frame_element().scroll_into_view_if_needed()
    count = frame.locator(".view").count()
    assert count >= 1
    for at in range(count):
        frame.locator(".view").nth(at).scroll_into_view_if_needed()
        frame.wait_for_function("at => document.querySelectorAll('.view')[at].shown !== undefined", arg=at)
