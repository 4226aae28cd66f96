"""A step, in a process of its own: `python -m tests.gpu_check.child MODULE:FUNCTION SETUP RESULT`."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from tests.gpu_check.environment import read_setup
from tests.gpu_check.verdicts import Outcome


def main(arguments: list[str]) -> None:
    """Run the step and write its outcome; an exception is a failure, whose traceback is in the log."""
    where, setup, result = arguments
    module, _, function = where.partition(":")
    try:
        outcome = getattr(importlib.import_module(module), function)(read_setup(Path(setup)))
    except Exception as error:  # whatever a step comes up with must not stop the others
        traceback.print_exc()
        said = " ".join(str(error).split())
        outcome = Outcome("fail", f"{type(error).__name__}: {said[:600]}")
    draft = Path(f"{result}.part")
    draft.write_text(json.dumps(outcome.to_json(), allow_nan=False), encoding="utf-8")
    draft.replace(result)


if __name__ == "__main__":
    main(sys.argv[1:])
