"""Tasks of the benchmarks reach a worker, which imports nothing from the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_worker_knows_tasks_of_benchmarks(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from gguf_harness.engine.worker import Worker
from gguf_harness.errors import EngineError
from tests.bench.attention_timing import peak

with Worker("bench", Path({str(tmp_path / "log")!r})) as worker:
    try:
        worker.call(peak, None)
    except EngineError as error:
        print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    # It was run, but without what it needs.
    assert "TypeError in the worker: peak() missing" in done.stdout
