"""Rounds of benchmarks against measure_speed, models side by side, and what a call of a worker takes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.options import default_threads
from gguf_harness.inputs.sources import TINY_FILE
from gguf_harness.measure.speed.round_tasks import clear_round, generation_round, load_round, prompt_round, unload_round
from gguf_harness.measure.speed.rounds import call_overhead
from gguf_harness.measure.speed.side_by_side import SpeedRequest, Timed, measure_speed

pytestmark = pytest.mark.model

PP, TG, REPETITIONS, TURNS = 256, 64, 2, 20


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


@pytest.mark.exclusive
def test_rounds_agree_with_measure_speed(worker: Worker) -> None:
    """The best of each, taken in turns: other work on the machine makes single ones slower, never faster.

    The bests only come closer to what the machine can do: a round that takes half as long again never agrees.
    """
    files, settings = (TINY_FILE,), SessionSettings(n_ctx=512, n_batch=512, threads=default_threads())
    request = SpeedRequest(settings, PP, TG, REPETITIONS)
    bench = request.bench
    subject = Timed(files, lambda: Worker("tiny", worker.log))

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
        result = measure_speed(subject, None, request, lambda *_: None)
        values = {test: [part.value for part in timing.ours] for test, timing in result.timings.items()}
        times = {
            "pp": (PP / max(values["pp"]), _best(clear, prompt)),
            "tg": (TG / max(values["tg"]), _best(clear, generation)),
            "load": (min(values["load"]), _best(unload, load)),
        }
        for name, pair in times.items():
            best[name] = [min(old, new) for old, new in zip(best[name], pair, strict=True)]
        ratios = {name: ours / theirs for name, (theirs, ours) in best.items()}
        if all(1 / 1.5 < ratio < 1.5 for ratio in ratios.values()):
            return
    pytest.fail(f"seconds of measure_speed and of rounds: {best}, ratios {ratios}")


@pytest.mark.parametrize("in_turns", [True, False])
def test_a_model_beside_its_reference(tmp_path: Path, in_turns: bool) -> None:
    """Both workers, all tests, everybody's use of the machine; nothing is said of how fast they are."""
    opened: list[str] = []

    def subject(name: str) -> Timed:
        def open_worker() -> Worker:
            opened.append(name)
            return Worker(name, tmp_path / name)

        return Timed((TINY_FILE,), open_worker)

    request = SpeedRequest(SessionSettings(n_ctx=64, n_batch=64), 16, 8, 2)
    seen: list[tuple[int, int]] = []
    result = measure_speed(
        subject("ours"), subject("theirs"), request, lambda *step: seen.append(step), in_turns=in_turns
    )
    assert opened == (["ours", "theirs"] if in_turns else ["theirs", "ours", "theirs"])
    assert set(result.timings) == {"load", "pp", "tg"}
    for timing in result.timings.values():
        assert timing.in_turns is in_turns
        assert 2 <= len(timing.ours) <= 4
        assert len(timing.theirs) == len(timing.ours) or not in_turns
        assert timing.again
        assert (timing.ratio("load_ratio") is None) == (timing.ratio_doubt is not None)
        for repetition in (*timing.ours, *timing.theirs, *timing.again):
            assert repetition.value > 0
            # Long enough to see others, and our own threads are known from theirs.
            assert repetition.use.wall_s >= 0.2
            assert 0 < repetition.use.own_s <= 1.1 * repetition.use.wall_s * repetition.use.cores
    assert result.memory.resident_bytes > 0
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]


def test_a_call_takes_next_to_nothing(worker: Worker) -> None:
    """Once per round: tens of microseconds, with room for a busy machine."""
    assert min(call_overhead(worker) for _ in range(5)) < 0.0005
