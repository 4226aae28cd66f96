"""How `make gpu-check` finds a GPU, and builds and takes a llama-cpp-python; nothing is compiled here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_check import cuda_build
from tests.gpu_check.cuda_build import (
    VERSION,
    CannotInstall,
    configure_command,
    find_wheel,
    install,
    make_wheel,
    missing_requirements,
)
from tests.gpu_check.environment import Setup
from tests.gpu_check.machine import cuda_library, look, parse_nvidia_smi
from tests.without_libraries import PROJECT

SMI = """\
0, Tesla T4, 15360, 550.90.07, 7.5, GPU-1f2e
1, Tesla T4, 15360, 550.90.07, 7.5, GPU-9a0b
2, NVIDIA A100-SXM4-40GB, [N/A], 550.90.07, 8.0, GPU-77aa
nonsense
"""


def _setup(folder: Path, *, gpu: bool = True, **more: Any) -> Setup:
    found = {"machine": {"gpus": [{"compute_capability": "7.5"}]}}
    return Setup(str(folder), str(folder / "cache"), gpu, quick=True, python=sys.executable, found=found, **more)


def test_gpus_of_nvidia_smi_are_read() -> None:
    found = parse_nvidia_smi(SMI)
    assert [gpu["index"] for gpu in found] == [0, 1]
    assert found[1] == {
        "index": 1, "name": "Tesla T4", "memory_bytes": 15360 * 2**20, "driver": "550.90.07",
        "compute_capability": "7.5", "uuid": "GPU-9a0b",
    }  # fmt: skip
    assert parse_nvidia_smi("No devices were found") == []


def test_the_machine_of_this_test_is_described(tmp_path: Path) -> None:
    outcome = look(_setup(tmp_path, gpu=False))
    assert outcome.verdict == "pass"
    assert outcome.numbers["python"] == ".".join(map(str, sys.version_info[:3]))
    assert outcome.numbers["llama_cpp_python"]["version"] == VERSION
    assert outcome.numbers["cores"] >= 1


def test_the_version_is_that_of_the_project() -> None:
    assert f"llama-cpp-python=={VERSION}" in PROJECT["dependencies"]


def test_one_architecture_is_built() -> None:
    tools = {"ninja": "/usr/bin/ninja", "nvcc": "/usr/local/cuda/bin/nvcc"}
    command = configure_command(Path("/src"), Path("/build"), "7.5", dict(tools))
    assert "-DCMAKE_CUDA_ARCHITECTURES=75-real" in command
    assert "-DGGML_CUDA=ON" in command
    assert command[command.index("-S") + 1] == "/src/vendor/llama.cpp"
    assert command[command.index("-G") + 1] == "Ninja"
    assert "-G" not in configure_command(Path("/src"), Path("/build"), "9.0", {"ninja": None, "nvcc": "nvcc"})


def _built(folder: Path, *, without: str = "") -> tuple[Path, Path]:
    """An unpacked sdist and a build, of files that hold next to nothing."""
    source, build = folder / f"llama_cpp_python-{VERSION}", folder / "build" / "bin"
    (source / "llama_cpp" / "server").mkdir(parents=True)
    build.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {VERSION}\n"
    (source / "PKG-INFO").write_text(metadata, encoding="utf-8")
    (source / "llama_cpp" / "__init__.py").write_text(f'__version__ = "{VERSION}"\n', encoding="utf-8")
    (source / "llama_cpp" / "server" / "__init__.py").write_text("", encoding="utf-8")
    for name in ("llama", "ggml", "ggml-base", "ggml-cpu", "ggml-cuda"):
        if name != without:
            (build / f"lib{name}.so").write_bytes(b"\x7fELF" + name.encode())
    return source, build.parent


def test_a_wheel_is_made_that_pip_installs(tmp_path: Path) -> None:
    source, build = _built(tmp_path)
    wheel = make_wheel(source, build, tmp_path)
    assert find_wheel(tmp_path) == wheel
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (target / "llama_cpp" / "lib" / "libggml-cuda.so").read_bytes() == b"\x7fELFggml-cuda"
    assert (target / "llama_cpp" / "server" / "__init__.py").is_file()
    assert cuda_library(target / "llama_cpp" / "lib") == target / "llama_cpp" / "lib" / "libggml-cuda.so"
    assert (target / f"llama_cpp_python-{VERSION}.dist-info" / "RECORD").is_file()


def test_a_build_without_cuda_makes_no_wheel(tmp_path: Path) -> None:
    with pytest.raises(CannotInstall, match=r"the build has no libggml-cuda\.so"):
        make_wheel(*_built(tmp_path, without="ggml-cuda"), tmp_path)


def test_wheels_for_the_cpu_are_passed_over(tmp_path: Path) -> None:
    for name, file in ((f"llama_cpp_python-{VERSION}-py3-none-linux_x86_64.whl", "libggml-cpu.so"),):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"llama_cpp/lib/{file}", b"")
    assert find_wheel(tmp_path) is None
    outcome = install(_setup(tmp_path, wheels=str(tmp_path)))
    assert outcome.verdict == "fail"
    assert "give --wheels with one in it, or --sdist to build it" in outcome.reason


def test_a_wheel_that_was_built_before_is_taken_again(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "cuda-75"
    kept.mkdir(parents=True)
    wheel = make_wheel(*_built(tmp_path), kept)
    found, source = cuda_build._wheel(_setup(tmp_path), 0.0)
    assert (found, source) == (wheel, f"from the wheel that an earlier run built ({wheel.name})")


def test_what_is_missing_for_a_build_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = tmp_path / "llama_cpp_python.tar.gz"
    sdist.write_bytes(b"no archive")
    nothing = dict.fromkeys(("nvcc", "cmake", "c++", "ninja", "make"))
    monkeypatch.setattr(cuda_build, "describe_cuda", lambda: dict(nothing))
    outcome = install(_setup(tmp_path, sdist=str(sdist)))
    assert outcome.reason == "the sdist cannot be compiled: nvcc, cmake, c++, ninja or make is not here"
    monkeypatch.setattr(cuda_build, "describe_cuda", lambda: dict.fromkeys(nothing, "/bin/true"))
    assert "cannot be unpacked" in install(_setup(tmp_path, sdist=str(sdist))).reason


def test_a_program_that_takes_too_long_is_told_with_what_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(CannotInstall, match=r"the build was cut after 1 s; 7 object files are kept"):
        cuda_build._run(sleep, 1.0, {}, "the build", "7 object files are kept")
    assert "$" in capfd.readouterr().out


def test_this_interpreter_has_all_that_the_project_needs() -> None:
    assert missing_requirements(Path(sys.executable)) == []


@pytest.mark.parametrize(
    ("here", "fits"),
    [
        (None, False),
        ({"version": VERSION, "cuda": False}, False),
        ({"version": VERSION, "cuda": True}, True),
        ({"version": f"{VERSION}+cu124", "cuda": True}, True),
        ({"version": "0.3.35+cu124", "cuda": True}, False),
    ],
)
def test_an_installed_build_with_cuda_is_taken(here: Any, fits: bool) -> None:
    assert cuda_build._fits(here) == fits
