"""What it costs to sum up what all heads do while llama.cpp decodes, over the same decode without taps.

    python -m tests.bench.attention_overhead [--rounds 15] [--threads N] [--tokens 512]

Both decode the same text with flash attention off, in turns, in one process and with one loaded model. Of several
rounds the best counts, since what is slower was disturbed; medians of the ratios of each round stand beside it, and so
does time of all processors together, of which llama.cpp's waiting threads take their share. Where no round had the
processors to itself, nothing is decided. Peak memory is that of processes of their own, one for each decode. Then how
cost grows with tokens, layers and heads, a fit of that, and what the fit says of a 7B model: an estimate, on paper.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.gguf.header import read_header
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import default_threads, read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.attention.tasks import AttentionRequest
from gguf_harness.measure.core import Core
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.bench.attention_timing import MAX_TOKENS, PHYSICAL_BATCH, Case, Timing, measure, peak
from tests.command_line import parse_command_line

TOKENS: Final = (64, 128, 256, 512, 1024)
LAYERS: Final = (1, 10, 20, 30)
HEADS: Final = (1, 3, 9)

LARGE: Final = {"layers": 32, "heads": 32, "tokens": 4096, "block parameters": 6_476_005_376}
"""Llama 2 7B: its parameters without embeddings and output, which few tokens of a prompt pass."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scaling-rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = _models(known.cache.absolute() / "harness")
        print(f"{known.threads} threads, flash attention off, load average {_load()}")
        log = Path(folder) / "log.txt"
        for model in models:
            whole = Case(known.tokens, model.info.n_layer or 0, model.info.n_head or 0)
            request = _request(model, known.threads)
            with _worker(log) as worker:
                (timing,) = worker.call(measure, None, request, [whole], known.rounds)
            _print_overhead(model.name, whole, timing, known.threads)
            _print_memory(log, request, whole)
        print(f"\nHow cost grows: {models[-1].name}")
        with _worker(log) as worker:
            cases = _scaling(models[-1])
            timings = worker.call(measure, None, _request(models[-1], known.threads), cases, known.scaling_rounds)
        _print_scaling(cases, timings, known.threads)
        per_call, per_cell = _fit(cases, timings)
        speed = known.tokens / min(timings[cases.index(Case(known.tokens, cases[0].layers, cases[0].heads))].bare)
        _print_large(per_call, per_cell, speed, _block_parameters(models[-1]))
        print(f"\nload average {_load()}")


def _models(cache: Path) -> list[Subject]:
    arguments = ["--models=smollm2-135m", "--gguf-quants=Q8_0", f"--gguf-cache={cache}"]
    options = read_options(parse_command_line(*arguments))
    core = Core(options, SilentProgress())
    try:
        return [core.subject(planned) for planned in plan_ladder(options).models]
    finally:
        core.close()


def _request(model: Subject, threads: int) -> AttentionRequest:
    return AttentionRequest(
        model=model.name,
        files=model.files,
        architecture=model.info.architecture,
        n_layer=model.info.n_layer or 0,
        settings=SessionSettings(n_ctx=MAX_TOKENS, n_batch=MAX_TOKENS, n_ubatch=PHYSICAL_BATCH, threads=threads),
        prompts=(),
        text=load_corpus("pydoc").text,
        folder=Path(),
        limit_bytes=0,
    )


@contextlib.contextmanager
def _worker(log: Path) -> Iterator[Worker]:
    worker = Worker("benchmark", log, gpu=-1)
    try:
        yield worker
    finally:
        worker.close()


def _scaling(model: Subject) -> list[Case]:
    layers, heads = model.info.n_layer or 0, model.info.n_head or 0
    cases = [Case(tokens, layers, heads) for tokens in TOKENS]
    cases += [Case(512, some, heads) for some in LAYERS if some < layers]
    return cases + [Case(512, layers, some) for some in HEADS if some < heads]


def _block_parameters(model: Subject) -> int:
    header = read_header(model.files[0])
    return sum(tensor.parameters for tensor in header.tensors if tensor.name.startswith("blk."))


def _fit(cases: Sequence[Case], timings: Sequence[Timing]) -> tuple[float, float]:
    """Seconds of the reader per call and per cell: least squares of relative errors of the best rounds."""
    seconds = np.array([min(timing.reader) for timing in timings])
    causes = np.array([(case.calls, case.cells) for case in cases], dtype=np.float64)
    per_call, per_cell = np.linalg.lstsq(causes / seconds[:, None], np.ones(len(cases)))[0].tolist()
    return per_call, per_cell


