"""How fast is a file with a filled cache?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gguf_harness.fixtures.record import Record
from gguf_harness.inputs.options import Options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.speed.calls import Speed
from gguf_harness.measure.speed.side_by_side import DepthSpeed
from gguf_harness.metrics.records import Estimate, Place
from gguf_harness.metrics.timings import Timing
from gguf_harness.store.run_part import RunPart


@pytest.mark.usefixtures("chosen_file")
@pytest.mark.metric("tg_at_depth")
def test_speed_at_depth(
    model: Subject, speed: Speed, record: Record, harness_options: Options, run_part: RunPart
) -> None:
    """Tokens per second of a prompt and of generation, after many tokens."""
    _record_speeds(speed.at_depth(model), model, record, harness_options, run_part)


@pytest.mark.usefixtures("chosen_cache")
@pytest.mark.metric("tg_at_depth")
def test_speed_at_depth_with_this_cache(
    cached: Subject, full_cache: Subject, speed: Speed, record: Record, harness_options: Options, run_part: RunPart
) -> None:
    """The same with this KV cache, in turns with a full one."""
    result = speed.at_depth(cached, full_cache)
    _record_speeds(result, cached, record, harness_options, run_part)
    doubts = []
    for kind, depth, timing in _timings(result):
        metric = f"{kind}_at_depth_ratio"
        if (ratio := timing.ratio(metric)) is not None:
            record(_placed(ratio, depth), detail=f"{ratio.n} of each in turns, {result.measured}")
        else:
            doubts.append(f"{metric} after {depth} tokens: {timing.ratio_doubt}")
    if doubts:
        pytest.skip("; ".join(doubts))


def _record_speeds(result: DepthSpeed, model: Subject, record: Record, options: Options, run_part: RunPart) -> None:
    doubts: list[str] = []
    lengths = {"pp": options.pp, "tg": options.tg}
    for kind, depth, timing in _timings(result):
        estimate = _placed(timing.estimate(f"{kind}_at_depth"), depth)
        record(estimate, detail=f"{kind}{lengths[kind]}, {estimate.n} repetitions after a warm-up, {result.measured}")
        assert estimate.value > 0
        doubts += [estimate.doubt] if estimate.doubt else []
    if doubts:
        run_part.warn(f"{model.name}: its speed with a filled cache is in doubt (?): {doubts[0]}")


def _timings(result: DepthSpeed) -> Iterator[tuple[str, str, Timing]]:
    for name, timing in result.timings.items():
        kind, _, depth = name.partition("@")
        yield kind, depth, timing


def _placed(estimate: Estimate, depth: str) -> Estimate:
    return replace(estimate, place=Place(part=f"d{depth}"))
