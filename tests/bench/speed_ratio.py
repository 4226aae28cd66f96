"""Two identical files under two names, on a quiet machine: is their ratio of speed 1, and does its interval say so?

`python -m tests.bench.speed_ratio` takes about five minutes. It prints each comparison with its 95 % interval, and PASS
where the ratios are within 3 % of 1 (the median of how far they are, and their mean) and at least 93 % of the intervals
cover it. A comparison that was disturbed has no ratio: it is taken again, and more than a quarter of those are FAIL as
well, because the machine was not quiet.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.options import default_threads
from gguf_harness.inputs.sources import TINY_FILE
from gguf_harness.measure.speed.side_by_side import SpeedRequest, Timed, measure_speed
from gguf_harness.metrics.stats import confidence_bound

TESTS: Final = {"pp": "pp_speed_ratio", "tg": "tg_speed_ratio"}
WITHIN: Final = 0.03
LEAST_COVERAGE: Final = 0.93
MOST_DISTURBED: Final = 0.25


def main() -> None:
    """Compare two copies of a file as often as asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--comparisons", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--model", type=Path, default=TINY_FILE)
    arguments = parser.parse_args()
    threads = default_threads()
    request = SpeedRequest(SessionSettings(threads=threads), n_prompt=64, n_gen=16, repetitions=arguments.repetitions)
    ratios: dict[str, list[float]] = {test: [] for test in TESTS}
    covered: dict[str, list[bool]] = {test: [] for test in TESTS}
    disturbed = dict.fromkeys(TESTS, 0)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, other = (_subject(arguments.model, folder, copy) for copy in ("one", "other"))
        # A busy machine ends it as well: as many again, and no more.
        for _ in range(2 * arguments.comparisons):
            if all(len(some) >= arguments.comparisons for some in ratios.values()):
                break
            result = measure_speed(one, other, request, lambda *_: None)
            for test, metric in TESTS.items():
                timing = result.timings[test]
                ratio = timing.ratio(metric)
                if ratio is None or ratio.se is None:
                    disturbed[test] += 1
                    print(f"{test}: none, {timing.ratio_doubt}")
                    continue
                value, se = math.log(ratio.value), ratio.se / ratio.value
                low, high = (confidence_bound(value, se, ratio.clusters, 0.975, upper=upper) for upper in (False, True))
                ratios[test].append(ratio.value)
                covered[test].append(low <= 0 <= high)
                bounds = f"{math.exp(low):.4f} to {math.exp(high):.4f}"
                print(f"{test}: {ratio.value:.4f} ({bounds}){'' if covered[test][-1] else '  does not cover 1'}")
    passed = [_judge(test, ratios[test], covered[test], disturbed[test], arguments.comparisons) for test in TESTS]
    print(f"{time.monotonic() - start:.0f} s, {threads} threads: {'PASS' if all(passed) else 'FAIL'}")
    sys.exit(not all(passed))


def _subject(model: Path, folder: Path, name: str) -> Timed:
    copy = Path(shutil.copy(model, folder / f"{name}.gguf"))
    return Timed((copy,), lambda: Worker(name, folder / f"{name}.log"))


def _judge(test: str, ratios: list[float], covered: list[bool], disturbed: int, wanted: int) -> bool:
    if not ratios:
        print(f"{test}: no ratio at all: the machine is busy")
        return False
    mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
    distances = sorted(abs(math.log(ratio)) for ratio in ratios)
    coverage = sum(covered) / len(covered)
    print(
        f"{test}: mean ratio {mean:.4f}, off by {statistics.median(distances):.2%} (median) and {distances[-1]:.2%}"
        f" (worst); {coverage:.0%} of {len(ratios)} intervals cover 1; {disturbed} disturbed"
    )
    return (
        len(ratios) >= wanted
        and disturbed <= MOST_DISTURBED * (len(ratios) + disturbed)
        and max(abs(math.log(mean)), statistics.median(distances)) <= WITHIN
        and coverage >= LEAST_COVERAGE
    )


if __name__ == "__main__":
    main()
