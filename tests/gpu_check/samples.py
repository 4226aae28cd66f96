"""Steps that behave badly, or well: for tests of how steps are run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu_check.environment import Setup
from tests.gpu_check.verdicts import Outcome

__all__ = ["crash", "leave_a_child", "passes", "raises", "refuses", "sleep", "tell_found"]


def passes(setup: Setup) -> Outcome:
    """Pass, with a number."""
    return Outcome("pass", "fine", {"gpu": setup.gpu, "python": sys.executable})


def tell_found(setup: Setup) -> Outcome:
    """Tell what the steps before have found."""
    return Outcome("pass", "told", {"found": setup.found, "executable": sys.executable})


def sleep(setup: Setup) -> Outcome:
    """Hang, whatever is asked politely."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("about to sleep", flush=True)
    time.sleep(600)
    return passes(setup)


def leave_a_child(setup: Setup) -> Outcome:
    """End, and leave a process that would hold the GPU."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(setup.folder) / "child.pid").write_text(str(child.pid), encoding="ascii")
    return passes(setup)


def crash(setup: Setup) -> Outcome:
    """End as llama.cpp does where it meets what it does not expect."""
    print("GGML_ASSERT(a == b) failed", flush=True)
    os.abort()


def raises(setup: Setup) -> Outcome:
    """Fail with an exception of two lines."""
    raise RuntimeError("no kernel image\nis available")


def refuses(setup: Setup) -> Outcome:
    """Have nothing to look at."""
    return Outcome("not run", "cuML is not installed", absent=True)