def _print_overhead(name: str, case: Case, timing: Timing, threads: int) -> None:
    print(f"\n{name}: {case.tokens} tokens, all {case.heads} heads of all {case.layers} layers")
    calm = timing.undisturbed(threads)
    verdict = _verdict(timing.ratio <= 1.15) if calm else "UNDECIDED: other processes disturbed every round"
    best = f"{min(timing.tapped):.3f} s over {min(timing.bare):.3f} s = {timing.ratio:.3f}"
    print(f"  wall time, best of {len(timing.bare)}     {best}   aim <= 1.15 {verdict}")
    print(f"  wall time, median ratio    {timing.median_ratio:.3f}")
    print(f"  time of processors, best   {timing.cpu_ratio:.3f}")
    print(f"  in the reader, best        {min(timing.reader):.3f} s", flush=True)


def _print_memory(log: Path, request: AttentionRequest, case: Case) -> None:
    peaks = {}
    for read in (False, True):
        with _worker(log) as worker:
            peaks[read] = worker.call(peak, None, request, case, read=read)
    extra = (peaks[True] - peaks[False]) / 1e6
    print(
        f"  peak memory                {peaks[True] / 1e6:.1f} MB less {peaks[False] / 1e6:.1f} MB = {extra:.1f} MB"
        f"   aim < 64 MB {_verdict(extra < 64)}",
        flush=True,
    )


def _print_scaling(cases: Sequence[Case], timings: Sequence[Timing], threads: int) -> None:
    print("  tokens layers heads   bare s   taps s   ratio  median     cpu  reader ms  ns per cell")
    for case, timing in zip(cases, timings, strict=True):
        reader = min(timing.reader)
        print(
            f"  {case.tokens:6} {case.layers:6} {case.heads:5} {min(timing.bare):8.3f} {min(timing.tapped):8.3f}"
            f" {timing.ratio:7.3f} {timing.median_ratio:7.3f} {timing.cpu_ratio:7.3f} {1000 * reader:10.2f}"
            f" {1e9 * reader / case.cells:12.2f}{'' if timing.undisturbed(threads) else '  disturbed'}"
        )


def _print_large(per_call: float, per_cell: float, speed: float, parameters: int) -> None:
    case = Case(LARGE["tokens"], LARGE["layers"], LARGE["heads"])
    print(f"\nreader = {1e6 * per_call:.0f} us x calls + {1e9 * per_cell:.2f} ns x cells (fitted to the best rounds)")
    print(f"On paper, not measured: {case.layers} layers x {case.heads} heads x {case.tokens} tokens")
    seconds = per_call * case.calls + per_cell * case.cells
    print(f"  calls = layers x ceil(tokens / n_ubatch) = {case.calls}")
    print(f"  cells = layers x heads x tokens (tokens + 1) / 2 = {case.cells:,}")
    print(f"  reader: {seconds:.1f} s")
    large = speed * parameters / LARGE["block parameters"]
    decode = case.tokens / large
    print(
        f"  decode: {decode:.0f} s at {large:.1f} tokens/s, an estimate: {speed:.0f} tokens/s here x"
        f" {parameters / 1e6:.0f}M / {LARGE['block parameters'] / 1e6:.0f}M parameters of blocks; attention over longer"
        " texts makes it slower"
    )
    print(f"  reader over decode: {seconds / decode:.1%}")
    pattern = case.heads * PHYSICAL_BATCH * case.tokens * 4
    scratch = 4 * max(2**18, 32 * case.tokens) + 4 * 32 * case.tokens + 28 * case.tokens
    # As tracemalloc counted it: 37.6 numbers per row of a head, at any size.
    rows = 8 * 38 * case.heads * PHYSICAL_BATCH
    print(
        f"  memory: heads x n_ubatch x n_keys x 4 B = {pattern / 1e6:.0f} MB of one layer's pattern, which"
        " llama.cpp has in its compute buffer with or without taps (viewed there; once more with a GPU)"
    )
    print(f"    + scratch, per thread: 4 max(2^18, 32 n) + 4 x 32 n + 28 n B = {scratch / 1e6:.1f} MB")
    print(f"    + scores of rows: 38 x heads x n_ubatch x 8 B = {rows / 1e6:.1f} MB")


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


if __name__ == "__main__":
    main()
