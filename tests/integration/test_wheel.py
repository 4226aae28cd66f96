"""The built wheel, installed where there is no checkout: suites, fixtures and commands are all in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_owns_one_package_and_holds_everything(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gguf_harness"}
    for needed in (
        "gguf_harness/py.typed",
        "gguf_harness/suites/quant/test_perplexity.py",
        "gguf_harness/fixtures/models.py",
        "gguf_harness/fixtures/data/gates.toml",
        "gguf_harness/fixtures/data/prompts.toml",
        "gguf_harness/report/assets/report.html.j2",
    ):
        assert needed in names
    assert not any("__pycache__" in name or name.startswith("tests") for name in names)


def test_the_sdist_holds_the_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"suites/quant/test_speed.py", "fixtures/record.py", "tests/conftest.py", "Makefile", "conftest.py"} <= names
    assert "examples/github-gate.yml" in names
    assert not any(name.startswith(("results/runs", "results/cache", ".venv", ".cache")) for name in names)


@pytest.mark.model
def test_suites_and_fixtures_work_without_the_checkout(built: Path, llama_file: Path, tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    (wheel,) = built.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        return done.stdout + done.stderr

    quick = [
        f"--models={llama_file}",
        "--gguf-ctx=32",
        "--gguf-chunks=2",
        "--gguf-batch=64",
        "--gguf-pp=8",
        "--gguf-tg=4",
    ]
    output = run(
        sys.executable, "-c", "from gguf_harness.cli import main; raise SystemExit(main())", "run", "quant", *quick
    )
    assert "report: results/runs/" in output, output
    assert str(ROOT) not in output
    assert list(home.glob("results/runs/*/report.html"))

    (home / "test_mine.py").write_text(
        "import gguf_harness\n\n\ndef test_mine(model, corpus_pass):\n"
        f"    assert gguf_harness.__file__.startswith({str(site)!r})\n"
        "    assert corpus_pass(model)['nll'].shape == (2, 15)\n"
    )
    output = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quick)
    assert "1 passed" in output, output
