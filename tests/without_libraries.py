"""Python where some libraries are not installed: processes that a test starts, and theirs, cannot import them."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["PROJECT", "hide_modules", "modules_of_extras"]

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Python imports a module of this name when it starts.
_CUSTOMIZE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def hide_modules(monkeypatch: pytest.MonkeyPatch, folder: Path, names: Iterable[str]) -> None:
    """Hide modules, by their first names, from every Python process that is started from now on."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_CUSTOMIZE.format(names=set(names)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))


def modules_of_extras() -> set[str]:
    """First names of all installed modules that `pip install gguf-harness`, without any extra, does not bring.

    But for pytest's plugins, which pytest imports wherever they are installed.
    """
    plugins = {point.dist.name for point in metadata.entry_points(group="pytest11") if point.dist is not None}
    core = _with_dependencies([*PROJECT["dependencies"], *(plugins - {"gguf-harness"})])
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & (core | {"gguf-harness", "pip", "coverage"})
    }


def _with_dependencies(requirements: Iterable[str]) -> set[str]:
    """Names of distributions: those that are required, with their extras, and what those require."""
    names: set[str] = set()
    done: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        names.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            needed = [Requirement(text) for text in metadata.requires(name) or ()]
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return names
