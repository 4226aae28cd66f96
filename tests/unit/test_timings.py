"""Timings: what counts as disturbed, means, and ratios to the reference. The uses are recorded ones."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gguf_harness.errors import NoData
from gguf_harness.measure.speed.machine_use import Watch
from gguf_harness.measure.speed.side_by_side import (
    SpeedResult,
    repeat_undisturbed,
)
from gguf_harness.measure.speed.tasks import Memory
from gguf_harness.metrics.timings import (
    Repetition,
    Timing,
    Use,
    describe_disturbance,
    streams_disagree,
    summarize_repetitions,
)
from tests.busy import busy_core

# Repetitions of tiny: one thread with a core of its own; two threads on two cores, beside two processes that are busy.
QUIET = Use(0.2046, 1, 1, own_s=0.2038, others_s=0.0, uncertain_s=0.01, waited_s=0.0007, load=2.3, computes=True)
BUSY = Use(0.2135, 2, 2, own_s=0.1738, others_s=0.2462, uncertain_s=0.02, waited_s=0.2512, load=2.3, computes=True)
SLEEPS = Use(0.3, 1, 2, own_s=0.001, others_s=0.01, uncertain_s=0.02, waited_s=0.0)

UNDISTURBED = {
    "ticks of nobody": replace(QUIET, others_s=0.0199),
    "more threads than cores wait for each other": replace(QUIET, threads=4, waited_s=0.4),
    "many others on many spare cores": Use(1.0, 4, 64, 4.0, 5.0),
    "a system that tells nothing": replace(QUIET, others_s=None, waited_s=None),
    "a quota that hardly stops": replace(QUIET, throttled_s=0.005),
    "a load that waits for the disk": SLEEPS,
}

DISTURBED = {
    "two busy processes": (BUSY, "other processes took 1.2 of 2 cores during 1 of 2 repetitions"),
    "on one core": (
        Use(0.2, 1, 1, 0.1, 0.1, uncertain_s=0.01),
        "other processes took 0.5 of 1 core during 1 of 2 repetitions",
    ),
    "one of many cores": (Use(1.0, 32, 32, 31.0, 0.4), "other processes took 0.4 of 32 cores"),
    "spare cores are shared caches": (Use(1.0, 2, 4, 2.0, 2.0), "other processes took 2 of 4 cores"),
    "the host": (
        replace(BUSY, stolen_s=0.2),
        "the host of this virtual machine took 1.2 of 2 cores during 1 of 2 repetitions",
    ),
    "held off where ticks tell nothing": (
        replace(BUSY, others_s=None),
        "our threads waited 1.2 s in each second for one of 2 cores during 1 of 2 repetitions",
    ),
    "a quota": (
        replace(QUIET, throttled_s=0.1023),
        "the CPU quota stopped us for 50 % of the time (try fewer --gguf-threads) during 1 of 2 repetitions",
    ),
    "a stop": (
        replace(SLEEPS, computes=True),
        "the process stood still for 100 % of the time, stopped or without memory, during 1 of 2 repetitions",
    ),
    "a guest on the GPU": (
        replace(QUIET, gpu="another process had GPU 0"),
        "another process had GPU 0 during 1 of 2 repetitions",
    ),
}


@pytest.mark.parametrize("use", UNDISTURBED.values(), ids=UNDISTURBED)
def test_what_is_no_disturbance(use: Use) -> None:
    assert not use.is_disturbed
    assert describe_disturbance([use, QUIET]) is None


@pytest.mark.parametrize(("use", "words"), DISTURBED.values(), ids=DISTURBED)
def test_what_is_a_disturbance_and_how_it_is_told(use: Use, words: str) -> None:
    assert use.is_disturbed
    assert words in str(describe_disturbance([QUIET, use]))


def _taken(*values: float, use: Use = QUIET) -> tuple[Repetition, ...]:
    return tuple(Repetition(value, use) for value in values)


def test_a_ratio_is_that_of_pairs() -> None:
    """The machine became three times as fast on the way: pairs do not notice."""
    timing = Timing(3, _taken(11, 24, 34), _taken(10, 20, 30), _taken(30))
    ratio = timing.ratio("tg_speed_ratio")
    assert ratio is not None
    logs = np.log([1.1, 1.2, 34 / 30])
    assert ratio.value == pytest.approx(math.exp(logs.mean()))
    drift = math.log(3) / math.sqrt(12)
    assert ratio.se == pytest.approx(ratio.value * math.hypot(logs.std(ddof=1) / math.sqrt(3), drift))
    assert (ratio.n, ratio.clusters, ratio.doubt) == (3, 3, None)


def test_disturbed_pairs_are_left_out() -> None:
    ours, theirs = _taken(11, 22, 33, 44), _taken(10, 20, 30, 40)
    slowed = (ours[0], Repetition(1, BUSY), *ours[2:])
    ratio = Timing(3, slowed, theirs, _taken(40)).ratio("tg_speed_ratio")
    assert ratio is not None
    assert ratio.value == pytest.approx(1.1)
    assert Timing(3, slowed, theirs, _taken(40)).estimate("tg_tokens_per_s").value == pytest.approx(88 / 3)


@pytest.mark.parametrize("in_turns", [True, False])
@pytest.mark.parametrize("side", ["ours", "theirs", "again"])
def test_too_few_undisturbed_ones_make_no_ratio(side: str, in_turns: bool) -> None:
    sides = {"ours": _taken(11, 22, 33), "theirs": _taken(10, 20, 30), "again": _taken(30)}
    undisturbed = Timing(3, sides["ours"], sides["theirs"], sides["again"], in_turns)
    assert undisturbed.ratio("tg_speed_ratio") is not None
    first, *others = sides[side]
    sides[side] = (Repetition(first.value, BUSY), *others)
    timing = Timing(3, sides["ours"], sides["theirs"], sides["again"], in_turns)
    assert timing.ratio("tg_speed_ratio") is None
    assert timing.ratio_doubt == "other processes took 1.2 of 2 cores during 1 of 7 repetitions"
    estimate = timing.estimate("tg_tokens_per_s")
    # What is by itself is still a number; only what it was disturbed in is in doubt.
    assert estimate.value == pytest.approx(22)
    assert bool(estimate.doubt) == (side == "ours")
    assert bool(timing.reference_estimate("tg_tokens_per_s").doubt) == (side == "theirs")


def test_one_repetition_makes_no_ratio() -> None:
    timing = Timing(1, _taken(11), _taken(10), _taken(10))
    assert timing.ratio("tg_speed_ratio") is None
    assert "timed once" in str(timing.doubt)
    assert "timed once" in str(timing.estimate("tg_tokens_per_s").doubt)
    assert Timing(2, _taken(11, 12)).doubt is None
    assert Timing(2, _taken(11, 12)).ratio_doubt == "it was not compared"


def test_drift_of_the_reference_widens_the_error() -> None:
    for in_turns in (True, False):
        still = Timing(3, _taken(11, 11.1, 11.2), _taken(10, 10.1, 10), _taken(10, 10.1, 10), in_turns)
        drifted = replace(still, again=_taken(8, 8.1, 8))
        ratios = [timing.ratio("tg_speed_ratio") for timing in (still, drifted)]
        errors = [ratio.se for ratio in ratios if ratio is not None and ratio.se is not None]
        assert len(errors) == 2
        assert errors[1] > 1.5 * errors[0]


@pytest.mark.parametrize("drift", [0.0, 0.03])
@pytest.mark.parametrize("in_turns", [True, False])
def test_intervals_cover_the_true_ratio(in_turns: bool, drift: float) -> None:
    """Of 2,000 made timings with noise of 2 % and a machine that drifts by as much as 3 % from one to the next."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        order = ["theirs", "ours", "ours", "theirs", "theirs", "ours", "again"]
        if not in_turns:
            order = ["theirs"] * 3 + ["ours"] * 3 + ["again"] * 3
        sides: dict[str, list[Repetition]] = {"ours": [], "theirs": [], "again": []}
        slope = rng.uniform(-drift, drift)
        for step, side in enumerate(order):
            value = 100 * math.exp(slope * step + rng.normal(0, 0.02)) * (1.2 if side == "ours" else 1)
            sides[side].append(Repetition(value, QUIET))
        ours, theirs, again = (tuple(sides[side]) for side in ("ours", "theirs", "again"))
        ratio = Timing(3, ours, theirs, again, in_turns).ratio("load_ratio")
        assert ratio is not None
        assert ratio.se is not None
        margin = float(stats.t.ppf(0.975, 2)) * ratio.se / ratio.value
        covered += abs(math.log(ratio.value / 1.2)) < margin
    assert covered / 2000 > 0.93


