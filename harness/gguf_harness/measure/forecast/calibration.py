"""What a token costs: a file decodes some tokens on this machine, with the session's settings.

Tokens are decoded as passes do it: by several contexts at once, which share the threads. Lengths double until one takes
long enough beside what is to be forecast: about a second in all for small models.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.measure.forecast.scales import Costs
from gguf_harness.measure.measurement import Job, Measurement, as_json
from gguf_harness.metrics.divergence import DivergenceKernel

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core

__all__ = ["calibration_job", "measure_costs"]

_FIRST, _MOST = 4, 512
"""Tokens of each context: of the first try, and at most."""
_LEAST_S, _MOST_S = 0.15, 5.0
_SHARE: Final = 0.003
"""Of what is to be forecast, that one decode takes: all of them together take less than 3 %."""
_ROWS: Final = 32
_STEPS: Final = 8
_WEIGHTS: Final = 1 << 20
_TRIES: Final = 5


def measure_costs(
    worker: WorkerContext, files: Sequence[Path], settings: SessionSettings, output: float, enough_s: float
) -> dict[str, float]:
    """Seconds of a token, a row of logits, a token decoded alone, a weight, and a comparison; see `Costs`.

    Args:
        worker: that the task runs in.
        files: of the model.
        settings: of the session.
        output: weights that a row of logits is multiplied with, over all others. Its time follows from this: that of a
            batch with logits less that of one without is mostly noise.
        enough_s: seconds that one decode takes, if the context is long enough.
    """
    from gguf_harness.engine.context import Context

    model = worker.model(files, settings.n_gpu_layers)
    count = count_lanes(settings)
    most = min(_MOST, settings.n_ctx)
    lane = replace(settings, n_ctx=most, n_batch=most, threads=max(1, settings.threads // count))
    vocabulary = model.vocabulary.n_tokens
    tokens = np.random.default_rng(0).integers(vocabulary, size=most).astype(np.int32)
    if model.vocabulary.add_bos:
        tokens[0] = model.vocabulary.bos
    with Lanes(count, lambda: Context(model, lane)) as lanes:

        def timed(length: int) -> float:
            """Seconds in which each context decodes a text."""
            start = time.perf_counter()
            for _ in lanes.map(lambda context, _: context.prefill(tokens[:length]), range(count)):
                pass
            return time.perf_counter() - start

        length = min(_FIRST, most)
        timed(length)
        took = timed(length)
        while took < enough_s and 2 * length <= most:
            length *= 2
            took = timed(length)
        # Others may have used the machine meanwhile.
        took = min(took, timed(length), timed(length))
        compared = min(_time_rows(lanes, count) for _ in range(2))
        start = time.perf_counter()
        steps = sum(lanes.map(lambda context, _: _step(context, tokens[:_STEPS]), range(count)))
        alone = time.perf_counter() - start
    return {
        "token": took / (count * length),
        "row": output * took / (count * length) + compared,
        "step": alone / steps,
        "weight": _time_weights(),
        "compare": compared,
    }


def _time_rows(lanes: Lanes[Context], count: int) -> float:
    """Seconds in which a row of logits is compared with another, as passes do it; all contexts at once."""

    def compare(context: Context, _: int) -> None:
        row = context.output_logits(1)[0]
        kernel, base = DivergenceKernel(len(row)), row - row.max()
        for _ in range(_ROWS):
            kernel(base, row)

    start = time.perf_counter()
    for _ in lanes.map(compare, range(count)):
        pass
    return (time.perf_counter() - start) / (count * _ROWS)


def _step(context: Context, tokens: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    """Decode tokens one by one; how many."""
    context.clear()
    zero, one = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.bool_)
    for position, token in enumerate(tokens):
        context.decode(np.array([token]), zero + position, zero, one)
        context.output_logits(1)[0].argmax()
    return len(tokens)


def _time_weights() -> float:
    """Seconds in which NumPy converts and scales a weight; the least of some, since others may use the machine."""
    halves = np.ones(_WEIGHTS, dtype=np.float16)
    took = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        (halves.astype(np.float32) * np.float32(0.5)).sum()
        took.append(time.perf_counter() - start)
    return min(took) / _WEIGHTS


_COSTS: Final = Measurement(
    "forecast/costs", 2, measure_costs, "tokens",
    as_json(lambda costs: costs, lambda stored: {name: float(stored[name]) for name in Costs.__dataclass_fields__}),
    counted=False,
)  # fmt: skip


def calibration_job(core: Core, subject: Subject, all_s: float) -> Job[dict[str, float]]:
    """The costs of a subject's file on this machine, measured once.

    Args:
        core: that will measure it.
        subject: the file, and how it is run.
        all_s: seconds of what is to be forecast, by a guess.
    """
    info, enough_s = subject.info, min(_MOST_S, max(_LEAST_S, _SHARE * all_s))
    matrix = (info.n_vocab or 0) * (info.n_embd or 0)
    # As much as all others, for a file whose header says what cannot be.
    output = min(1.0, matrix / max(1, info.parameters - matrix))
    return Job(
        _COSTS,
        f"timing {subject.name}",
        core.key(subject) | {"machine": core.machine_key},
        lambda _: (subject.files, subject.settings, output, enough_s),
        subjects=(subject,),
    )
