"""A real run of all suites: tiny and eight quantizations of it, on little text, so that it takes a minute or two."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["TYPES", "WholeRun", "measure"]

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")

_PROMPTS = """
[[prompt]]
id = "help"
text = "The file object supports the following methods for reading and writing: read(), write() and"

[[prompt]]
id = "error"
text = "If the argument is not a string or a number, a TypeError is raised. Otherwise the"
"""
_LITTLE = (
    "--gguf-ctx=128", "--gguf-chunks=4", "--gguf-gen-tokens=12", "--gguf-head-windows=2", "--gguf-head-limit=8",
    "--gguf-sensitivity=1", "--gguf-pp=16", "--gguf-tg=8", "--gguf-repetitions=2", "--gguf-depths=16",
)  # fmt: skip


@dataclass(frozen=True)
class WholeRun:
    """A run that was measured.

    Attributes:
        folder: with run.json, arrays and report.html.
    """

    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @cached_property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return content


def measure(folder: Path) -> WholeRun:
    """Run every suite as a person does.

    Args:
        folder: empty; results go there.
    """
    prompts = folder / "prompts.toml"
    prompts.write_text(_PROMPTS, encoding="utf-8")
    command = [
        *(sys.executable, "-m", "gguf_harness.cli", "run", "all", "--models=tiny", f"--gguf-quants={','.join(TYPES)}"),
        *(*_LITTLE, f"--gguf-prompts={prompts}", "-p", "no:cacheprovider", "-q"),
        # Starting a server, or timing a file, takes longer than all else of a model: one or two show their charts.
        *("-k", "(not served and not test_speed) or Q8_0 or (test_speed and Q2_K)"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    # Coarse types fail their gates, which is a finding; whatever else ends it is not.
    assert done.returncode in {0, 1}, done.stdout[-4000:] + done.stderr[-4000:]
    (run,) = (folder / "results" / "runs").iterdir()
    return WholeRun(run)
