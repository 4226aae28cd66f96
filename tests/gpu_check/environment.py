"""What a step is told: folders, interpreter, device, and what was found before it."""

from __future__ import annotations

import json
import os
import site
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["ROOT", "Setup", "child_environment", "cuda_libraries", "read_setup"]

ROOT: Final = Path(__file__).resolve().parents[2]
"""The checkout."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Of a whole check; a file that each step reads.

    Attributes:
        folder: of this check: results, logs, runs.
        cache: what later checks find again: the build, the wheel, the venv.
        gpu: whether a GPU is checked; otherwise the CPU stands in for one.
        quick: smallest sizes: for tests of the steps themselves.
        python: interpreter of all steps that need llama.cpp.
        wheels: folder of wheels, if given.
        sdist: of llama-cpp-python, if given.
        build_s: most seconds that compiling may take.
        found: numbers of steps that ran before, by their names.
    """

    folder: str
    cache: str
    gpu: bool
    quick: bool
    python: str
    wheels: str | None = None
    sdist: str | None = None
    build_s: float = 300.0
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The folder of this check."""
        return Path(self.folder)

    def write(self, file: Path) -> None:
        """Write it for `read_setup`."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_setup(file: Path) -> Setup:
    """What `Setup.write` wrote."""
    return Setup(**json.loads(file.read_text(encoding="utf-8")))


def child_environment(python: str) -> dict[str, str]:
    """Of a step: the checkout is imported, and CUDA's libraries are found wherever pip has put them."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "harness"), str(ROOT)])
    environment["PYTHONUNBUFFERED"] = "1"
    # Steps start sessions of pytest: what was meant for another session must not reach them.
    for name in ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_PLUGINS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    folders = [str(folder) for folder in cuda_libraries(python)]
    before = environment.get("LD_LIBRARY_PATH")
    if folders:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    return environment


def cuda_libraries(python: str) -> list[Path]:
    """Folders with CUDA's libraries: of the toolkit, and of the packages nvidia-*-cu12 beside an interpreter."""
    roots = {Path(folder) for folder in site.getsitepackages()}
    roots |= set(Path(python).parent.parent.glob("lib/python3*/site-packages"))
    packaged = {folder for root in roots for folder in root.glob("nvidia/*/lib") if any(folder.glob("lib*.so*"))}
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    installed = [folder for name in ("lib64", "lib") if any((folder := Path(toolkit) / name).glob("libcudart.so*"))]
    return [*installed, *sorted(packaged)]
