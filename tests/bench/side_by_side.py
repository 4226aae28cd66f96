"""A pass side by side over the two decodes alone, and the memory of its workers at two lengths of the context.

    python -m tests.bench.side_by_side [--rounds 3] [--chunks 4] [--ctx 4096] [--quick]

Both are whole processes: start, loading, decoding all windows with logits; side by side also shares rows and compares
them. They take turns, the other one first in each round; the median of the rounds' ratios counts. `--quick` is a smoke
run on tiny, whose times say nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.side_by_side import compare_side_by_side
from gguf_harness.measure.passes.tasks import CorpusText, PassRequest
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.command_line import parse_command_line
from tests.side_by_side_tasks import decode_alone, measured_peaks

AIM, MOST_GROWTH = 1.1, 0.05


def main() -> None:
    """Measure and print; ends with 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    known = parser.parse_args()
    model, ctx = ("tiny", 512) if known.quick else ("smollm2-135m", known.ctx)
    config = parse_command_line(
        f"--models={model}", "--gguf-quants=Q4_K_M", f"--gguf-cache={known.cache.absolute() / 'harness'}",
        f"--gguf-ctx={ctx}", f"--gguf-chunks={known.chunks}", "--gguf-beyond-context",
    )  # fmt: skip
    options = read_options(config)
    core = Core(options, SilentProgress())
    reference, candidate = (core.subject(planned) for planned in plan_ladder(options).models)
    corpus = load_corpus(options.corpus)
    core.close()
    with tempfile.TemporaryDirectory(dir=known.cache) as folder:
        text = CorpusText(corpus.name, corpus.text)
        both = [
            PassRequest(each.name, each.files, each.settings, text, known.chunks, Path(folder) / each.name)
            for each in (candidate, reference)
        ]
        ratio = statistics.median(_ratios(both, Path(folder), known.rounds))
        print(f"side by side over the two decodes alone: {ratio:.3f} (aim <= {AIM})", flush=True)
        lengths = (256, 512) if known.quick else (4096, 16384)
        grown = [_growth(both, Path(folder), lengths)]
    sys.exit(0 if known.quick or (ratio <= AIM and max(grown) <= MOST_GROWTH) else 1)


def _ratios(both: list[PassRequest], folder: Path, rounds: int) -> list[float]:
    ratios = []
    for turn in range(rounds):
        ways = (_alone, _together)
        seconds = {way: way(both, folder) for way in (ways if turn % 2 == 0 else ways[::-1])}
        ratios.append(seconds[_together] / seconds[_alone])
        print(f"  side by side {seconds[_together]:.1f} s, alone {seconds[_alone]:.1f} s: {ratios[-1]:.3f}", flush=True)
    return ratios


def _alone(both: list[PassRequest], folder: Path) -> float:
    start = time.perf_counter()
    for request in both:
        with Worker(request.model, folder / "log") as worker:
            worker.call(decode_alone, None, request)
    return time.perf_counter() - start


def _together(both: list[PassRequest], folder: Path) -> float:
    start = time.perf_counter()
    with Worker("candidate", folder / "log") as worker:
        candidate, reference = both
        compare_side_by_side(
            lambda _done, _total: None,
            candidate,
            reference,
            lambda: Worker("reference", folder / "log"),
            lambda: worker,
            (),
            1800.0,
        )
    return time.perf_counter() - start


def _growth(both: list[PassRequest], folder: Path, lengths: tuple[int, int]) -> float:
    """Share by which the peak memory of both workers grows from one length to the other, besides the KV caches."""
    totals = []
    for n_ctx in lengths:
        settings = replace(both[0].settings, n_ctx=n_ctx, n_batch=SessionSettings().n_batch)
        requests = [replace(each, settings=settings, chunks=2) for each in both]
        peaks = measured_peaks(requests[0], requests[1], folder / "log")
        totals.append(sum(peak.resident - peak.cache for peak in peaks))
        said = "; ".join(
            f"{name} {peak.resident / 1e6:.0f} MB, KV cache {peak.cache / 1e6:.0f}, compute {peak.compute / 1e6:.0f}"
            for name, peak in zip(("candidate", "reference"), peaks, strict=True)
        )
        print(f"  {n_ctx} tokens: {said}", flush=True)
    growth = totals[1] / totals[0] - 1
    print(f"peak memory besides the KV caches grows by {growth:.1%} (aim <= {MOST_GROWTH:.0%})", flush=True)
    return growth


if __name__ == "__main__":
    main()
