"""The package, installed in clean environments: a wheel that needs no checkout, and an editable install of one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
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
        "gguf_harness/fixtures/asked_for.py",
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


def _environment(folder: Path, *installed: str) -> Path:
    """A clean virtual environment in which only `installed` (arguments of pip) is; its interpreter.

    What this package depends on comes from the environment of this session: llama.cpp is not compiled again.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "install", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, *installed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def _run(folder: Path, *command: str | Path) -> str:
    """What a command prints, in an environment that knows nothing of this session's folders."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    return done.stdout + done.stderr


def _places(python: Path, folder: Path) -> list[Path]:
    """Where the package and its fixtures and suites are imported from."""
    code = "import gguf_harness as a, gguf_harness.fixtures as b, gguf_harness.suites as c; print(*a.__path__)"
    code += "; print(b.__file__); print(c.__file__)"
    return [Path(line) for line in _run(folder, python, "-P", "-c", code).splitlines()]


@pytest.fixture(scope="module")
def wheel_python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment with the wheel."""
    (wheel,) = built.glob("*.whl")
    return _environment(tmp_path_factory.mktemp("wheel") / "venv", str(wheel))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout that may be changed."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    copy = tmp_path_factory.mktemp("editable") / "checkout"
    for name in filter(None, names):
        if (ROOT / name).exists():  # removed, and not committed yet
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def editable_python(checkout: Path) -> Path:
    """Interpreter of an environment with an editable install of the copy."""
    return _environment(checkout.parent / "venv", "--no-build-isolation", "--editable", str(checkout))


@pytest.mark.model
def test_suites_and_fixtures_work_without_the_checkout(wheel_python: Path, llama_file: Path, tmp_path: Path) -> None:
    site = wheel_python.parent.parent / "lib"
    assert all(place.is_relative_to(site) for place in _places(wheel_python, tmp_path))
    quick = [
        f"--models={llama_file}",
        "--gguf-ctx=32",
        "--gguf-chunks=2",
        "--gguf-batch=64",
        "--gguf-pp=8",
        "--gguf-tg=4",
    ]
    output = _run(tmp_path, wheel_python.parent / "gguf-harness", "run", "quant", *quick)
    assert "report: results/runs/" in output, output
    assert str(ROOT) not in output
    assert list(tmp_path.glob("results/runs/*/report.html"))

    (tmp_path / "conftest.py").write_text('pytest_plugins = ["gguf_harness.fixtures"]\n')
    (tmp_path / "test_mine.py").write_text(
        "import gguf_harness\n\n\ndef test_mine(model, corpus_pass):\n"
        f"    assert gguf_harness.__file__.startswith({str(site)!r})\n"
        "    assert corpus_pass(model)['nll'].shape == (2, 15)\n"
    )
    output = _run(tmp_path, wheel_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quick)
    assert "1 passed" in output, output


def test_a_project_asks_for_the_fixtures_of_a_wheel(wheel_python: Path, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine(ladder):\n    assert ladder.reference.name == 'tiny-F16'\n")
    command = [str(wheel_python), "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    assert "gguf_fixtures = true" in _run(tmp_path, *command)
    (tmp_path / "pytest.ini").write_text("[pytest]\ngguf_fixtures = true\n")
    assert "1 passed" in _run(tmp_path, *command)


def test_an_editable_install_sees_every_edit_at_once(editable_python: Path, checkout: Path, tmp_path: Path) -> None:
    package = checkout / "harness" / "gguf_harness"
    places = _places(editable_python, tmp_path)
    assert places == [package, package / "fixtures" / "__init__.py", package / "suites" / "__init__.py"]
    site = editable_python.parent.parent / "lib"
    # The code is in one place only.
    assert not list(site.rglob("gguf_harness/*"))

    (tmp_path / "test_mine.py").write_text("def test_mine(edited):\n    assert edited == 'at first'\n")
    command = [str(editable_python), "-P", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    mine = [*command, "-p", "gguf_harness.fixtures", "test_mine.py"]
    assert "fixture 'edited' not found" in _run(tmp_path, *mine)
    fixture = "import pytest\n\n\n@pytest.fixture\ndef edited():\n    return {!r}\n"
    (checkout / "fixtures" / "edited.py").write_text(fixture.format("at first"))
    assert "1 passed" in _run(tmp_path, *mine)
    (checkout / "fixtures" / "edited.py").write_text(fixture.format("and later"))
    assert "'and later' == 'at first'" in _run(tmp_path, *mine)

    suite = [*command, "--pyargs", "gguf_harness.suites.quant.test_edited"]
    test = checkout / "suites" / "quant" / "test_edited.py"
    test.write_text("def test_edited(edited):\n    assert edited == 'and later'\n")
    assert "1 passed" in _run(tmp_path, *suite)
    test.write_text("def test_edited(edited):\n    assert edited == 'never'\n")
    assert "'and later' == 'never'" in _run(tmp_path, *suite)
