"""Benchmarks: ratios of paired timings, for a quiet machine. Not collected as tests."""

import os
from pathlib import Path

# Workers run tasks that are defined here, and import nothing from the current folder.
_ROOT = str(Path(__file__).parent.parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
