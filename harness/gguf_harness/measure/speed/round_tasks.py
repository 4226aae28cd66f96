"""Worker tasks for timed rounds: the caller of the worker times each task as a whole.

The steps of `measure_speed` as separate tasks that pytest-benchmark can repeat. The model stays loaded between them;
work that must not be timed (clearing the context, freeing a model) is a separate task. Tokens are the same in every
round.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_harness.measure.speed.tasks import decode_prompt, decode_singly

if TYPE_CHECKING:
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["clear_round", "empty_round", "generation_round", "load_round", "prompt_round", "unload_round"]


def clear_round(worker: WorkerContext, files: Sequence[Path], settings: SessionSettings) -> None:
    """Load the model if it is not loaded yet, and clear the context."""
    worker.context(files, settings).clear()


def prompt_round(worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, tokens: int) -> None:
    """llama-bench's pp, after `clear_round`."""
    decode_prompt(worker.context(files, settings), tokens, random.Random(0))  # noqa: S311 - not used for security


def generation_round(worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, tokens: int) -> None:
    """llama-bench's tg, after `clear_round`."""
    decode_singly(worker.context(files, settings), tokens, random.Random(0))  # noqa: S311 - not used for security


def unload_round(worker: WorkerContext) -> None:
    """Free the loaded model, if any."""
    worker.close()


def load_round(worker: WorkerContext, files: Sequence[Path], settings: SessionSettings) -> None:
    """Load the model and create a context, after `unload_round`."""
    worker.context(files, settings)


def empty_round(_worker: WorkerContext) -> None:
    """Do nothing, to time the overhead of a worker call."""
