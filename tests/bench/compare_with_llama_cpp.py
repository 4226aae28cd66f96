"""Our wall times over those of llama.cpp's own tools, in one run on this machine, alternating between the two.

    python -m tests.bench.compare_with_llama_cpp [--chunks 16] [--repetitions 5] [--rounds 2]

The same files, corpus, threads and batches go to both, in turn. Times are of whole calls: theirs a process from start
to end, ours from the call to the result, with the start of the worker process, loading and storing in it. Of several
rounds the best counts (the median, for speeds): what is slower was disturbed. Numbers that both compute are compared as
well: a fast wrong answer is none.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import Ladder, plan_ladder
from gguf_harness.inputs.options import Options, read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.measure.passes.decoding import CODES_FILE
from gguf_harness.measure.speed.calls import Speed
from gguf_harness.metrics.divergence import summarize_divergence
from gguf_harness.metrics.perplexity import perplexity
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.bench.tools import build_tools
from tests.command_line import parse_command_line

T = TypeVar("T")

QUANTS = "Q8_0,Q5_K_M,Q4_K_M,Q3_K_M,IQ3_XS"


class _Times:
    """Wall times of both sides, by what was done."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float, str]] = []

    def add(self, what: str, ours: float, theirs: float, aim: str = "") -> None:
        self.rows.append((what, ours, theirs, aim))
        print(f"  {what:<44} ours {ours:8.2f}   theirs {theirs:8.2f}   ratio {ours / theirs:6.3f}   {aim}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    known = parser.parse_args()
    tools = build_tools(known.cache.absolute())
    options = _options(known.cache.absolute() / "harness", known.chunks, known.repetitions)
    ladder = plan_ladder(options)
    core = Core(options, SilentProgress())
    models = [core.subject(planned) for planned in ladder.models]
    print(f"engine: llama.cpp {core.llama_cpp.description['llama_cpp']}, {options.threads} threads")
    _compare_files(tools, core, ladder, options)
    with tempfile.TemporaryDirectory(dir=known.cache) as folder:
        times = _Times()
        print("\nWall time in seconds; a ratio below 1 is ours being faster.")
        _compare_passes(tools, options, models, Path(folder), times, known.rounds)
        print("\nSpeed in tokens per second; a ratio near 1 is agreement.")
        _compare_speed(tools, options, models, times, known.rounds)
        print("\nThe whole suite again, everything cached.")
        _cached_suite(times)
    core.close()


def _options(cache: Path, chunks: int, repetitions: int) -> Options:
    arguments = ["--models=smollm2-135m", f"--gguf-quants={QUANTS}", f"--gguf-chunks={chunks}", f"--gguf-cache={cache}"]
    arguments += ["--gguf-windows=first", "--gguf-pp=512", "--gguf-tg=128", f"--gguf-repetitions={repetitions}"]
    config = parse_command_line(*arguments)
    return read_options(config)


def _compare_files(tools: Path, core: Core, ladder: Ladder, options: Options) -> None:
    """Quantized files are equal, byte for byte."""
    reference = core.subject(ladder.models[0])
    for planned in ladder.candidates:
        with tempfile.TemporaryDirectory() as folder:
            theirs = Path(folder) / "theirs.gguf"
            command = (
                tools / "llama-quantize",
                reference.files[0],
                theirs,
                str(planned.model.quant),
                str(options.threads),
            )
            subprocess.run(command, check=True, capture_output=True)
            same = theirs.read_bytes() == core.subject(planned).files[0].read_bytes()
        print(f"  {planned.name:<44} {'equal to' if same else 'DIFFERS FROM'} the file of llama-quantize", flush=True)


def _compare_passes(
    tools: Path, options: Options, models: list[Subject], folder: Path, times: _Times, rounds: int
) -> None:
    text = load_corpus(options.corpus)
    corpus, base = folder / "corpus.txt", folder / "base.kld"
    corpus.write_bytes(text.text)
    common = ["-c", str(options.ctx), "-t", str(options.threads), "--chunks", str(options.chunks)]
    common += ["--kl-divergence-base", str(base)]
    tool, (reference, *candidates) = tools / "llama-perplexity", models
    ours, theirs = [], []
    for _ in range(rounds):
        seconds, output = _timed_tool(tool, "-m", reference.files[0], "-f", corpus, *common)
        theirs.append(seconds)
        with _fresh(options, folder) as core:
            seconds, base_arrays = _timed(functools.partial(CorpusPass(core, text).reference, reference, logprobs=True))
        ours.append(seconds)
    times.add("reference pass (PPL and log-probabilities)", min(ours), min(theirs), "aim <= 1.05")
    _agree("PPL", perplexity(base_arrays["nll"]).value, _number(output, r"Final estimate: PPL = ([0-9.]+)"))
    total_ours = total_theirs = 0.0
    for model in candidates:
        ours, theirs = [], []
        for _ in range(rounds):
            seconds, output = _timed_tool(tool, "-m", model.files[0], *common, "--kl-divergence")
            theirs.append(seconds)
            with _runner(options, folder) as core:
                _forget_candidates(core)
                seconds, arrays = _timed(functools.partial(CorpusPass(core, text).candidate, model, reference))
            ours.append(seconds)
        times.add(f"KL of {model.name}", min(ours), min(theirs))
        kld = summarize_divergence(arrays["kld"], arrays["kld_reverse"])[0].value
        _agree("KL", kld, _number(output, r"Mean\s+KLD:\s+([0-9.]+)"))
        total_ours, total_theirs = total_ours + min(ours), total_theirs + min(theirs)
    times.add("KL over the ladder of five", total_ours, total_theirs, "aim <= 0.80")


def _compare_speed(tools: Path, options: Options, models: list[Subject], times: _Times, rounds: int) -> None:
    for model in models[:3]:
        seen: dict[str, list[float]] = {"pp": [], "tg": [], "their pp": [], "their tg": []}
        command = ["-m", model.files[0], "-p", options.pp, "-n", options.tg, "-r", options.repetitions]
        for _ in range(rounds):
            _, output = _timed_tool(tools / "llama-bench", *command, "-t", options.threads, "-o", "json")
            for row in json.loads(output):
                seen["their pp" if row["n_prompt"] else "their tg"] += row["samples_ts"]
            with _fresh(options, options.cache / "speed") as core:
                result = Speed(core).beside(model)
            for kind in ("pp", "tg"):
                seen[kind] += [repetition.value for repetition in result.timings[kind].ours]
        for kind, length in (("pp", options.pp), ("tg", options.tg)):
            ours, theirs = (statistics.median(seen[name]) for name in (kind, f"their {kind}"))
            times.add(f"{kind}{length} of {model.name}", ours, theirs, "aim 0.95 to 1.05")


def _cached_suite(times: _Times) -> None:
    command = [sys.executable, "-m", "pytest", "suites/quant", "--models=smollm2-135m", f"--gguf-quants={QUANTS}", "-q"]
    first, _ = _timed(lambda: subprocess.run(command, capture_output=True, check=False))
    second, _ = _timed(lambda: subprocess.run(command, capture_output=True, check=False))
    times.add("suites/quant, second run (over the first)", second, first, "aim < 5 s")


@contextlib.contextmanager
def _fresh(options: Options, folder: Path) -> Iterator[Core]:
    """A core with an empty cache of its own; hashes and the engine are known to it."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(options.cache / "hashes", cache / "hashes")
    shutil.copytree(options.cache / "engine", cache / "engine")
    with _runner(options, folder) as core:
        yield core


@contextlib.contextmanager
def _runner(options: Options, folder: Path) -> Iterator[Core]:
    """A core that remembers what is in the folder's cache."""
    core = Core(replace(options, cache=folder / "cache"), SilentProgress())
    try:
        yield core
    finally:
        core.close()


def _forget_candidates(core: Core) -> None:
    """Passes but the reference's, which has the log-probabilities."""
    for entry in (core.cache.root / "passes").iterdir():
        if entry.is_dir() and not (entry / CODES_FILE).is_file():
            shutil.rmtree(entry)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _timed_tool(*command: object) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout if "-o" in command else done.stdout + done.stderr


def _number(output: str, pattern: str) -> float:
    match = re.search(pattern, output)
    if match is None:
        sys.exit(f"llama.cpp's tool printed nothing like {pattern!r}:\n{output[-2000:]}")
    return float(match[1])


def _agree(what: str, ours: float, theirs: float) -> None:
    print(f"  {'':<44} {what} ours {ours:.6f}, theirs {theirs:.6f} ({ours / theirs - 1:+.3%})", flush=True)


if __name__ == "__main__":
    main()
