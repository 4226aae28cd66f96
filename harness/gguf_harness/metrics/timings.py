"""Speed from repeated timings: disturbed repetitions, the mean, and the ratio to the reference's.

`Use` records who used the CPU during a repetition. Candidate and reference are timed in turns, so that a ratio never
combines numbers from different times.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gguf_harness.errors import NoData
from gguf_harness.metrics.kernels.standard_errors import iid_se
from gguf_harness.metrics.records import Estimate

__all__ = ["Repetition", "Timing", "Use", "describe_disturbance", "streams_disagree", "summarize_repetitions"]

_SHARE: Final = 0.05
"""Most that others may use of each of our cores: half of the 10 % at which claims on speed start."""
_MOST_CORES: Final = 0.25
"""Most that others may use of many cores: threads synchronize after every operation, so one that waits delays all."""
_SPARE_SHARE: Final = 0.1
"""Most that others may use of cores that we leave free: they share memory and caches with us, but no CPU time."""
_THROTTLED_SHARE: Final = 0.05
_LEAST_USED: Final = 0.5
"""Least use of one core by all threads of a decode on the CPU: one of them always computes, and used 0.98 to 1.00 of a
core in undisturbed runs.
"""
_STREAM_FACTOR: Final = 1.5
_STREAM_OVERHEAD_S: Final = 0.05
"""Server time per token, for sampling over the whole vocabulary, detokenizing and sending. llama_cpp.server took 0.9 to
1.8 ms for it with tiny's vocabulary and 4.6 to 6.5 ms with 49,152 tokens (SmolLM2), on a busy core; 256,000 would take
some 35 ms."""


@dataclass(frozen=True, slots=True)
class Use:
    """Use of the CPU during a repetition.

    Attributes:
        wall_s: total duration, including untimed parts.
        threads: number of our threads.
        cores: number of cores that this process may use.
        own_s: our CPU seconds, on all cores.
        others_s: CPU seconds of all others on those cores, including the host of a virtual machine; None if unknown.
        stolen_s: the part taken by the host.
        uncertain_s: uncertainty of `others_s`, because the system counts in ticks.
        waited_s: total seconds that our threads were ready to run without a core; None if unknown, or if they wait for
            each other.
        throttled_s: seconds for which the container's CPU quota stopped us.
        load: the system's load average of the last minute.
        gpu: disturbances on the GPU, in words.
        computes: whether the CPU does all of the work, so that an idle CPU means waiting.
    """

    wall_s: float
    threads: int
    cores: int
    own_s: float
    others_s: float | None
    stolen_s: float = 0.0
    uncertain_s: float = 0.0
    waited_s: float | None = None
    throttled_s: float = 0.0
    load: float | None = None
    gpu: str | None = None
    computes: bool = False

    @property
    def is_crowded(self) -> bool:
        """Whether others used more than the allowed share of the cores."""
        spare = max(0, self.cores - self.threads)
        allowed = min(_SHARE * self.threads, _MOST_CORES) + _SPARE_SHARE * spare
        return self.others_s is not None and self.others_s - self.uncertain_s > allowed * self.wall_s

    @property
    def is_held_off(self) -> bool:
        """Whether our threads waited for a core for more than the allowed share of the time.

        If there are more threads than cores, they wait for each other: that is not a disturbance.
        """
        allowed = min(_SHARE * self.threads, _MOST_CORES)
        return self.threads <= self.cores and (self.waited_s or 0.0) > allowed * self.wall_s

    @property
    def is_stalled(self) -> bool:
        """Whether we used less than half of a core: stopped, out of memory, or delayed for an unknown reason."""
        return self.computes and self.own_s < _LEAST_USED * self.wall_s

    @property
    def is_throttled(self) -> bool:
        """Whether a CPU quota stopped us."""
        return self.throttled_s > _THROTTLED_SHARE * self.wall_s

    @property
    def is_disturbed(self) -> bool:
        """Whether the repetition was disturbed."""
        return self.is_crowded or self.is_held_off or self.is_throttled or self.is_stalled or self.gpu is not None


@dataclass(frozen=True, slots=True)
class Repetition:
    """One timed value, with the use of the machine during it."""

    value: float
    use: Use


@dataclass(frozen=True, slots=True)
class Timing:
    """Repetitions of one test, with the reference's.

    Attributes:
        wanted: number of undisturbed repetitions requested.
        ours: in order of time; more than wanted if some were disturbed.
        theirs: the reference's; one for each of ours if timed in turns, otherwise those before ours.
        again: the reference's after all of ours.
        in_turns: whether each of ours was timed next to one of theirs.
    """

    wanted: int
    ours: tuple[Repetition, ...]
    theirs: tuple[Repetition, ...] = ()
    again: tuple[Repetition, ...] = ()
    in_turns: bool = True

    @property
    def uses(self) -> list[Use]:
        """Use of the machine in each repetition of both."""
        return [repetition.use for repetition in (*self.ours, *self.theirs, *self.again)]

    @property
    def doubt(self) -> str | None:
        """Why our repetitions must not decide anything; None if they are reliable."""
        return _doubt(self.ours, self.wanted)

    @property
    def ratio_doubt(self) -> str | None:
        """Why there is no ratio to the reference; None if there is one."""
        if self.in_turns:
            enough = len(self._pairs()) >= self.wanted
        else:
            enough = all(len(_quiet(some)) >= self.wanted for some in (self.ours, self.theirs))
        if enough and _quiet(self.again):
            return _timed_once(self.wanted)
        return describe_disturbance(self.uses) or "it was not compared"

    def estimate(self, metric: str) -> Estimate:
        """The mean of our undisturbed repetitions, or of all if too few are undisturbed."""
        return _estimate(metric, self.ours, self.wanted)

    def reference_estimate(self, metric: str) -> Estimate:
        """The same for the reference's repetitions."""
        return _estimate(metric, self.theirs, self.wanted)

    def ratio(self, metric: str) -> Estimate | None:
        """Ours divided by the reference's, from undisturbed repetitions only; None if there is no ratio.

        In turns: the mean of ln(ours / theirs) over pairs, which are nearly independent, with the standard error of
        that mean. Otherwise the means before, between and after, by the delta method. The drift of the reference from
        its first to its last repetition widens the error: in between it had some intermediate value, and a uniform
        distribution of width d has the standard deviation d / sqrt(12) (GUM, 4.3.7). Pairs are affected less than that,
        so their intervals are somewhat too wide rather than too narrow.
        """
        if self.ratio_doubt is not None:
            return None
        if self.in_turns:
            pairs = self._pairs()[: self.wanted]
            logs = [math.log(ours.value / theirs.value) for ours, theirs in pairs]
            value, spread, n = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs)), len(logs)
            drift = math.log(_quiet(self.again)[-1].value / pairs[0][1].value)
        else:
            ours, before, after = (_logs(some) for some in (self.ours, self.theirs, self.again))
            value = statistics.fmean(ours) - statistics.fmean([*before, *after])
            spread = math.hypot(*(statistics.stdev(some) / math.sqrt(len(some)) for some in (ours, before)))
            n, drift = min(len(ours), len(before)), statistics.fmean(after) - statistics.fmean(before)
        se = math.exp(value) * math.hypot(spread, drift / math.sqrt(12))
        return Estimate(metric, math.exp(value), n, se, se, n)

    def _pairs(self) -> list[tuple[Repetition, Repetition]]:
        pairs = zip(self.ours, self.theirs, strict=False)
        return [pair for pair in pairs if not any(repetition.use.is_disturbed for repetition in pair)]


