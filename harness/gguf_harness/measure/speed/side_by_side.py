"""Speed of a model compared with its reference. Runs in the session's process, with a worker for each.

Both models stay loaded and are timed in turns, reference first, then candidate first (ABBA), so that slow changes of
the machine affect both equally; the reference once more at the end. Where memory does not hold both, the reference is
timed before and after.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from gguf_harness.measure.speed.tasks import (
    Memory,
    SpeedTest,
    bench_settings,
    read_memory,
    start_bench,
    timed_decode,
    timed_load,
)
from gguf_harness.metrics.timings import Repetition, Timing, Use

if TYPE_CHECKING:
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.engine.worker import ProgressCallback, Worker

__all__ = [
    "DepthSpeed",
    "SpeedRequest",
    "SpeedResult",
    "Timed",
    "depth_test",
    "measure_depths",
    "measure_speed",
    "now",
    "repeat_undisturbed",
    "timing_from_json",
]

_Tests = Mapping[str, tuple[SpeedTest, int]]
"""By name: what is timed, after how many tokens."""
_TESTS: Final[_Tests] = {"load": ("load", 0), "pp": ("pp", 0), "tg": ("tg", 0)}
_SLOW_LOAD_S: Final = 3.0
_SLOW_LOADS: Final = 2
"""Number of timed loads if one takes longer than 3 s: the fewest with a standard error."""
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.25, 2.0
"""Pause before a disturbed repetition is repeated; doubled each time, to outlast short disturbances."""


@dataclass(frozen=True, slots=True)
class SpeedRequest:
    """What to time.

    Attributes:
        settings: threads, batches, attention and cache types; the context is sized by the test as llama-bench does.
        n_prompt: tokens of the prompt-processing test.
        n_gen: tokens of the generation test.
        repetitions: number of undisturbed repetitions wanted for each test; up to twice as many are run.
        depths: tokens in the cache before those of a test, for `measure_depths`.
    """

    settings: SessionSettings
    n_prompt: int
    n_gen: int
    repetitions: int
    depths: tuple[int, ...] = ()

    @property
    def bench(self) -> SessionSettings:
        """Settings of the sessions."""
        return bench_settings(self.settings, max(self.n_prompt, self.n_gen) + max(self.depths, default=0))


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """Timings and memory of a model.

    Attributes:
        timings: of "load" (seconds), "pp" and "tg" (tokens per second).
        memory: memory that it takes.
        measured: when, in UTC to the second.
    """

    timings: dict[str, Timing]
    memory: Memory
    measured: str

    @property
    def is_disturbed(self) -> bool:
        """Whether measuring again might fill in missing results."""
        return _is_disturbed(self.timings)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        timings = {test: timing_from_json(timing) for test, timing in value["timings"].items()}
        return cls(timings, Memory(**value["memory"]), value["measured"])


@dataclass(frozen=True, slots=True)
class DepthSpeed:
    """Timings of a model by depth.

    Attributes:
        timings: of "pp@256" and others, in tokens per second; see `depth_test`.
        measured: when, in UTC to the second.
    """

    timings: dict[str, Timing]
    measured: str

    @property
    def is_disturbed(self) -> bool:
        """Whether measuring again might fill in missing results."""
        return _is_disturbed(self.timings)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls({test: timing_from_json(timing) for test, timing in value["timings"].items()}, value["measured"])


def _is_disturbed(timings: Mapping[str, Timing]) -> bool:
    """Whether a timing or a ratio that is in doubt was disturbed."""
    return any(
        use.is_disturbed
        for timing in timings.values()
        if timing.doubt or (timing.theirs and timing.ratio_doubt)
        for use in timing.uses
    )


def timing_from_json(value: dict[str, Any]) -> Timing:
    """A timing from JSON types."""
    repetitions = {
        name: tuple(Repetition(part["value"], Use(**part["use"])) for part in value[name])
        for name in ("ours", "theirs", "again")
    }
    return Timing(wanted=value["wanted"], in_turns=value["in_turns"], **repetitions)


def now() -> str:
    """The current time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(frozen=True, slots=True)
class Timed:
    """A model to time: its files, how to start a worker for it, and how it is run, if not as the request says."""

    files: tuple[Path, ...]
    open_worker: Callable[[], contextlib.AbstractContextManager[Worker]]
    settings: SessionSettings | None = None


def measure_speed(
    ours: Timed, theirs: Timed | None, request: SpeedRequest, progress: ProgressCallback, *, in_turns: bool = True
) -> SpeedResult:
    """Time loading, prompt processing and generation of a model, and read its memory use.

    Args:
        ours: the model.
        theirs: its reference; None to time a model alone.
        request: what to time.
        progress: called with repetitions (done, total).
        in_turns: whether both may be loaded at once; otherwise the reference is timed before and after.
    """
    timings, memory = _measure(ours, theirs, request, progress, _TESTS, in_turns=in_turns)
    return SpeedResult(timings, memory, now())


def measure_depths(
    ours: Timed, theirs: Timed | None, request: SpeedRequest, progress: ProgressCallback, *, in_turns: bool = True
) -> DepthSpeed:
    """Time prompt processing and generation of a model after each of the request's depths; as `measure_speed`."""
    kinds: tuple[SpeedTest, ...] = ("pp", "tg")
    tests = {depth_test(kind, depth): (kind, depth) for kind in kinds for depth in request.depths}
    timings, _ = _measure(ours, theirs, request, progress, tests, in_turns=in_turns)
    return DepthSpeed(timings, now())