@pytest.mark.parametrize(
    ("bench", "served", "disagree"),
    [
        (1855.8, 427.5, False),  # tiny F16 and llama_cpp.server, one thread
        (63.4, 44.9, False),  # SmolLM2 Q4_K_M
        (60, 80, False),
        (4000, 900, False),
        (5, 60, True),  # the machine was busy when generation was timed by itself
        (60, 5, True),  # or when it was served
    ],
)
def test_two_ways_to_the_same_speed(bench: float, served: float, disagree: bool) -> None:
    assert streams_disagree(bench, served) is disagree


def test_repetitions_are_taken_again_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("gguf_harness.measure.speed.side_by_side.time.sleep", pauses.append)

    def takes(*outcomes: bool) -> tuple[bool, int]:
        taken: list[int] = []

        def take(turn: int) -> bool:
            taken.append(turn)
            return outcomes[turn]

        return repeat_undisturbed(3, take), len(taken)

    assert takes(True, True, True) == (True, 3)
    assert not pauses
    assert takes(True, False, True, True) == (True, 4)
    assert pauses == [0.25]
    assert takes(False, False, False, True, True, True) == (True, 6)
    assert takes(False, False, False, False) == (False, 4)  # three of the last two are out of reach


def test_results_are_the_same_after_json() -> None:
    timing = Timing(2, _taken(1, 2), _taken(3, 4), _taken(5), in_turns=False)
    result = SpeedResult({"tg": timing}, Memory(1, None, 2, 3, None), "2026-11-27 00:36:14 UTC")
    assert SpeedResult.from_json(result.to_json()) == result
    assert not result.is_disturbed
    assert replace(result, timings={"tg": replace(timing, ours=_taken(1, 2, use=BUSY))}).is_disturbed
    # One that was disturbed and taken again is no reason to measure anew.
    again = replace(timing, ours=(*_taken(1, use=BUSY), *_taken(1, 2)))
    assert not replace(result, timings={"tg": again}).is_disturbed


def test_a_mean_of_nothing() -> None:
    with pytest.raises(NoData, match="no repetitions"):
        summarize_repetitions("tg_tokens_per_s", [])


def test_a_process_that_stands_still_is_seen() -> None:
    watch = Watch(1, computes=True)
    time.sleep(0.3)
    use = watch.stop()
    assert use.is_stalled
    assert use.wall_s >= 0.3
    assert use.own_s < 0.15
    assert 1 <= use.cores <= (os.cpu_count() or 1)


@pytest.mark.exclusive
@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="only Linux tells who waits")
def test_others_and_our_own_are_told_apart() -> None:
    """One other process on our only core, while we compute: each of us is known by its share."""
    with busy_core():
        watch = Watch(1, computes=True)
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            pass
        use = watch.stop()
    assert use.cores == 1
    assert use.is_crowded
    assert use.is_held_off
    assert use.others_s is not None
    assert use.waited_s is not None
    # What is no own time is that of others, and the time that we waited for.
    assert use.own_s + use.others_s == pytest.approx(use.wall_s, abs=0.1)
    assert use.own_s + use.waited_s == pytest.approx(use.wall_s, abs=0.1)