def summarize_repetitions(metric: str, values: Sequence[float], doubt: str | None = None) -> Estimate:
    """Mean over repetitions, with the standard error of the mean; none for a single repetition.

    llama-bench prints the mean and the sample standard deviation; the latter is `se * sqrt(n)`.

    Args:
        metric: its name.
        values: one per repetition.
        doubt: why it must not decide anything.
    """
    if not values:
        raise NoData(f"{metric}: no repetitions.")
    array = np.asarray(values, dtype=np.float64)
    se = iid_se(array)
    # Repetitions are nearly independent: each is its own cluster.
    clusters = len(array) if se is not None else None
    return Estimate(metric, float(array.mean()), len(array), se, se, clusters, doubt=doubt)


def describe_disturbance(uses: Sequence[Use]) -> str | None:
    """Describe disturbances of repetitions in words; None if there were none."""
    disturbed = [use for use in uses if use.is_disturbed]
    if not disturbed:
        return None
    times = f"during {len(disturbed)} of {len(uses)} repetitions"
    if gpu := next((use.gpu for use in disturbed if use.gpu), None):
        return f"{gpu} {times}"
    wall = sum(use.wall_s for use in disturbed)
    cores = f"{disturbed[0].cores} core{'s' if disturbed[0].cores > 1 else ''}"
    others, stolen = sum(use.others_s or 0.0 for use in disturbed), sum(use.stolen_s for use in disturbed)
    if any(use.is_crowded for use in disturbed):
        who = "the host of this virtual machine" if 2 * stolen > others else "other processes"
        return f"{who} took {others / wall:.2g} of {cores} {times}"
    if any(use.is_held_off for use in disturbed):
        waited = sum(use.waited_s or 0.0 for use in disturbed)
        return f"our threads waited {waited / wall:.2g} s in each second for one of {cores} {times}"
    if any(use.is_stalled for use in disturbed):
        idle = 1 - sum(use.own_s for use in disturbed) / wall
        return f"the process stood still for {100 * idle:.0f} % of the time, stopped or without memory, {times}"
    stopped = sum(use.throttled_s for use in disturbed) / wall
    return f"the CPU quota stopped us for {100 * stopped:.0f} % of the time (try fewer --gguf-threads) {times}"


def streams_disagree(tokens_per_s: float, served_tokens_per_s: float) -> bool:
    """Whether a served single stream contradicts llama-bench's generation speed.

    A server cannot be faster than the model, and is slower by its own work per token. Allowed: a factor of 1.5 in both
    directions, and 50 ms per token for its own work.
    """
    bench_s, served_s = 1 / tokens_per_s, 1 / served_tokens_per_s
    return not bench_s / _STREAM_FACTOR <= served_s <= bench_s * _STREAM_FACTOR + _STREAM_OVERHEAD_S


def _quiet(repetitions: Sequence[Repetition]) -> list[Repetition]:
    return [repetition for repetition in repetitions if not repetition.use.is_disturbed]


def _logs(repetitions: Sequence[Repetition]) -> list[float]:
    return [math.log(repetition.value) for repetition in _quiet(repetitions)]


def _doubt(repetitions: Sequence[Repetition], wanted: int) -> str | None:
    if len(_quiet(repetitions)) < wanted:
        return describe_disturbance([repetition.use for repetition in repetitions])
    return _timed_once(wanted)


def _timed_once(wanted: int) -> str | None:
    return "it was timed once, so no standard error is available (--gguf-repetitions=3)" if wanted < 2 else None


def _estimate(metric: str, repetitions: Sequence[Repetition], wanted: int) -> Estimate:
    quiet = _quiet(repetitions)
    kept = quiet if len(quiet) >= wanted else repetitions
    return summarize_repetitions(metric, [r.value for r in kept], _doubt(repetitions, wanted))
