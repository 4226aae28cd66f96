"""For the tests and the benchmark of passes side by side: decodes alone, and the peak memory of both workers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.engine.context import Context
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.measure.passes import side_by_side
from gguf_harness.measure.passes.decoding import in_one_context
from gguf_harness.measure.passes.side_by_side import compare_side_by_side
from gguf_harness.measure.passes.tasks import PassRequest, cut_windows
from gguf_harness.measure.speed.tasks import peak_resident
from gguf_harness.store.arrays import Arrays, load_arrays, save_arrays

__all__ = ["Peak", "decode_alone", "follow_and_note", "lead_and_note", "measured_peaks"]

_LEAD, _FOLLOW = side_by_side.lead, side_by_side.follow


def decode_alone(worker: WorkerContext, request: PassRequest) -> int:
    """Decode all windows; the number of rows of logits."""
    model = worker.model(request.files, request.settings.n_gpu_layers)
    windows = cut_windows(model.tokenize(request.corpus.text), request)["tokens"].astype(np.int32)
    with Context(model, in_one_context(request.settings)) as context:
        return sum(len(block.targets) for block in context.score(windows))


@dataclass(frozen=True)
class Peak:
    """Bytes of a worker.

    Attributes:
        resident: the most that it had in memory, shared memory included.
        cache: of the KV cache.
        compute: of llama.cpp's buffers for computing, which have the attention's mask in them.
    """

    resident: int
    cache: int
    compute: int


def _note(file: Path) -> None:
    """When a context is closed, write down what it took, and what the process has taken so far."""
    close = Context.close

    def noting(self: Context) -> None:
        if self.pointer is not None:
            memory = self.memory
            taken = {"cache": memory.kv_cache, "compute": memory.compute, "resident": peak_resident()}
            save_arrays(file, {name: np.array([value or 0]) for name, value in taken.items()})
        close(self)

    Context.close = noting  # type: ignore[method-assign]


def _lead(worker: WorkerContext, request: PassRequest, *rest: Any) -> Arrays:
    _note(request.folder / "lead.npz")
    return _LEAD(worker, request, *rest)


def _follow(worker: WorkerContext, request: PassRequest, *rest: Any) -> None:
    _note(request.folder / "follow.npz")
    _FOLLOW(worker, request, *rest)


def _note_decodes(file: Path) -> None:
    """Write down start and end of each decode of this process, on the clock that all processes share."""
    decode, times = Context.decode, list[float]()

    def noting(self: Context, *args: Any) -> None:
        times.append(time.monotonic())
        decode(self, *args)
        times.append(time.monotonic())
        save_arrays(file, {"times": np.array(times)})

    Context.decode = noting  # type: ignore[assignment,method-assign]


def lead_and_note(worker: WorkerContext, request: PassRequest, *rest: Any) -> Arrays:
    """`lead`, which leaves the times of its decodes in the folder of its pass."""
    _note_decodes(request.folder / "decodes.npz")
    return _LEAD(worker, request, *rest)


def follow_and_note(worker: WorkerContext, request: PassRequest, *rest: Any) -> None:
    """`follow`, likewise."""
    _note_decodes(request.folder / "decodes.npz")
    _FOLLOW(worker, request, *rest)


def measured_peaks(candidate: PassRequest, reference: PassRequest, log: Path) -> tuple[Peak, Peak]:
    """Those of the candidate's worker and of the reference's, in a pass of their own."""
    with pytest.MonkeyPatch.context() as patch, Worker("candidate", log) as worker:
        patch.setattr(side_by_side, "lead", _lead)
        patch.setattr(side_by_side, "follow", _follow)
        compare_side_by_side(
            lambda _done, _total: None,
            candidate,
            reference,
            lambda: Worker("reference", log),
            lambda: worker,
            (),
            1800.0,
        )
    files = (candidate.folder / "lead.npz", reference.folder / "follow.npz")
    lead, follow = ({name: int(value.item()) for name, value in load_arrays(file).items()} for file in files)
    return Peak(**lead), Peak(**follow)