def depth_test(kind: SpeedTest, depth: int) -> str:
    """`pp@256`: the name of a test after so many tokens."""
    return f"{kind}@{depth}"


def _measure(
    ours: Timed,
    theirs: Timed | None,
    request: SpeedRequest,
    progress: ProgressCallback,
    tests: _Tests,
    *,
    in_turns: bool,
) -> tuple[dict[str, Timing], Memory]:
    """Timings of a model, beside its reference if there is one, and its memory after them."""
    count = 1 if theirs is None else 2 if in_turns else 3
    steps = _Steps(progress, count * len(tests) * request.repetitions)
    if theirs is None or in_turns:
        with _opened(ours, request, steps) as bench, contextlib.ExitStack() as stack:
            other = stack.enter_context(_opened(theirs, request, steps)) if theirs is not None else None
            timings = {name: _in_turns(bench, other, *test, request.repetitions) for name, test in tests.items()}
            return timings, bench.memory()
    before = _timed_alone(theirs, request, steps, tests)
    with _opened(ours, request, steps) as bench:
        mine = {name: _in_turns(bench, None, *test, request.repetitions) for name, test in tests.items()}
        memory = bench.memory()
    after = _timed_alone(theirs, request, steps, tests)
    compared = {
        name: Timing(min(alone.wanted, before[name].wanted), alone.ours, before[name].ours, after[name].ours, False)
        for name, alone in mine.items()
    }
    return compared, memory


def repeat_undisturbed(wanted: int, take: Callable[[int], bool]) -> bool:
    """Repeat until enough repetitions are undisturbed, at most twice that number; returns whether there are enough.

    Args:
        wanted: undisturbed repetitions.
        take: called with the number of the repetition; returns whether it was undisturbed.
    """
    undisturbed, pause = 0, _LEAST_PAUSE_S
    for turn in range(2 * wanted):
        if turn >= wanted:
            time.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE_S)
        undisturbed += take(turn)
        if undisturbed == wanted or wanted - undisturbed > 2 * wanted - turn - 1:  # done, or out of reach
            break
    return undisturbed == wanted


class _Steps:
    """Counts repetitions for the progress bar."""

    def __init__(self, progress: ProgressCallback, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        progress(0, total)

    def step(self) -> None:
        self._done = min(self._done + 1, self._total)
        self._progress(self._done, self._total)


class _Bench:
    """A loaded model in its worker."""

    def __init__(self, worker: Worker, files: tuple[Path, ...], request: SpeedRequest, steps: _Steps) -> None:
        self._worker, self._files, self._request, self._steps = worker, files, request, steps
        self._before, first_load_s = worker.call(start_bench, None, files, request.bench)
        self.loads = _SLOW_LOADS if first_load_s > _SLOW_LOAD_S else request.repetitions

    def repeat(self, test: SpeedTest, depth: int) -> Repetition:
        files, settings = self._files, self._request.bench
        if test == "load":
            repetition = self._worker.call(timed_load, None, files, settings)
        else:
            tokens = self._request.n_prompt if test == "pp" else self._request.n_gen
            repetition = self._worker.call(timed_decode, None, files, settings, test, tokens, depth)
        self._steps.step()
        return repetition

    def memory(self) -> Memory:
        return self._worker.call(read_memory, None, self._files, self._request.bench, self._before)


@contextlib.contextmanager
def _opened(timed: Timed, request: SpeedRequest, steps: _Steps) -> Iterator[_Bench]:
    with timed.open_worker() as worker:
        yield _Bench(worker, timed.files, replace(request, settings=timed.settings or request.settings), steps)


def _timed_alone(timed: Timed, request: SpeedRequest, steps: _Steps, tests: _Tests) -> dict[str, Timing]:
    with _opened(timed, request, steps) as bench:
        return {name: _in_turns(bench, None, *test, request.repetitions) for name, test in tests.items()}


def _in_turns(ours: _Bench, theirs: _Bench | None, test: SpeedTest, depth: int, wanted: int) -> Timing:
    """Repetitions until enough of them, or pairs, are undisturbed; at most twice as many as are wanted."""
    if test == "load":
        wanted = min(wanted, *(bench.loads for bench in (ours, theirs) if bench is not None))
    benches = [ours] if theirs is None else [theirs, ours]
    taken: dict[int, list[Repetition]] = {id(bench): [] for bench in benches}

    def take(turn: int) -> bool:
        for bench in benches if turn % 2 == 0 else benches[::-1]:
            taken[id(bench)].append(bench.repeat(test, depth))
        return not any(some[-1].use.is_disturbed for some in taken.values())

    is_complete = repeat_undisturbed(wanted, take)
    if theirs is None:
        return Timing(wanted, tuple(taken[id(ours)]))
    again = [theirs.repeat(test, depth)]
    if again[0].use.is_disturbed and is_complete:
        again.append(theirs.repeat(test, depth))
    return Timing(wanted, tuple(taken[id(ours)]), tuple(taken[id(theirs)]), tuple(again))
