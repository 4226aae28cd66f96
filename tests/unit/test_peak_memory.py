"""Peak memory is the process's own, however large the one that started it."""

from __future__ import annotations

import subprocess
import sys

CHILD = "from gguf_harness.measure.speed.tasks import peak_resident; print(peak_resident())"
PARENT = (
    "import subprocess, sys; x = bytearray(600_000_000); x[::4096] = b'1' * len(x[::4096]);"
    "sys.stdout.write(subprocess.run([sys.executable, '-c', sys.argv[1]], capture_output=True, text=True).stdout)"
)


def test_a_large_parent_does_not_count() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, check=True)
    assert 1e6 < int(done.stdout) < 300e6
