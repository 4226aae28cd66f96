"""Rounds of benchmarks against measure_speed, and what a call of a worker takes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.engine.settings import SessionSettings
from harness.engine.worker import Worker
from harness.measure.rounds import clear_round, generation_round, load_round, prompt_round, unload_round
from harness.measure.speed import SpeedRequest, bench_settings, measure_speed
from harness.options import default_threads
from harness.runner.rounds import call_overhead
from harness.sources import TINY_FILE

pytestmark = pytest.mark.model

PP, TG, REPETITIONS, TURNS = 256, 64, 3, 20


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker("tiny", tmp_path / "log") as worker:
        yield worker


def _best(prepare: Callable[[], None], run: Callable[[], None]) -> float:
    times = []
    for _ in range(REPETITIONS):
        prepare()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def test_rounds_agree_with_measure_speed(worker: Worker) -> None:
    """The best of each, taken in turns: other work on the machine makes single ones slower, never faster.

    The bests only come closer to what the machine can do: a round that takes half as long again never agrees.
    """
    files, settings = (TINY_FILE,), SessionSettings(n_ctx=512, n_batch=512, threads=default_threads())
    bench = bench_settings(settings, max(PP, TG))

    def clear() -> None:
        worker.call(clear_round, None, files, bench)

    def unload() -> None:
        worker.call(unload_round, None)

    def prompt() -> None:
        worker.call(prompt_round, None, files, bench, PP)

    def generation() -> None:
        worker.call(generation_round, None, files, bench, TG)

    def load() -> None:
        worker.call(load_round, None, files, bench)

    best = {"pp": [1e9, 1e9], "tg": [1e9, 1e9], "load": [1e9, 1e9]}
    ratios: dict[str, float] = {}
    for _ in range(TURNS):
        unload()
        result = worker.call(measure_speed, None, SpeedRequest(files, settings, PP, TG, REPETITIONS))
        times = {
            "pp": (PP / max(result.pp_tokens_per_s), _best(clear, prompt)),
            "tg": (TG / max(result.tg_tokens_per_s), _best(clear, generation)),
            "load": (min(result.load_s), _best(unload, load)),
        }
        for name, pair in times.items():
            best[name] = [min(old, new) for old, new in zip(best[name], pair, strict=True)]
        ratios = {name: ours / theirs for name, (theirs, ours) in best.items()}
        if all(1 / 1.5 < ratio < 1.5 for ratio in ratios.values()):
            return
    pytest.fail(f"seconds of measure_speed and of rounds: {best}, ratios {ratios}")


def test_a_call_takes_next_to_nothing(worker: Worker) -> None:
    """Once per round: tens of microseconds, with room for a busy machine."""
    assert min(call_overhead(worker) for _ in range(5)) < 0.0005
